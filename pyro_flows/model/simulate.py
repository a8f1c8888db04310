"""Simulations of a model: draws of its latents with the data that they make."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .prior_draws import prior_draws
from .simulator import SimulatorModel, generators_kept, run_simulator
from .sites import is_deterministic, is_factor, is_subsample
from .structure import ModelStructure, read_model


@dataclass(frozen=True)
class Simulations:
    """Draws from the joint distribution of latents and data.

    Args:
        latents: Values ``(S, site shape)`` by latent site.
        observations: Values ``(S, site shape)`` by observed site.
        num_failed: Runs that raised or whose data were not finite; they are left out.
        failures: What happened to these, and how often.
        path: How the model was run: ``"vmap"``, ``"plate"``, ``"loop"`` or ``"simulator"``.
        reasons: Why faster ways were not taken.

    Raises:
        ValueError: If the tensors differ in their number of draws.

    Example:
        >>> len(Simulations({"x": torch.zeros(5)}, {"y": torch.zeros(5, 2)}))
        5
    """

    latents: Mapping[str, Tensor]
    observations: Mapping[str, Tensor]
    num_failed: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    path: str = "given"
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = {name: len(value) for part in (self.latents, self.observations) for name, value in part.items()}
        if not self.latents or not self.observations or len(set(sizes.values())) != 1:
            raise ValueError(f"latents and observations must hold tensors with one common number of draws, got {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())))

    def joined(self, other: Simulations) -> Simulations:
        """These draws and others after them."""
        failures = Counter(self.failures) + Counter(other.failures)
        return Simulations(
            {name: torch.cat([value, other.latents[name]]) for name, value in self.latents.items()},
            {name: torch.cat([value, other.observations[name]]) for name, value in self.observations.items()},
            self.num_failed + other.num_failed,
            dict(failures),
            self.path,
            self.reasons,
        )


@dataclass(frozen=True)
class SimulationTarget:
    """What to simulate: a model called with its arguments, and which of its sites are data.

    Args:
        model: The model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        structure: Its sites, with the data observed.
        observed: Shapes of the data, by observed site.
        batch_dims: Number of batch dimensions of each site.

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> read_target(model, (), {}, ["y"]).observed
        {'y': torch.Size([])}
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    structure: ModelStructure
    observed: Mapping[str, torch.Size]
    batch_dims: Mapping[str, int]


def read_target(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], observed: Sequence[str] | None = None
) -> SimulationTarget:
    """Read which sites of a model are latent and which are data, and refuse a model whose prior draws are not its joint.

    Args:
        model: A Pyro model, or a :class:`SimulatorModel`.
        args: Its arguments; the data may be among them, or None in their place.
        kwargs: Its keyword arguments.
        observed: Names of the observed sites; None for those that are observed in this call.

    Raises:
        ValueError: If there are no data, a site named in ``observed`` is not there, a latent's prior or support does not suit, or
        the
            model has factors, masks, scales or subsampling.

    Example:
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> [site.name for site in read_target(model, (torch.tensor(1.0),), {}).structure.sites]
        ['x']
    """
    if isinstance(model, SimulatorModel) and observed is None:
        observed = [model.site]
    with generators_kept(), torch.no_grad():
        torch.manual_seed(0)
        try:
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
        except Exception as error:
            raise ValueError(f"the model raised {type(error).__name__} when it was drawn from: {error}") from error
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not is_subsample(site)}
    named = [name for name, site in sites.items() if site["is_observed"] and not is_deterministic(site) and not is_factor(site)]
    if observed is not None:
        missing = sorted(set(observed) - set(sites))
        if missing:
            raise ValueError(f"observed names the sites {missing}, which the model does not have; it has {sorted(sites)}")
        named = [name for name in sites if name in set(observed) | set(named)]
    if not named:
        raise ValueError(
            f"the model has no observed site in this call; pass its data, or name the sites of {sorted(sites)} that are data by "
            f"observed="
        )
    for name, site in sites.items():
        mask, scale = site["mask"], site["scale"]
        why = (
            "is a factor, of which draws know nothing"
            if is_factor(site)
            else "is masked"
            if mask is not None and not bool(torch.as_tensor(mask).all())
            else "is scaled, so that its density is not that of its draws"
            if not bool((torch.as_tensor(scale) == 1).all())
            else None
        )
        if why:
            raise ValueError(f"site {name!r} {why}; simulations would not follow the model. Train by the ELBO, with AutoFlow")
    data = {name: sites[name]["value"] for name in named}
    with generators_kept():  # a simulator runs in it
        structure = read_model(poutine.condition(model, data=data), args, kwargs)
    if structure.subsampled:
        raise ValueError(
            f"plates {list(structure.subsampled)} are subsampled; a guide of whole data sets needs all data in each run"
        )
    dims = {name: len(site["fn"].batch_shape) for name, site in sites.items()}
    return SimulationTarget(model, tuple(args), dict(kwargs), structure, {n: v.shape for n, v in data.items()}, dims)


def simulate(
    model: Callable[..., Any],
    *args: Any,
    num_simulations: int = 10_000,
    observed: Sequence[str] | None = None,
    latents: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    num_workers: int = 1,
    max_failed: float = 0.2,
    progress: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> Simulations:
    """Draw latents and data from a Pyro model, or from a prior and a simulator.

    A Pyro model runs for all draws at once where that is right, and so noted, else once per draw. A simulator runs in
    ``num_workers`` processes, with a seed of its own for each draw.

    A run that raises, or whose data hold NaN or infinity, is counted and left out, with a warning. What is then learned is the
    posterior given that a run succeeds: parameters that often fail become less probable than under the prior.

    Args:
        model: A Pyro model whose observed sites are its data, or a :class:`SimulatorModel`.
        args: Arguments of the model; the data may be among them, or None in their place.
        num_simulations: Number of draws.
        observed: Names of the observed sites; None for those that are observed in this call.
        latents: Values ``(S, site shape)`` at which to simulate, instead of draws from the prior.
        seed: Makes the draws reproducible and leaves the global generators as they were.
        num_workers: Processes for a simulator; -1 for one per core.
        max_failed: Share of runs that may fail.
        progress: Show a progress bar.
        kwargs: Keyword arguments of the model.

    Returns:
        The draws. After Ctrl-C in a simulator, those that were finished.

    Raises:
        ValueError: If an argument is not as described, the model cannot be simulated, or more than ``max_failed`` of the runs fail.

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0).expand([3]).to_event(1), obs=y)
        >>> simulate(model, num_simulations=50, observed=["y"], seed=0).observations["y"].shape
        torch.Size([50, 3])
    """
    if not isinstance(num_simulations, int) or isinstance(num_simulations, bool) or num_simulations < 1:
        raise ValueError(f"num_simulations must be a positive integer, got {num_simulations!r}")
    if not 0 <= max_failed < 1:
        raise ValueError(f"max_failed must be a share of at least 0 and below 1, got {max_failed!r}")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1 or None, got {seed!r}")
    if not isinstance(num_workers, int) or isinstance(num_workers, bool) or not (num_workers == -1 or num_workers >= 1):
        raise ValueError(f"num_workers must be a positive integer, or -1 for one per core, got {num_workers!r}")
    target = read_target(model, args, dict(kwargs or {}), observed)
    with generators_kept() if seed is not None else nullcontext():
        if seed is not None:
            pyro.set_rng_seed(seed)  # numpy's too, which a model may use
        return draw(target, num_simulations, latents, num_workers=num_workers, max_failed=max_failed, progress=progress)


def draw(
    target: SimulationTarget,
    num_simulations: int,
    latents: Mapping[str, Tensor] | None = None,
    *,
    num_workers: int = 1,
    max_failed: float = 0.2,
    progress: bool = False,
) -> Simulations:
    """As :func:`simulate`, of a model that was read before.

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> len(draw(read_target(model, (), {}, ["y"]), 10))
        10
    """
    shapes = {site.name: site.shape for site in target.structure.sites}
    if latents is not None:
        found = {name: tuple(value.shape[1:]) for name, value in latents.items()}
        if found != {name: tuple(shape) for name, shape in shapes.items()} or len({len(v) for v in latents.values()}) != 1:
            raise ValueError(f"latents must hold a value (S, site shape) for each of {shapes}, got the shapes {found}")
        num_simulations = len(next(iter(latents.values())))
    if isinstance(target.model, SimulatorModel):
        return _run_simulator(target, num_simulations, latents, shapes, num_workers, max_failed, progress)
    drawn = prior_draws(
        target.model,
        target.args,
        target.kwargs,
        num_simulations,
        {**shapes, **target.observed},
        batch_dims=target.batch_dims,
        given=latents,
        progress=progress,
    )
    values = {name: drawn.values[name] for name in shapes}
    data = {name: drawn.values[name] for name in target.observed}
    return _checked(values, data, drawn.failures, num_simulations, max_failed, drawn.path, drawn.reasons)


def _run_simulator(
    target: SimulationTarget,
    count: int,
    latents: Mapping[str, Tensor] | None,
    shapes: Mapping[str, torch.Size],
    num_workers: int,
    max_failed: float,
    progress: bool,
) -> Simulations:
    model: SimulatorModel = target.model  # type: ignore[assignment]
    if latents is None:
        latents = prior_draws(model.prior, (), {}, count, shapes, batch_dims=target.batch_dims).values
    seed = int(torch.randint(2**31 - 1, (), device="cpu"))
    runs = run_simulator(model.simulator, latents, seed, num_workers=num_workers, progress=progress)
    shape = target.observed[model.site]
    failures: Counter[str] = Counter()
    kept: list[int] = []
    for i, (result, message) in enumerate(runs):
        if result is not None and result.shape != shape:
            message = f"data of shape {tuple(result.shape)} instead of {tuple(shape)}"
        if message is None:
            kept.append(i)
        else:
            failures[message] += 1
    if not kept:
        message = failures.most_common(1)[0][0] if failures else "interrupted"
        raise ValueError(f"the simulator failed in all {len(runs)} runs; most often: {message}")
    data = {model.site: torch.stack([runs[i][0] for i in kept])}  # type: ignore[misc]
    values = {name: value[kept] for name, value in latents.items()}
    return _checked(values, data, failures, len(runs), max_failed, "simulator", [])


def _checked(
    latents: Mapping[str, Tensor],
    data: Mapping[str, Tensor],
    failures: Counter[str],
    count: int,
    max_failed: float,
    path: str,
    reasons: Sequence[str],
) -> Simulations:
    """The draws whose data are finite, with a warning about the others, or an error if these are too many."""
    rows = len(next(iter(latents.values())))
    finite = torch.ones(rows, dtype=torch.bool, device=next(iter(latents.values())).device)
    for value in data.values():
        finite &= torch.isfinite(value.reshape(rows, -1)).all(-1)
    failures = Counter(failures)
    if int((~finite).sum()):
        failures["data that are NaN or infinite"] += int((~finite).sum())
    failed = failures.total()
    if failed:
        listed = "; ".join(f"{message} ({number} times)" for message, number in failures.most_common(3))
        if failed > max_failed * count:
            raise ValueError(
                f"{failed} of {count} simulations failed, more than the share max_failed={max_failed} that may: {listed}. Mend the "
                f"simulator or narrow the prior; raise max_failed only if the posterior given success is what you want"
            )
        warnings.warn(
            f"{failed} of {count} simulations failed and are left out: {listed}. The posterior is that given success", stacklevel=4
        )
        latents = {name: value[finite] for name, value in latents.items()}
        data = {name: value[finite] for name, value in data.items()}
    return Simulations(dict(latents), dict(data), failed, dict(failures), path, tuple(reasons))
