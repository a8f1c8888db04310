"""Local classifier two-sample test: whether a posterior is right for the data at hand."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_flows.diagnostics.printed import Printed
from pyro_flows.diagnostics.uniformity import LEVEL
from pyro_flows.guides import AmortizedFlow
from pyro_flows.model import Simulations
from pyro_flows.model.parallel import WorkerDiedError, in_processes

from .streams import derived_seed

#: Fewest simulations that a classifier can learn from.
_LEAST = 200


@dataclass(frozen=True)
class LocalTest(Printed):
    r"""Whether posteriors of single data sets are right.

    Args:
        statistic: Mean of :math:`(d(\theta, x) - 1/2)^2` over posterior draws of each data set, ``(M,)``: 0 where a classifier sees
            no difference, 1/4 where it sees all.
        null: What it is where there is none, by classifiers trained on permuted labels, ``(K, M)``.
        num_simulations: Number of simulations that the classifiers learnt from.
        outside: Data sets that have a number beyond those of all simulations, ``(M,)``, where a classifier knows nothing.

    Example:
        See :func:`lc2st_of`.
    """

    statistic: Tensor
    null: Tensor = field(repr=False)
    num_simulations: int
    outside: Tensor = field(repr=False)

    @property
    def p_value(self) -> Tensor:
        """Probability of so large a statistic where posterior and truth agree, of each data set, ``(M,)``."""
        count = (self.null >= self.statistic).sum(0)
        return (1.0 + count.double()) / (1.0 + len(self.null))

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        p_values = self.p_value
        bad = int((p_values <= LEVEL).sum())
        lost = int(self.outside.sum())
        seen = f"{self.num_simulations} simulations, p = {float(p_values.min()):.2g}"
        if lost == len(p_values):
            return f"All {lost} data sets have numbers beyond those of all simulations, where nothing can be told."
        if len(p_values) == 1:
            return f"The posterior of this data set is {'not right' if bad else 'right, for all that can be told'} ({seen})."
        beyond = f" Of {lost} that have numbers beyond those of all simulations nothing can be told." if lost else ""
        return f"Posteriors of {bad} of {len(p_values)} data sets are not right at a level of 5 % ({seen} at the least).{beyond}"

    def __str__(self) -> str:
        return self.sentence


def lc2st(
    guide: AmortizedFlow,
    simulations: Simulations,
    observations: Any,
    *,
    num_draws: int = 1000,
    num_null: int = 50,
    num_workers: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> LocalTest:
    r"""Test the posteriors that an amortised guide gives for data sets, by simulations it was not trained on.

    Calibration over the prior (:func:`sbc`) can be perfect where a posterior is wrong for some data and wrong the other way for
    others. Here a classifier learns to tell pairs :math:`(\theta, x)` of latents and data of the model from pairs of a guide's draw
    and the same data; how sure it is at the draws for the data at hand says whether they are right *there*.

    References:
        Linhart, Gramfort, Rodrigues (2023), *L-C2ST: local diagnostics for posterior approximations in simulation-based inference*,
        https://arxiv.org/abs/2306.03580

    Args:
        guide: A trained amortised guide.
        simulations: Latents and data of the model, **not those of the training**; 200 at least, some thousands to see small errors.
        observations: Data sets to test the posteriors of, ``(M, site shape)`` or one alone, as the guide takes them.
        num_draws: Posterior draws of each.
        num_null: Classifiers on permuted labels; the smallest p-value is one over their number plus one.
        num_workers: Processes that train classifiers; -1 for one per core.
        seed: Makes the result reproducible.
        progress: Show a progress bar.

    Raises:
        ValueError: If an argument is not as described.
        ImportError: If scikit-learn is not installed.

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> guide = pf.AmortizedFlow(model, observed=["y"])
        >>> done = pf.fit_amortized(guide, num_simulations=1000, max_epochs=3, seed=0, progress=False)
        >>> fresh = pf.simulate(model, num_simulations=400, observed=["y"], seed=1, progress=False)
        >>> lc2st(guide, fresh, torch.tensor(0.5), num_null=19, progress=False).p_value.shape
        torch.Size([1])
    """
    if not isinstance(guide, AmortizedFlow):
        raise ValueError(f"guide must be an AmortizedFlow, got {type(guide).__name__}; for others give draws to lc2st_of")
    if not isinstance(simulations, Simulations):
        raise ValueError(f"simulations must be Simulations, as pf.simulate makes them, got {type(simulations).__name__}")
    values = guide.observations(observations)
    batch = {value.shape[: value.dim() - len(guide.observed_shapes[name])] for name, value in values.items()}
    if len(batch) != 1 or len(next(iter(batch))) > 1:
        raise ValueError(f"observations must be one data set or M of them, got batch shapes {[tuple(shape) for shape in batch]}")
    if not next(iter(batch)):
        values = {name: value[None] for name, value in values.items()}
    with warnings.catch_warnings():  # of so many data sets some are rare
        warnings.filterwarnings("ignore", message=".*far from all simulations")
        drawn = guide.sample(simulations.observations, 1, seed=derived_seed(seed, "drawn"))
    at_draws = guide.sample(values, num_draws, seed=derived_seed(seed, "at"))
    names, sets = list(drawn), len(next(iter(values.values())))
    return lc2st_of(
        torch.cat([simulations.latents[name].reshape(len(simulations), -1).double() for name in names], 1),
        torch.cat([drawn[name].reshape(len(simulations), -1).double() for name in names], 1),
        guide.standardised(simulations.observations).double(),
        torch.cat([at_draws[name].movedim(0, 1).reshape(sets, num_draws, -1).double() for name in names], 2),
        guide.standardised(values).double(),
        num_null=num_null,
        num_workers=num_workers,
        seed=seed,
        progress=progress,
    )


def lc2st_of(
    truth: Tensor,
    drawn: Tensor,
    data: Tensor,
    at_draws: Tensor,
    at_data: Tensor,
    *,
    num_null: int = 50,
    num_workers: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> LocalTest:
    """The local test for draws of any posterior.

    Labels of the null are exchanged within pairs of the same data, which is what they could be if the posterior were right.

    Args:
        truth: Latents that made the data, ``(N, D)``.
        drawn: One posterior draw for each data set, ``(N, D)``.
        data: The data, or summaries, ``(N, P)``.
        at_draws: Posterior draws of the data sets to test, ``(M, S, D)``.
        at_data: These, ``(M, P)``.
        num_null: Classifiers on permuted labels.
        num_workers: Processes.
        seed: Of permutations and classifiers.
        progress: Show a progress bar.

    Raises:
        ValueError: If shapes do not fit, there are fewer than 200 simulations, or numbers are not finite.
        ImportError: If scikit-learn is not installed.

    Example:
        >>> x = torch.randn(400, 1)
        >>> y = x + torch.randn(400, 1)
        >>> posterior = lambda y, *size: y / 2 + 0.5**0.5 * torch.randn(*size, 1)
        >>> at = torch.zeros(1, 1)
        >>> found = lc2st_of(x, posterior(y, 400), y, posterior(at, 1, 500), at, num_null=19, progress=False)
        >>> 0 <= float(found.statistic) < 0.05
        True
    """
    _check(truth, drawn, data, at_draws, at_data, num_null)
    try:
        import sklearn.neural_network  # noqa: F401
    except ImportError as missing:
        raise ImportError("lc2st needs scikit-learn: pip install scikit-learn") from missing
    theta = torch.stack([truth, drawn.to(truth)]).double().cpu()  # (2, N, D)
    x = data.double().cpu()
    loc, scale = theta.flatten(0, 1).mean(0), theta.flatten(0, 1).std(0)
    x_loc, x_scale = x.mean(0), x.std(0)
    scale, x_scale = (torch.where(s > 0, s, torch.ones_like(s)) for s in (scale, x_scale))
    pairs = torch.cat([(theta - loc) / scale, ((x - x_loc) / x_scale).expand(2, -1, -1)], -1)
    count, sets, draws = len(x), len(at_data), at_draws.shape[1]
    points = torch.cat(
        [(at_draws.double().cpu() - loc) / scale, ((at_data.double().cpu() - x_loc) / x_scale)[:, None].expand(-1, draws, -1)], -1
    ).flatten(0, 1)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    swaps = torch.rand(num_null + 1, count, generator=generator, device="cpu") < 0.5
    swaps[0] = False
    runs = in_processes(_statistic, [(pairs.numpy(), swap.numpy(), points.numpy(), sets, seed) for swap in swaps], num_workers)
    done: dict[int, Any] = dict(tqdm(runs, total=len(swaps), desc="lc2st", disable=not progress, dynamic_ncols=True))
    for run in done.values():
        if isinstance(run, WorkerDiedError):
            raise run
    found = [torch.from_numpy(done[i]) for i in range(len(swaps))]
    tested = at_data.double().cpu()
    outside = ((tested < x.min(0).values) | (tested > x.max(0).values)).any(1)
    return LocalTest(found[0], torch.stack(found[1:]), count, outside)


def _statistic(pairs: np.ndarray, swap: np.ndarray, points: np.ndarray, sets: int, seed: int) -> np.ndarray:
    """That of a classifier trained with these pairs exchanged, for each data set."""
    from sklearn.neural_network import MLPClassifier

    first = np.where(swap[:, None], pairs[1], pairs[0])
    second = np.where(swap[:, None], pairs[0], pairs[1])
    order = np.random.default_rng(seed).permutation(2 * len(first))
    rows, labels = np.concatenate([first, second])[order], np.repeat([0, 1], len(first))[order]
    width = min(10 * rows.shape[1], 64)
    network = MLPClassifier((width, width), early_stopping=True, n_iter_no_change=10, max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what does not converge is no worse than its null
        network.fit(rows, labels)
    sure = network.predict_proba(points)[:, 0] - 0.5
    return np.square(sure).reshape(sets, -1).mean(1)


def _check(truth: Any, drawn: Any, data: Any, at_draws: Any, at_data: Any, num_null: Any) -> None:
    given = {"truth": (truth, 2), "drawn": (drawn, 2), "data": (data, 2), "at_draws": (at_draws, 3), "at_data": (at_data, 2)}
    for name, (value, rank) in given.items():
        if not isinstance(value, Tensor) or value.dim() != rank:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of {rank} dimensions, got {got}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(value)).sum())} entries that are not")
    count, dim, width = len(truth), truth.shape[1], data.shape[1]
    if drawn.shape != truth.shape or len(data) != count or at_draws.shape[2] != dim or at_data.shape != (len(at_draws), width):
        shapes = {name: tuple(value.shape) for name, (value, _) in given.items()}
        raise ValueError(f"expected shapes (N, D), (N, D), (N, P), (M, S, D) and (M, P), got {shapes}")
    if count < _LEAST:
        raise ValueError(f"{count} simulations are too few for a classifier to learn from, at least {_LEAST} are needed")
    if not len(at_draws) or at_draws.shape[1] < 20 or not width:
        sizes = f"{tuple(at_draws.shape)} and {tuple(at_data.shape)}"
        raise ValueError(f"at_draws and at_data must hold one data set, 20 draws and one number at least, got {sizes}")
    if not isinstance(num_null, int) or isinstance(num_null, bool) or num_null < 19:
        raise ValueError(f"num_null must be an integer of at least 19, which allows p-values down to 1 / 20, got {num_null!r}")
