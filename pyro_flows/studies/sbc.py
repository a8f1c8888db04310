"""Simulation-based calibration: fits of many data sets that the model itself made."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from pyro_flows.guides import AmortizedFlow, AutoFlow
from pyro_flows.infer import fit
from pyro_flows.model import Simulations, simulate
from pyro_flows.model.parallel import WorkerDiedError, in_processes

from .calibration import Calibration, ranks_of
from .streams import derived_seed

#: Draws of a posterior: values ``(S, *shape)`` by latent site.
Draws = Mapping[str, Tensor]
#: What makes draws of the posterior of data by site: called with these and the number of draws.
Posterior = Callable[[Mapping[str, Tensor], int], Draws]

_FORMAT = 2


def sbc(
    model: Callable[..., Any],
    *args: Any,
    posterior: Posterior | AmortizedFlow | None = None,
    observed: Sequence[str] | None = None,
    num_simulations: int = 200,
    num_draws: int = 99,
    resample: bool = False,
    fit_options: Mapping[str, Any] | None = None,
    file: str | Path | None = None,
    num_workers: int = 1,
    max_failed: float = 0.1,
    seed: int = 0,
    progress: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> Calibration:
    r"""Calibration of a way to fit a model, by simulation.

    Latents and data are drawn from the model, the data are fitted, and the latents ranked among the draws of the fit. If posteriors
    are right, ranks are uniform, whatever the model. The answer speaks of data that the prior makes.

    Args:
        model: A Pyro model whose data can be drawn, see :func:`~pyro_flows.model.simulate`.
        args: Its arguments; the data may be among them, or None in their place.
        posterior: How posteriors are found: None for :func:`~pyro_flows.infer.fit` of each data set, a trained
            :class:`~pyro_flows.guides.AmortizedFlow`, or a function of the data by site and the number of draws that returns draws
            by site.
        observed: Names of the observed sites; None for those that are observed in this call.
        num_simulations: Number of data sets. Small errors need many: 400 show a shift of 0.3 sd, 2,000 an sd that is 20 % too
            small.
        num_draws: Draws of each posterior.
        resample: Whether the draws of a fit are resampled by their weights, as its verdict may advise.
        fit_options: Keyword arguments of each fit, such as ``{"guide": "real_nvp", "max_steps": 1000}``.
        file: Where results are kept, a line each; what is there already, of the same study, is not run again.
        num_workers: Processes for fits; -1 for one per core.
        max_failed: Share of the data sets that may fail; they are counted in ``failures`` and left out.
        seed: Makes the result reproducible and leaves the global generators as they were.
        progress: Show a progress bar.
        kwargs: Keyword arguments of the model.

    Returns:
        The ranks, with tests, a sentence and a picture.

    Raises:
        ValueError: If an argument is not as described, the model cannot be simulated, or ``file`` is of another study.
        ArithmeticError: If more of the data sets fail than may.

    References:
        Talts et al. (2018), https://arxiv.org/abs/1804.06788

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> exact = lambda data, count: {"x": data["y"] / 2 + 0.5**0.5 * torch.randn(count)}
        >>> sbc(model, posterior=exact, observed=["y"], num_simulations=100, seed=2, progress=False).calibrated
        True
    """
    _check(model, posterior, num_simulations, num_draws, max_failed, fit_options)
    if resample and posterior is not None:
        raise ValueError("resample is for posterior=None, whose fits have weights; leave it out")
    if isinstance(posterior, AmortizedFlow) and (file is not None or num_workers != 1):
        raise ValueError(
            "file and num_workers have no effect on an AmortizedFlow, which takes all data sets at once; leave them out"
        )
    simulations = simulate(
        model, *args, num_simulations=num_simulations, observed=observed, seed=seed, progress=False, kwargs=dict(kwargs or {})
    )
    if isinstance(posterior, AmortizedFlow):
        return _amortized(posterior, simulations, num_draws, seed)
    how = _Fits(model, args, dict(kwargs or {}), dict(fit_options or {}), resample) if posterior is None else posterior
    results = _kept(file, simulations, num_draws, seed, f"{_how(posterior)}; resample={resample}; {_how(fit_options or {})}")
    wanted = [i for i in range(len(simulations)) if i not in results]
    calls = [(how, _row(simulations.latents, i), _row(simulations.observations, i), num_draws, seed, i) for i in wanted]
    with tqdm(total=len(simulations), initial=len(results), desc="sbc", disable=not progress, dynamic_ncols=True) as bar:
        for place, found in in_processes(_ranked, calls, num_workers):
            number = wanted[place]
            result = results[number] = (
                "WorkerDiedError: the process of this fit died" if isinstance(found, WorkerDiedError) else found
            )
            if file is not None:
                with Path(file).open("a") as stream:
                    stream.write(json.dumps({"number": number, "result": result}) + "\n")
            bar.update()
    return _collected(results, simulations, num_draws, max_failed, seed)


class _Fits:
    """Fits a model to data sets, and draws from each fit."""

    def __init__(
        self, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any], resample: bool
    ) -> None:
        self.model, self.args, self.kwargs, self.options, self.resample = model, tuple(args), kwargs, options, resample

    def __call__(self, data: Mapping[str, Tensor], num_draws: int) -> Draws:
        given = poutine.condition(self.model, data=dict(data))
        seed = int(torch.randint(2**31, ()))
        done = fit(given, *self.args, kwargs=self.kwargs, progress=False, seed=seed, **self.options)
        return done.resample(num_draws, seed=seed) if self.resample else done.sample(num_draws, seed=seed)


def _check(
    model: Any, posterior: Any, num_simulations: Any, num_draws: Any, max_failed: Any, fit_options: Mapping[str, Any] | None
) -> None:
    if not callable(model):
        raise ValueError(f"model must be callable, got {type(model).__name__}")
    if isinstance(posterior, AutoFlow) or (posterior is not None and not callable(posterior)):
        raise ValueError(
            f"posterior must be None, an AmortizedFlow or a function of data and a number of draws, got "
            f"{type(posterior).__name__}; for fits with a guide give fit_options={{'guide': ...}}"
        )
    for name, value, least in (("num_simulations", num_simulations, 10), ("num_draws", num_draws, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not isinstance(max_failed, (int, float)) or not 0 <= max_failed < 1:
        raise ValueError(f"max_failed must be a share from 0 to below 1, got {max_failed!r}")
    if fit_options and posterior is not None:
        raise ValueError(f"fit_options are for posterior=None, where each data set is fitted; got {sorted(fit_options)}")
    fixed = {"progress", "seed", "kwargs", "minibatches", "callback", "checkpoint"} & set(fit_options or {})
    if fixed:
        raise ValueError(f"fit_options must not hold {sorted(fixed)}, which the study sets or has no use for")


def _row(values: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    return {name: value[number] for name, value in values.items()}


def _ranked(
    how: Posterior, latents: Mapping[str, Tensor], data: Mapping[str, Tensor], num_draws: int, seed: int, number: int
) -> Any:
    """Draws of one posterior, or the words of its failure."""
    with torch.random.fork_rng():
        pyro.set_rng_seed(derived_seed(seed, "data set", number))
        torch.set_num_threads(1)
        try:
            with pyro.get_param_store().scope():
                draws = how(data, num_draws)
            values = {name: draws[name] for name in latents}
        except (ArithmeticError, ValueError, RuntimeError, KeyError) as error:
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    for name, value in values.items():
        if tuple(value.shape) != (num_draws, *latents[name].shape):
            return f"draws of {name!r} have shape {tuple(value.shape)}, expected {(num_draws, *latents[name].shape)}"
        if not bool(torch.isfinite(value).all()):
            return f"draws of {name!r} are not finite"
    return {name: value.detach().double().reshape(num_draws, -1).tolist() for name, value in values.items()}


def _how(value: Any) -> str:
    """Words for a way to find posteriors, the same in every process."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_how(value[key])}" for key in sorted(value))
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _kept(file: str | Path | None, simulations: Simulations, num_draws: int, seed: int, how: str) -> dict[int, Any]:
    """Results in a file; a new one gets a line that says of which study it is."""
    if file is None:
        return {}
    total = sum(float(value.double().sum()) for part in (simulations.latents, simulations.observations) for value in part.values())
    header = {"format": _FORMAT, "count": len(simulations), "num_draws": num_draws, "seed": seed, "sum": total, "how": how}
    path = Path(file)
    if not path.exists():
        path.write_text(json.dumps(header) + "\n")
        return {}
    first, *lines = path.read_text().split("\n")
    try:
        found = json.loads(first)
    except json.JSONDecodeError as error:
        raise ValueError(f"file {path} holds no study; give another name") from error
    if found != header:
        differs = sorted(key for key in header if not isinstance(found, dict) or found.get(key) != header[key])
        raise ValueError(f"file {path} is of another study (other {', '.join(differs)}); give another name, or remove it")
    *whole, partial = lines
    if partial:  # of a run that was killed
        os.truncate(path, path.stat().st_size - len(partial.encode()))
    entries = [json.loads(line) for line in whole]
    return {int(entry["number"]): entry["result"] for entry in entries}


def _collected(results: Mapping[int, Any], simulations: Simulations, num_draws: int, max_failed: float, seed: int) -> Calibration:
    failures = Counter(simulations.failures) + Counter(result for result in results.values() if isinstance(result, str))
    good = sorted(number for number, result in results.items() if not isinstance(result, str))
    lost = len(results) - len(good)
    if lost > max_failed * len(results) or len(good) < 10:
        words = "; ".join(f"{count} x {what}" for what, count in failures.most_common(3))
        raise ArithmeticError(f"{lost} of {len(results)} data sets had no posterior: {words}")
    draws = {
        name: torch.tensor([results[number][name] for number in good], dtype=torch.float64, device=value.device).reshape(
            len(good), num_draws, *value.shape[1:]
        )
        for name, value in simulations.latents.items()
    }
    truth = {name: value[good] for name, value in simulations.latents.items()}
    study = ranks_of(truth, draws, data=_flat(simulations.observations)[good], seed=derived_seed(seed, "ranks"))
    return Calibration(study.ranks, num_draws, dict(failures))


def _flat(observations: Mapping[str, Tensor]) -> Tensor:
    """Data ``(N, P)``."""
    return torch.cat([value.detach().double().reshape(len(value), -1) for value in observations.values()], -1)


def _amortized(guide: AmortizedFlow, simulations: Simulations, num_draws: int, seed: int) -> Calibration:
    """Of a guide that takes all data sets at once, with the ranks of its densities."""
    with warnings.catch_warnings():  # of so many data sets some are rare
        warnings.filterwarnings("ignore", message=".*far from all simulations")
        draws = guide.sample(simulations.observations, num_draws, seed=derived_seed(seed, "draws"))
    with torch.no_grad():
        log_prob_truth = guide.log_prob(simulations.latents, simulations.observations)
        log_prob_draws = guide.log_prob(draws, simulations.observations)
    by_set = {name: draws[name].movedim(0, 1) for name in simulations.latents}
    study = ranks_of(
        simulations.latents,
        by_set,
        log_prob_truth=log_prob_truth,
        log_prob_draws=log_prob_draws.mT,
        data=_flat(simulations.observations),
        seed=derived_seed(seed, "ranks"),
    )
    return Calibration(study.ranks, num_draws, dict(simulations.failures))
