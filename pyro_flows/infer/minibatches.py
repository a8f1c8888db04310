"""Training a guide of plates: one minibatch a step, by path gradients through Pyro's handlers."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_flows.guides import AutoPlateFlow
from pyro_flows.model.sites import is_subsample

from .descent import Callback, Schedule, Step, Training, descend
from .particle_plate import why_not_together
from .path_elbo import PathELBO
from .path_trace import NotRepeatableError

#: Minibatches on which states of the guide are compared at the end.
_COMPARED = 50

_NONE = object()

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Minibatches:
    """The arguments of the model for each step, again and again.

    Args:
        batches: An iterable that can be gone through many times, such as a list or a ``DataLoader``, of the positional arguments of
            the model: a tuple or list of them, or a single one.
        kwargs: Keyword arguments of every call.

    Raises:
        ValueError: If it is no such iterable, or empty.

    Example:
        >>> calls = iter(Minibatches([(1,), (2,)], {}))
        >>> [next(calls)[0] for _ in range(3)]
        [(1,), (2,), (1,)]
    """

    def __init__(self, batches: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        if isinstance(batches, (str, bytes, Tensor)) or not isinstance(batches, Iterable):
            raise ValueError(
                f"minibatches must be an iterable of the model's arguments, such as a list of tuples or a DataLoader, got "
                f"{type(batches).__name__}"
            )
        if isinstance(batches, Iterator):
            raise ValueError("minibatches must be gone through many times, and an iterator ends; give a list, or a DataLoader")
        self.batches, self.kwargs = batches, dict(kwargs)
        if next(iter(batches), _NONE) is _NONE:
            raise ValueError("minibatches is empty; give at least one tuple of the model's arguments")

    def __iter__(self) -> Calls:
        return Calls(self)

    def call(self, item: Any) -> Call:
        """The arguments that an item of the iterable stands for."""
        if isinstance(item, Mapping):
            raise ValueError(
                f"minibatches must hold tuples of the model's positional arguments, got a dictionary with {list(item)}; "
                f"give its values in the order of the arguments, and keywords that are the same in every step by kwargs="
            )
        return (tuple(item) if isinstance(item, (tuple, list)) else (item,)), self.kwargs

    @property
    def count(self) -> int | None:
        """Minibatches in one pass; None if not known."""
        return len(self.batches) if hasattr(self.batches, "__len__") else None  # type: ignore[arg-type]


class Calls(Iterator[Call]):
    """A way through minibatches, whose place can be noted and found again.

    Args:
        minibatches: The minibatches; where they have a ``generator``, as a ``DataLoader`` may, its state is noted too.

    Example:
        >>> calls = iter(Minibatches([(1,), (2,)], {}))
        >>> _ = next(calls)
        >>> again = iter(Minibatches([(1,), (2,)], {}))
        >>> again.load_state_dict(calls.state_dict())
        >>> next(again)[0]
        (2,)
    """

    def __init__(self, minibatches: Minibatches) -> None:
        self._of = minibatches
        self._pass: Iterator[Any] | None = None
        self._place = 0
        self._before: list[Tensor] = []

    def __iter__(self) -> Calls:
        return self

    def __next__(self) -> Call:
        if self._pass is not None:
            item = next(self._pass, _NONE)
            if item is not _NONE:
                self._place += 1
                return self._of.call(item)
        self._begin()
        item = next(self._pass, _NONE)  # type: ignore[arg-type]
        if item is _NONE:
            raise ValueError(
                "minibatches were gone through once and are empty now; give an iterable that can be gone through often"
            )
        self._place = 1
        return self._of.call(item)

    def _begin(self) -> None:
        self._before = [torch.get_rng_state(), *(each.get_state() for each in self._generators())]
        self._pass, self._place = iter(self._of.batches), 0

    def _generators(self) -> list[torch.Generator]:
        own = getattr(self._of.batches, "generator", None)
        return [own] if isinstance(own, torch.Generator) else []

    def state_dict(self) -> dict[str, Any]:
        """The place in this pass, and the random numbers that it began with."""
        return {"place": self._place, "before": self._before, "now": [each.get_state() for each in self._generators()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place by going through the pass once more."""
        if state["before"]:
            torch.set_rng_state(state["before"][0])
            for each, before in zip(self._generators(), state["before"][1:], strict=True):
                each.set_state(before)
            self._begin()
            for _ in islice(self._pass, state["place"]):  # type: ignore[arg-type]
                pass
            self._place = state["place"]
        for each, now in zip(self._generators(), state["now"], strict=True):
            each.set_state(now)


def train_on_minibatches(
    model: Callable[..., Any],
    guide: AutoPlateFlow,
    batches: Minibatches,
    extra_parameters: Sequence[nn.Parameter],
    *,
    num_particles: int,
    nesting: int,
    max_steps: int,
    max_time: float | None,
    schedule: Schedule | None,
    progress: bool,
    callback: Callback | None,
    record: dict[str, Any],
) -> Training:
    """Maximise the ELBO of a guide of plates, in place.

    Args:
        model: A Pyro model.
        guide: The guide, set up.
        batches: Arguments of the steps.
        extra_parameters: Parameters of the model, trained too.
        num_particles: Draws per step.
        nesting: Batch dimensions that plates use.
        max_steps: Steps at most.
        max_time: Seconds at most; None for no limit.
        schedule: Step sizes and stop rule; None for the usual ones, with windows of at least one pass through the data.
        progress: Show a bar.
        callback: Called as ``callback(step, loss)``.
        record: Told the way in which particles are run, and why.

    Returns:
        What was done.

    Raises:
        ArithmeticError: If too many steps are not finite.
    """
    calls = iter(batches)
    first, kwargs = next(iter(batches))
    reason = why_not_together(model, guide, first, kwargs, nesting)
    together = reason is None
    record["path"] = "particle plate" if together else "loop over particles"
    record["path_reasons"] = ["agrees with single runs"] if reason is None else [f"particle plate: {reason.splitlines()[0]}"]
    plan = schedule or _by_passes(_steps_a_pass(guide, batches, first, kwargs))

    options = {"vectorize_particles": together, "max_plate_nesting": nesting}

    counts = _Counts()

    def steps(objective: Callable[..., Trace_ELBO]) -> Callable[[bool], Step]:
        def take(decaying: bool) -> Step:
            count = num_particles * plan.growth if decaying else num_particles
            args, keywords = next(calls)
            with counts:
                loss = objective(num_particles=count, **options).differentiable_loss(model, guide, *args, **keywords)
            value = float(loss.detach())
            if math.isfinite(value):
                # The elements of a minibatch that is smaller than the others would else count for more than theirs.
                (counts.share * (batches.count or 1) * loss).backward()
            return Step(value, math.nan, count, 0, lambda: _explain(model, guide, args, keywords))

        return take

    modules = nn.ModuleList([guide, nn.ParameterList(extra_parameters)])

    @torch.no_grad()
    def settle(states: Sequence[dict[str, Tensor]]) -> None:
        chosen = list(islice(iter(batches), min(_COMPARED, batches.count or _COMPARED)))

        def loss() -> float:
            with torch.random.fork_rng():
                torch.manual_seed(0)  # the same noise, and the same minibatches where the model draws them
                objective = Trace_ELBO(num_particles=4 * num_particles, **options)
                values = [objective.loss(model, guide, *args, **keywords) for args, keywords in chosen]
            return sum(values) / len(values)

        best, best_state = loss(), copy.deepcopy(modules.state_dict())
        for state in states:
            modules.load_state_dict(state)
            value = loss()
            if value < best or (math.isnan(best) and not math.isnan(value)):
                best, best_state = value, state
        modules.load_state_dict(best_state)

    tables = [module for module in guide.modules() if isinstance(module, nn.Embedding) and module.sparse]
    sparse = [table.get_parameter("weight") for table in tables]
    began = time.monotonic()

    def run(objective: Callable[..., Trace_ELBO], schedule: Schedule, max_steps: int, share: float, parameters: Any) -> Training:
        left = None if max_time is None else max(share * (max_time - (time.monotonic() - began)), 1e-3)
        return descend(
            steps(objective),
            modules,
            settle,
            max_steps=max_steps,
            max_time=left,
            schedule=schedule,
            progress=progress,
            callback=callback,
            parameters=parameters,
            sparse=sparse,
            memory=calls,
        )

    # The normal guide first, by the total gradient, which is the quieter one far from the posterior: path gradients are quiet near
    # it.
    at_first = replace(plan, lr=3 * plan.lr, patience=5, decay=0.5, growth=1)
    normal = run(Trace_ELBO, at_first, max(max_steps // 2, 1), 0.4, [*guide.affine_parameters(), *extra_parameters])
    if normal.stop_reason == "interrupted" or normal.steps >= max_steps:
        return normal
    guide.recentre(*first, **kwargs)
    path: Callable[..., Trace_ELBO] = partial(PathELBO, plates_only=True)
    try:
        path(**options).differentiable_loss(model, guide, *first, **kwargs)
    except NotRepeatableError:
        path = Trace_ELBO
        record["path_reasons"].append("total gradients: the guide draws random numbers outside of its sample sites")
    before = copy.deepcopy(modules.state_dict())
    try:
        trained = run(path, plan, max_steps - normal.steps, 1.0, [*guide.parameters(), *extra_parameters])
    except ArithmeticError as error:
        modules.load_state_dict(before)
        record["path_reasons"].append(f"the flows were left out: {error}")
        return replace(normal, stop_reason="flows not finite")
    return normal.then(trained)


@torch.no_grad()
def _explain(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The sites of a minibatch whose log-probability is not finite, in words."""
    with poutine.block(), pyro.validation_enabled(False):
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
        found = []
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not is_subsample(site):
                wrong = ~torch.isfinite(site["fn"].log_prob(site["value"]))
                if bool(wrong.any()):
                    found.append(f"{name!r} ({int(wrong.sum())} of {wrong.numel()} elements of the last minibatch)")
    return f"; sites whose log-probability was not finite: {', '.join(found)}" if found else ""


class _Counts(poutine.messenger.Messenger):  # type: ignore[misc]
    """Notes which share of its plates a step saw."""

    def __enter__(self) -> _Counts:
        self.shares: dict[str, float] = {}
        return super().__enter__()  # type: ignore[no-any-return]

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg):
            self.shares[msg["name"]] = len(msg["value"]) / msg["fn"].size

    @property
    def share(self) -> float:
        """Of the elements of all plates together."""
        return math.prod(self.shares.values())


def _steps_a_pass(guide: AutoPlateFlow, batches: Minibatches, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Steps in which every element is seen once, about."""
    plates = guide.look(*args, **kwargs).calls.values()
    return max([batches.count or 1, *(math.ceil(plate.size / max(plate.count, 1)) for plate in plates)])


def _by_passes(steps: int) -> Schedule:
    usual = Schedule()
    window, least = max(usual.window, steps), max(500, 60 * steps)
    return replace(usual, window=window, min_steps=least, patience=10, decay=1.0, exact_sd=0.0, alpha=0.0)
