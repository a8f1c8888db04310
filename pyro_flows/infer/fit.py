"""``fit``: from a Pyro model to a trained guide in one call."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_flows.flows.registry import FlowFactory
from pyro_flows.guides import AutoFlow, AutoPlateFlow
from pyro_flows.model import LogJoint, initial_point, read_model
from pyro_flows.model.held_parameters import training_parameters
from pyro_flows.model.seeding import seeded

from .arguments import check_seed
from .checkpoint_folder import CheckpointFolder
from .choice import choose_guide
from .descent import Callback, Schedule, Training
from .digest import digest
from .grid_training import train_on_grids
from .ladder import climb_ladder
from .modes import describe_modes, missed_by
from .noted_run import checkpoints, note_resumption, seconds_before, start_from
from .path_gradient import OBJECTIVES
from .plate_fit import fit_plates
from .result import Fit
from .start import choose_coordinates
from .training import train


def fit(
    model: Callable[..., Any],
    *args: Any,
    guide: str | FlowFactory | AutoFlow | AutoPlateFlow | None = None,
    minibatches: Iterable[Any] | None = None,
    objective: str = "path",
    num_particles: int | None = None,
    max_steps: int | None = None,
    max_time: float | None = None,
    seed: int | None = None,
    init: Mapping[str, Tensor] | Fit | None = None,
    non_centred: bool | None = None,
    schedule: Schedule | None = None,
    progress: bool = True,
    callback: Callback | None = None,
    compile: bool = False,
    checkpoint: str | Path | CheckpointFolder | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Fit:
    r"""Fit a normalizing flow to the posterior of a Pyro model.

    Maximises :math:`E_q[\log p(x, z) - \log q(z)]` over a flow :math:`q` by path gradients. Training starts from the best of
    several Gaussians, and stops by itself. The model is evaluated for all particles at once where that gives what single draws
    give; which way was taken, and why, stands in ``fit.record``.

    Args:
        model: A Pyro model. It may be written for a single draw: loops, scalars and no plates are all right.
        args: Arguments of the model, the data among them.
        guide: Name of a registered flow, a callable ``(input_dim, context_dim) -> FlowTransform``, an :class:`AutoFlow` of this
            model, an :class:`AutoPlateFlow` (trained by minibatches, with a verdict on all the data), or None for the simplest
            that the posterior needs: a full Gaussian where its weights say that it is exact, else a flow over it of growing
            capacity. ``fit.record`` says what was chosen and why.
        minibatches: For an :class:`AutoPlateFlow`: the positional arguments of the model for each step, an iterable that can be
            gone through many times (a list of tuples, a ``DataLoader``), while ``args`` stand for all the data, on which draws and
            verdict rest; None to train on ``args``.
        objective: ``"path"``, the evidence lower bound, at the end with draws weighted by powers of their importance weights, so
            that tails are not cut; ``"iwae"``, the importance-weighted bound of all draws of a step, or ``"renyi"``, Rényi's of
            order one half, both more tolerant of a flow that cannot be exact; ``"forward_kl"``, which after the lower bound
            minimises :math:`\mathrm{KL}(p \| q)` and widens tails. All by path gradients.
        num_particles: Draws per step; None for 256, and fewer where there are more than 32 latents (64 from 128 on), 8 for a guide
            of plates.
        max_steps: Steps at most, of all guides that are tried; None for 4,000, and 20,000 for a guide of plates.
        max_time: Seconds after which training ends, the search for a start included; None for no limit. The look for missed modes
            that comes after it takes some seconds more.
        seed: Makes the fit reproducible and leaves the global generators as they were; None draws from them.
        init: Where the search for a start begins, values of all latent sites; or an earlier fit, whose mean and spread are taken
            without a search; None to begin at the model's own initial values.
        non_centred: Whether effects of a hierarchy are standardised by their prior and data
            (:class:`~pyro_flows.transforms.NonCentring`); None for whatever makes the better start. Without effect on a guide that
            is given as an object, and after an earlier fit, whose coordinates are taken.
        schedule: Step sizes and stop rule.
        progress: Show a progress bar.
        callback: Called as ``callback(step, loss)`` after each step.
        compile: Whether to compile model and guide into one piece of machine code by ``torch.compile``, which takes some ten
            seconds for every guide that is tried and needs a C++ compiler; worth it from some thousand steps on. Without it they
            are traced into a graph of tensor operations after 150 steps. ``fit.record["traced"]`` says what was done, or why not.
        checkpoint: Folder in which the run notes what it has done, and from which it goes on if it was killed and is called again
            with the same arguments; see :class:`~pyro_flows.infer.CheckpointFolder`. None for none.
        kwargs: Keyword arguments of the model.

    Returns:
        A :class:`Fit`: draws, a verdict, arviz data.

    Raises:
        ValueError: If an argument is not as described, or the model cannot be fitted; the message names the site.
        ArithmeticError: If too many steps are not finite.

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> result = fit(model, torch.tensor([1.0, 2.0, 3.0]), guide="affine", max_steps=400, seed=0, progress=False)
        >>> result.diagnose().verdict
        'good'
    """
    if max_steps is None:
        max_steps = 20_000 if isinstance(guide, AutoPlateFlow) else 4000
    _check_arguments(model, objective, num_particles, max_steps, max_time, seed, schedule, callback, kwargs)
    if not isinstance(compile, bool):
        raise ValueError(f"compile must be True or False, got {compile!r}")
    if non_centred is not None and not isinstance(non_centred, bool):
        raise ValueError(f"non_centred must be True, False or None, got {non_centred!r}")
    call_kwargs = dict(kwargs or {})

    def identity() -> dict[str, str]:
        return {
            "arguments": digest([args, call_kwargs, minibatches]),
            "guide": guide if isinstance(guide, str) else type(guide).__name__,
            "options": digest([objective, num_particles, max_steps, repr(schedule), non_centred, compile, init]),
            "seed": str(seed),
        }

    if isinstance(guide, AutoPlateFlow):
        for name, value, usual in (
            ("objective", objective, "path"),
            ("init", init, None),
            ("non_centred", non_centred, None),
            ("compile", compile, False),
        ):
            if value != usual:
                raise ValueError(f"{name} has no effect on an AutoPlateFlow, got {value!r}; leave it out")
        with seeded(seed), checkpoints(checkpoint, identity):
            return fit_plates(
                model, guide, args, call_kwargs, minibatches, num_particles, max_steps, max_time, schedule, progress, callback, seed
            )
    if minibatches is not None:
        raise ValueError("minibatches are for a guide of plates; give guide=AutoPlateFlow(model, context=...), or leave them out")
    with seeded(seed), checkpoints(checkpoint, identity) as folder:
        began = time.monotonic() - seconds_before(folder)
        structure = read_model(model, args, call_kwargs)
        auto_guide = _make_guide(model, guide, args, call_kwargs)
        structure = structure.with_charts(auto_guide.charts)
        log_joint = LogJoint(model, args, call_kwargs, structure)
        if isinstance(guide, AutoFlow):  # its start does not follow from the model, which would tell another one
            start_from("guide", guide, {} if folder is None else {"model": _digest_of(log_joint, guide)})
        if auto_guide.latent_dim != structure.dim:
            raise ValueError(
                f"guide has {auto_guide.latent_dim} latent dimensions and the model {structure.dim}; give guide= made for it"
            )
        particles = default_particles(structure.dim) if num_particles is None else num_particles
        record: dict[str, Any] = {
            "dim": structure.dim,
            "guide": type(auto_guide).__name__,
            "flow": _flow_name(guide),
            "path": log_joint.path,
            "path_reasons": list(log_joint.reasons),
            "objective": objective,
            "num_particles": particles,
            "seed": seed,
            "rungs": [],
            "traced": [],
            "particles_at_once": min(log_joint.particles_at_once, particles),
        }
        if structure.subsampled and objective != "path":
            raise ValueError(
                f"objective {objective!r} weights draws by the density with all data, and plates {list(structure.subsampled)} draw "
                f"minibatches; take 'path', or fit without subsampling"
            )
        at_once = max(num_particles or 256, 64)
        interrupted = False
        if not isinstance(guide, AutoFlow):
            share = math.inf if max_time is None else 0.3 * max_time
            interrupted = _start(auto_guide, log_joint, init, record, at_once, share, non_centred)
        parameters = structure.parameters()
        record["model_parameters"] = sorted(parameters)
        plan = schedule or Schedule()

        rounds: list[Training] = []

        def run(steps: int, share: float) -> Training:
            done = train(
                auto_guide.distribution,
                log_joint,
                list(parameters.values()),
                num_particles=particles,
                max_steps=steps,
                max_time=None if max_time is None else max(max_time - (time.monotonic() - began), 1e-3),
                schedule=replace(plan, lr=share * plan.lr),
                progress=progress,
                callback=callback,
                explain=lambda z: _explain(log_joint, z),
                full_density=log_joint.full if structure.subsampled else None,
                objective=objective,
                compile=compile,
            )
            record["traced"].extend(done.traces)
            rounds.append(done)
            return done

        def trained() -> Training:
            if guide is not None:
                return train_on_grids(auto_guide.distribution, log_joint.full, run, max_steps, record)
            if structure.subsampled:
                return climb_ladder(auto_guide, log_joint.full, run, max_steps, record)
            left = math.inf if max_time is None else 0.5 * max(max_time - (time.monotonic() - began), 0.0)
            options: dict[str, Any] = {"learns": bool(parameters), "max_time": left, "progress": progress}
            return choose_guide(auto_guide, log_joint, run, max_steps, at_once, record, **options)

        training: Training | None = None
        if not interrupted:
            with (
                suppress(KeyboardInterrupt),
                training_parameters(parameters),
            ):  # between two rounds of training; the guide is what the last one left
                training = trained()
                if not structure.subsampled and training.stop_reason != "interrupted":  # this takes its seconds beyond max_time
                    deadline = math.inf if max_time is None else time.monotonic() + max(1.0, 0.1 * max_time)
                    record["missed_modes"] = describe_modes(missed_by(auto_guide, log_joint, at_once, deadline))
        if training is None:
            training = Training()
            for done in rounds:
                training = training.then(done)
            training.stop_reason = "interrupted"
    record.update(training.summary(), seconds=time.monotonic() - began)
    record.update(path_reasons=list(log_joint.reasons), particles_at_once=min(log_joint.particles_at_once, particles))
    note_resumption(record, folder)
    return Fit(auto_guide, log_joint, training, record, model, args, call_kwargs)


def _check_arguments(
    model: Any,
    objective: str,
    num_particles: Any,
    max_steps: Any,
    max_time: Any,
    seed: Any,
    schedule: Any,
    callback: Any,
    kwargs: Any,
) -> None:
    if not callable(model):
        raise ValueError(f"model must be callable, got {type(model).__name__}")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {OBJECTIVES}, got {objective!r}")
    for name, value, least in (("num_particles", num_particles, 2), ("max_steps", max_steps, 1)):
        if value is None and name == "num_particles":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if max_time is not None and not (isinstance(max_time, (int, float)) and max_time > 0):
        raise ValueError(f"max_time must be a positive number of seconds or None, got {max_time!r}")
    check_seed(seed)
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ValueError(f"schedule must be a Schedule or None, got {type(schedule).__name__}")
    if callback is not None and not callable(callback):
        raise ValueError(f"callback must be callable as callback(step, loss), or None, got {type(callback).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs must be a dictionary of keyword arguments of the model, got {type(kwargs).__name__}")


def _digest_of(log_joint: LogJoint, guide: AutoFlow) -> str:
    """A short name for a model, by its density at the start."""
    with torch.no_grad(), torch.random.fork_rng():
        return digest(log_joint(guide.whitening.loc[None]))


def _make_guide(model: Callable[..., Any], guide: Any, args: Any, kwargs: Mapping[str, Any]) -> AutoFlow:
    if isinstance(guide, AutoFlow):
        return guide.setup(*args, **kwargs)
    if guide is not None:
        return AutoFlow(model, flow=guide).setup(*args, **kwargs)
    return AutoFlow(model, flow="affine").setup(*args, **kwargs)


def _flow_name(guide: Any) -> str:
    if guide is None:
        return "gaussian"  # until another is trained
    return guide if isinstance(guide, str) else getattr(guide, "__name__", "given")


def default_particles(dim: int) -> int:
    """Draws per step: fewer in many dimensions, where each of them tells more and costs more.

    Example:
        >>> default_particles(10), default_particles(175)
        (256, 64)
    """
    return max(64, min(256, 8192 // dim))


def _start(
    guide: AutoFlow,
    log_joint: LogJoint,
    init: Mapping[str, Tensor] | Fit | None,
    record: dict[str, Any],
    num_particles: int,
    max_time: float,
    non_centred: bool | None,
) -> bool:
    """Place the whitened coordinates of the guide at the best start; returns whether the search was interrupted."""
    dim = guide.latent_dim
    if isinstance(init, Fit):
        if init.guide.latent_dim != dim:
            raise ValueError(f"init has {init.guide.latent_dim} latent dimensions and the model {dim}")
        coordinates = copy.deepcopy(init.guide.coordinates)
        with torch.no_grad():
            draws = init.guide.distribution.sample((4096,))
            draws = draws if coordinates is None else coordinates.inverse_and_log_det(draws)[0]
        guide.set_coordinates(coordinates)
        guide.whitening.set(draws.mean(0), torch.linalg.cholesky(torch.cov(draws.T).reshape(dim, dim)))
        record["start"] = "earlier fit"
        record["non_centred"] = init.record.get("non_centred", []) if coordinates is not None else []
        return False
    if init is None:
        point = initial_point(log_joint)
    else:
        point = _point(guide, init)
    start = choose_coordinates(log_joint, point, 0.1, num_particles, max_time, non_centred)
    if not math.isfinite(start.best.elbo):
        raise ValueError(f"no start has a finite evidence lower bound{_explain(log_joint, point[None])}; give init= a better point")
    guide.set_coordinates(start.coordinates)
    guide.whitening.set(start.best.loc, start.best.scale_tril)
    record["start"] = start.best.name
    record["non_centred"] = list(start.effects)
    record["starts"] = {gaussian.name: gaussian.elbo for gaussian in start.tried}
    record["start_notes"] = [] if "Laplace" in record["starts"] else ["Laplace: no mode with positive curvature was found in time"]
    if start.note:
        record["start_notes"].append(start.note)
    return start.interrupted


def _point(guide: AutoFlow, init: Any) -> Tensor:
    """The unconstrained vector of one value per latent site."""
    if not isinstance(init, Mapping):
        raise ValueError(f"init must be a dictionary of one value per latent site, a Fit, or None, got {type(init).__name__}")
    like = guide.whitening.loc
    try:
        values = {name: torch.as_tensor(value, dtype=like.dtype, device=like.device) for name, value in init.items()}
        point = guide.unconstrain(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"init: {error}") from error
    if point.dim() != 1:
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        raise ValueError(f"init must hold one value per site and no batch of them, got shapes {shapes}")
    if not bool(torch.isfinite(point).all()):
        raise ValueError(f"init must lie inside the supports of the sites and be finite, got {dict(init)}")
    return point


def _explain(log_joint: LogJoint, z: Tensor) -> str:
    with torch.no_grad():
        sites = {name: count for name, count in log_joint.nonfinite_sites(z).items() if count}
    if not sites:
        return (
            "; the density is finite at the draws, its gradient is not: look for torch.where over an operation that is not "
            "finite in the branch not taken, for both branches are differentiated"
        )
    listed = ", ".join(f"{name!r} ({count} of {len(z)} draws)" for name, count in sites.items())
    return f"; sites whose log-probability was not finite: {listed}"
