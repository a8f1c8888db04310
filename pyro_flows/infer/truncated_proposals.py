"""Sequential rounds for one observation: simulate where the posterior may be, by truncating the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_flows.guides.amortized_flow import AmortizedFlow, Observations
from pyro_flows.model.prior_draws import prior_draws
from pyro_flows.model.seeding import seeded
from pyro_flows.model.simulate import SimulationTarget, draw
from pyro_flows.model.simulator import SimulatorModel

from .amortized import AmortizedFit, fit_amortized
from .arguments import check_count, check_seed

_THRESHOLD_DRAWS = 10_000
_BATCH = 20_000


def fit_truncated(
    guide: AmortizedFlow,
    observations: Observations,
    *args: Any,
    num_rounds: int = 5,
    num_simulations: int = 2000,
    epsilon: float = 1e-4,
    max_proposals: int = 10_000_000,
    num_workers: int = 1,
    max_failed: float = 0.2,
    seed: int | None = None,
    progress: bool = True,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[AmortizedFit]:
    r"""Train a guide for one observation in rounds, each of which simulates from a truncated prior.

    The first round draws from the prior. Each later one draws from the prior restricted to the region of highest density of the
    guide at this observation, which holds :math:`1 - \epsilon` of its mass, by rejection. The guide is trained anew on the draws
    of all rounds. In that region the proposals are the prior but for a constant, so that the likelihood needs no correction. The
    guide is right near this observation only.

    Args:
        guide: The guide.
        observations: The data, one data set: a value per observed site, or a tensor where there is one such site.
        args: Arguments of the model; the data may be among them, or None in their place.
        num_rounds: Number of rounds.
        num_simulations: Simulations of each round.
        epsilon: Share of the guide's mass that is cut off.
        max_proposals: Draws of the prior in a round, at most. Where they do not suffice, the rounds end with those before.
        num_workers: Processes for a simulator; -1 for one per core.
        max_failed: Share of the simulations that may fail.
        seed: Makes the result reproducible and leaves the global generators as they were.
        progress: Show progress bars.
        kwargs: Keyword arguments of the model.
        options: Further arguments of :func:`fit_amortized`.

    Returns:
        How each round went; the last of them holds all simulations.

    Raises:
        ValueError: If an argument is not as described, there are several data sets, or the model cannot be simulated.

    References:
        Deistler, Gonçalves, Macke (2022), *Truncated proposals for scalable and hassle-free simulation-based inference*,
        https://arxiv.org/abs/2210.04815

    Example:
        >>> def model(y=None):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     pyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        >>> guide = pf.AmortizedFlow(model, observed=["y"])
        >>> rounds = fit_truncated(
        ...     guide, torch.tensor(3.0), num_rounds=2, num_simulations=200, max_epochs=2, seed=0, progress=False
        ... )
        >>> latents = rounds[-1].simulations.latents["mean"]
        >>> bool(latents[200:].std() < 0.3 * latents[:200].std())
        True
    """
    if not isinstance(guide, AmortizedFlow):
        raise ValueError(f"guide must be an AmortizedFlow, got {type(guide).__name__}")
    for name, count in (("num_rounds", num_rounds), ("num_simulations", num_simulations), ("max_proposals", max_proposals)):
        check_count(name, count)
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must lie between 0 and 1, got {epsilon!r}")
    for name in ("simulations", "fresh", "warm_start"):
        if name in options:
            raise ValueError(f"{name} does not go with rounds, which make the simulations and train anew; leave it out")
    check_seed(seed)
    shared: dict[str, Any] = {"num_workers": num_workers, "max_failed": max_failed, "progress": progress}
    rounds: list[AmortizedFit] = []
    with seeded(seed):
        target = guide.read(*args, **dict(kwargs or {}))
        found = first = draw(target, num_simulations, **shared)
        for number in range(num_rounds):
            rounds.append(fit_amortized(guide, *args, simulations=found, progress=progress, kwargs=kwargs, **options))
            if len(first) >= 20:  # what is typical of the model, not of its truncation
                guide.set_typicality(first.observations)
            if guide.standardised(observations).dim() != 1:
                raise ValueError("observations must be one data set; rounds are for one, fit_amortized is for many")
            if number == num_rounds - 1 or rounds[-1].stop_reason == "interrupted":
                break
            latents = truncated_prior(guide, observations, target, num_simulations, epsilon, max_proposals, progress)
            if latents is None:
                break
            found = found.joined(draw(target, num_simulations, latents, **shared))
    return rounds


@torch.no_grad()
def truncated_prior(
    guide: AmortizedFlow,
    observations: Observations,
    target: SimulationTarget,
    count: int,
    epsilon: float = 1e-4,
    max_proposals: int = 10_000_000,
    progress: bool = False,
) -> dict[str, Tensor] | None:
    r"""Draws of the prior inside the guide's region of highest density, which holds :math:`1 - \epsilon` of its mass.

    Args:
        guide: A trained guide.
        observations: One data set.
        target: What ``guide.read`` returned.
        count: Number of draws.
        epsilon: Share of the guide's mass outside.
        max_proposals: Draws of the prior at most.
        progress: Show a progress bar.

    Returns:
        Values ``(count, site shape)`` per latent site; None where ``max_proposals`` did not suffice.

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.1), obs=y)
        >>> guide = pf.AmortizedFlow(model, observed=["y"])
        >>> fit = pf.fit_amortized(guide, num_simulations=300, max_epochs=1, seed=0, progress=False)
        >>> truncated_prior(guide, torch.tensor(0.5), guide.read(), 10)["x"].shape
        torch.Size([10])
    """
    own = guide.sample(observations, _THRESHOLD_DRAWS)
    threshold = guide.log_prob(own, observations).quantile(epsilon)
    shapes = {site.name: site.shape for site in target.structure.sites}
    is_simulator = isinstance(target.model, SimulatorModel)
    prior = target.model.prior if isinstance(target.model, SimulatorModel) else target.model
    args, kwargs = ((), {}) if is_simulator else (target.args, target.kwargs)
    kept: list[dict[str, Tensor]] = []
    proposed = accepted = 0
    with tqdm(total=count, desc="truncated prior", disable=not progress) as bar:
        while accepted < count and proposed < max_proposals:
            values = prior_draws(prior, args, kwargs, _BATCH, shapes, batch_dims=target.batch_dims).values
            inside = guide.log_prob(values, observations) >= threshold
            kept.append({name: value[inside] for name, value in values.items()})
            proposed, new = proposed + _BATCH, int(inside.sum())
            bar.update(min(new, count - accepted))
            accepted += new
    if accepted < count:
        return None
    return {name: torch.cat([part[name] for part in kept])[:count] for name in shapes}
