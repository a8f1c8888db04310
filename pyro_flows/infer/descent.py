"""Descent: steps whose size warms up and decays, a stop rule, and steps that are not finite left out."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .noted_run import training_entry

Callback = Callable[[int, float], object]

#: Rise of the loss, in spreads of it and in nats, after which training is lost.
_OUT_OF_PROPORTION = 20.0
#: Fall of the loss over all the windows of the stop rule, in nats, that is no progress.
_LITTLE = 5e-3
#: How often training goes back to the best state, and the factor of the step size each time.
_SETBACKS, _SMALLER = 3, 0.3


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    Training warms up, runs at a constant step size until the ELBO has not risen by more than its own noise over ``patience``
    windows. Then the step size decays to zero over ``decay`` of the steps taken so far, or over ``exact_decay`` of them where the
    log-weights have become constant. While it decays there are ``growth`` times as many draws, and the objective leans from the
    evidence lower bound, which cuts tails, towards the Hellinger distance, which sees both sides (``alpha``).

    Args:
        lr: Step size of Adam.
        warmup: Steps of linear warm-up.
        window: Steps per window of the stop rule.
        patience: Windows without progress before the decay, three at least.
        min_steps: Steps before the decay may begin.
        decay: Length of the decay, as a share of the steps before it.
        exact_sd: Standard deviation of the log-weights in nats below which little is left to gain.
        exact_decay: Length of the decay where they are below it.
        growth: Draws per step during the decay, over those before it.
        alpha: Power of the importance weights that draws have during the decay; 0 for the evidence lower bound throughout.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> Schedule().lr
        0.01
    """

    lr: float = 1e-2
    warmup: int = 50
    window: int = 50
    patience: int = 5
    min_steps: int = 200
    decay: float = 0.7
    exact_sd: float = 0.1
    exact_decay: float = 0.5
    growth: int = 4
    alpha: float = 0.9

    def __post_init__(self) -> None:
        for name in ("warmup", "window", "patience", "min_steps", "growth"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("lr", "decay", "exact_decay"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha!r}")
        if not self.exact_sd >= 0:
            raise ValueError(f"exact_sd must not be negative, got {self.exact_sd!r}")


@dataclass
class Training:
    """What the loop did.

    Args:
        losses: Negative ELBO estimate in nats of every step.
        log_weight_sds: Standard deviation of the log-weights of every step.
        stop_reason: Why it ended.
        skipped: Steps skipped because a loss or gradient was not finite.
        draws: Draws in all, each with one gradient of the log-density.
        dropped: Draws left out of a step because their log-density or its gradient was not finite.
        traces: What was traced or compiled, or why not.
        undone: Steps that were taken back because the loss rose out of all proportion.

    Example:
        >>> Training().skipped
        0
    """

    losses: list[float] = field(default_factory=list)
    log_weight_sds: list[float] = field(default_factory=list)
    stop_reason: str = ""
    skipped: int = 0
    draws: int = 0
    dropped: int = 0
    traces: list[str] = field(default_factory=list)
    undone: int = 0

    @property
    def steps(self) -> int:
        """Number of steps, those skipped and those taken back included."""
        return len(self.losses) + self.skipped + self.undone

    def summary(self) -> dict[str, Any]:
        """Its figures, for a record."""
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "undone": self.undone,
            "draws": self.draws,
            "dropped": self.dropped,
            "stop_reason": self.stop_reason,
        }

    def then(self, other: Training) -> Training:
        """This followed by another."""
        return Training(
            self.losses + other.losses,
            self.log_weight_sds + other.log_weight_sds,
            other.stop_reason,
            self.skipped + other.skipped,
            self.draws + other.draws,
            self.dropped + other.dropped,
            self.traces + other.traces,
            self.undone + other.undone,
        )

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain data."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        numbers = {
            name: torch.tensor(getattr(self, name), dtype=torch.float64, device="cpu") for name in ("losses", "log_weight_sds")
        }
        return {**found, **numbers, "traces": list(self.traces)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Training:
        """What :meth:`state_dict` was of."""
        return cls(**{**state, "losses": state["losses"].tolist(), "log_weight_sds": state["log_weight_sds"].tolist()})


class Stateful(Protocol):
    """What steps depend on beside the modules, such as the place in a sequence of minibatches.

    Example:
        >>> module: Stateful = torch.nn.Linear(1, 1)
    """

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and plain data."""

    def load_state_dict(self, state: Any) -> Any:
        """Put back to what :meth:`state_dict` gave."""


class _Progress:
    """The stop rule: has the loss fallen by more than its noise over the last windows together?

    It is the trend over ``patience`` windows that counts: a slow descent, of less than its noise in each of them, is one all the
    same.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.levels: list[float] = []
        self.noises: list[float] = []

    def update(self, losses: Sequence[float]) -> bool:
        """Take the last window; true once progress has ended."""
        window = torch.tensor(losses[-self.schedule.window :], dtype=torch.float64, device="cpu")
        # A median does not mind single draws from a far tail, which a mean would take for a relapse.
        self.levels.append(float(window.median()))
        self.noises.append(1.25 * float((window - window.median()).abs().median()) * 1.4826 / math.sqrt(len(window)))
        count = max(self.schedule.patience, 3)
        if len(self.levels) < count or len(losses) < self.schedule.min_steps:
            return False
        time = torch.linspace(-0.5, 0.5, count, dtype=torch.float64, device="cpu")
        weights = time / time.square().sum()
        fall = -float(weights @ torch.tensor(self.levels[-count:], dtype=torch.float64, device="cpu"))
        noise = statistics.median(self.noises[-count:]) * float(weights.norm())
        return fall < max(2 * noise, _LITTLE)


class _Relapse:
    """Has the loss risen by so much that training is lost?"""

    def __init__(self) -> None:
        self.best, self.spread = math.inf, 0.0

    def update(self, window: Sequence[float]) -> bool:
        """Take the losses of a window; true where they are out of all proportion to the best before."""
        losses = torch.tensor(window, dtype=torch.float64, device="cpu")
        level = float(losses.median())
        if level < self.best:
            self.best, self.spread = level, 1.4826 * float((losses - level).abs().median())
        return level > self.best + _OUT_OF_PROPORTION * self.spread + max(_OUT_OF_PROPORTION, 0.05 * abs(self.best))


class Clip:
    """Clip gradients that are far larger than those before, whatever their unit."""

    def __init__(self, factor: float = 3.0, memory: float = 0.95) -> None:
        self.factor, self.memory = factor, memory
        self.log_norm: float | None = None

    def __call__(self, parameters: Sequence[Tensor]) -> bool:
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not math.isfinite(norm):
            return False
        log_norm = math.log(max(norm, 1e-30))
        if self.log_norm is None:
            self.log_norm = log_norm
        limit = self.log_norm + math.log(self.factor)
        if log_norm > limit:
            torch.nn.utils.clip_grads_with_norm_(parameters, math.exp(limit), torch.tensor(norm, device=parameters[0].device))
        self.log_norm = self.memory * self.log_norm + (1 - self.memory) * min(log_norm, limit)
        return True


@dataclass(frozen=True)
class Step:
    """What one step was like.

    Args:
        loss: Negative ELBO estimate, nats.
        log_weight_sd: Standard deviation of the log-weights; NaN if not known.
        draws: Draws taken.
        dropped: Draws left out.
        explain: Says what was not finite, for the error.

    Example:
        >>> Step(1.0, 0.5, 64, 0, str).loss
        1.0
    """

    loss: float
    log_weight_sd: float
    draws: int
    dropped: int
    explain: Callable[[], str]


class _Course:
    """Where a descent stands: all that its next steps depend on, beside the modules and the random numbers."""

    def __init__(
        self, schedule: Schedule, modules: nn.Module, optimizers: Sequence[torch.optim.Optimizer], memory: Stateful | None
    ) -> None:
        self.schedule, self.modules, self.optimizers, self.memory = schedule, modules, optimizers, memory
        self.done, self.stop, self.clip, self.relapse = Training(), _Progress(schedule), Clip(), _Relapse()
        self.step, self.seconds = 0, 0.0
        self.lr_factor, self.setbacks, self.recent_skips = 1.0, 0, 0
        self.decay_from: int | None = None
        self.decay_steps = 0
        self.first_state = copy.deepcopy(modules.state_dict())
        self.best_loss, self.best_state = math.inf, self.first_state

    def go_back(self, count: int) -> None:
        """Go on from the best state with smaller steps; the last steps do not count."""
        self.modules.load_state_dict(self.best_state)
        for each in self.optimizers:
            each.state.clear()
        self.lr_factor, self.setbacks = _SMALLER * self.lr_factor, self.setbacks + 1
        self.clip, self.stop = Clip(), _Progress(self.schedule)
        self.done.undone += count
        if count:
            del self.done.losses[-count:], self.done.log_weight_sds[-count:]

    def decay(self, start: int, steps: int, reason: str) -> None:
        """Let the step size decay from a step on, in so many steps."""
        self.decay_from, self.decay_steps, self.done.stop_reason = start, steps, reason

    _PLAIN = ("step", "seconds", "lr_factor", "setbacks", "recent_skips", "decay_from", "decay_steps", "best_loss")

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self._PLAIN},
            "done": self.done.state_dict(),
            "stop": [self.stop.levels, self.stop.noises],
            "clip": self.clip.log_norm,
            "relapse": [self.relapse.best, self.relapse.spread],
            "modules": dict(self.modules.state_dict()),
            "first_state": dict(self.first_state),
            "best_state": dict(self.best_state),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "memory": None if self.memory is None else self.memory.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.first_state, self.best_state = state["first_state"], state["best_state"]
        for each, its_state in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(its_state)
        for name in self._PLAIN:
            setattr(self, name, state[name])
        self.done = Training.of_state(state["done"])
        self.stop.levels, self.stop.noises = state["stop"]
        self.clip.log_norm = state["clip"]
        self.relapse.best, self.relapse.spread = state["relapse"]
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])


def descend(
    take: Callable[[bool], Step],
    modules: nn.Module,
    settle: Callable[[Sequence[dict[str, Tensor]]], None],
    *,
    max_steps: int,
    max_time: float | None,
    schedule: Schedule,
    progress: bool,
    callback: Callback | None = None,
    parameters: Sequence[nn.Parameter],
    sparse: Sequence[nn.Parameter] = (),
    memory: Stateful | None = None,
) -> Training:
    """Take steps by a schedule until the loss falls no more, in place.

    Where the loss rises out of all proportion training goes back to the best state and on with smaller steps, three times at most.

    Args:
        take: Computes the gradients of one step, told whether the step size decays already; the step is made here.
        modules: Owns the parameters.
        settle: Given the first state and the best so far, leaves ``modules`` in the better of these and the last.
        max_steps: Steps at most.
        max_time: Seconds at most; None for no limit.
        schedule: Step sizes and stop rule.
        progress: Show a bar.
        callback: Called as ``callback(step, loss)`` after each step.
        parameters: Parameters to be trained.
        sparse: Parameters whose gradients are sparse.
        memory: What ``take`` depends on beside the modules, to be kept in checkpoints.

    Returns:
        What was done.

    Raises:
        ArithmeticError: If too many steps had a loss or gradient that is not finite.

    Example:
        See :func:`~pyro_flows.infer.training.train`.
    """
    of_sparse = {id(p) for p in sparse}
    dense = [p for p in parameters if p.requires_grad and id(p) not in of_sparse]
    optimizer = torch.optim.Adam(dense, lr=schedule.lr, fused=True)
    lazy = torch.optim.SparseAdam(list(sparse), lr=schedule.lr) if sparse else None
    optimizers = [optimizer] if lazy is None else [optimizer, lazy]
    entry = training_entry(modules, [repr(schedule), max_steps], limited=max_time is not None)
    if entry is not None and entry.finished is not None:
        modules.load_state_dict(entry.finished["modules"])
        if memory is not None:
            memory.load_state_dict(entry.finished["memory"])
        entry.resume()
        return Training.of_state(entry.finished["done"])
    course = _Course(schedule, modules, optimizers, memory)
    if entry is not None and entry.running is not None:
        course.load_state_dict(entry.running)
        entry.resume()
    began, done = time.monotonic() - course.seconds, course.done

    with tqdm(
        total=max_steps, initial=course.step, disable=not progress, desc="fit", unit="step", dynamic_ncols=True, leave=True
    ) as bar:
        for step in range(course.step, max_steps):
            lr = course.lr_factor * schedule.lr * min(1.0, (step + 1) / schedule.warmup)
            if course.decay_from is not None:
                lr *= 0.5 * (1 + math.cos(math.pi * (step - course.decay_from) / course.decay_steps))
            for each in optimizers:
                for group in each.param_groups:
                    group["lr"] = lr
            try:
                for parameter in (*modules.parameters(), *parameters, *sparse):
                    parameter.grad = None
                step_done = take(course.decay_from is not None)
                loss, sd = step_done.loss, step_done.log_weight_sd
                done.draws, done.dropped = done.draws + step_done.draws, done.dropped + step_done.dropped
                finite = math.isfinite(loss) and course.clip(dense)
                if finite:
                    for each in optimizers:
                        each.step()
                if callback is not None:
                    callback(step, loss)
            except KeyboardInterrupt:
                done.stop_reason = "interrupted"
                break
            if finite:
                course.recent_skips = 0
                done.losses.append(loss)
                done.log_weight_sds.append(sd)
            else:
                done.skipped += 1
                course.recent_skips += 1
                if course.recent_skips >= 20 and done.losses and course.setbacks < _SETBACKS:
                    course.go_back(len(done.losses) % schedule.window)
                    course.recent_skips = 0
                elif course.recent_skips >= 50 or done.skipped > 20 + 0.2 * (step + 1) + 50 * course.setbacks:
                    raise ArithmeticError(
                        f"{done.skipped} of {step + 1} steps had a loss or gradient that is not finite{step_done.explain()}; "
                        f"check priors and likelihood there, or give init= a point where they are finite"
                    )
            bar.update()
            count = len(done.losses)
            lost = finite and count % schedule.window == 0 and course.relapse.update(done.losses[-schedule.window :])
            if lost and course.setbacks < _SETBACKS:
                course.go_back(schedule.window)
            elif finite and count % schedule.window == 0:
                level = sum(done.losses[-schedule.window :]) / schedule.window
                bar.set_postfix_str(f"ELBO {-level:.3f}")
                if level < course.best_loss:
                    course.best_loss, course.best_state = level, copy.deepcopy(modules.state_dict())
                ended = course.stop.update(done.losses)
                sds = sorted(done.log_weight_sds[-schedule.window :])
                exact = sds[len(sds) // 2] < schedule.exact_sd and step + 1 >= schedule.min_steps
                if course.decay_from is None and (ended or exact):
                    share = schedule.exact_decay if exact else schedule.decay
                    steps = min(max(schedule.min_steps // 2, int(share * (step + 1))), max_steps - step - 1)
                    course.decay(step + 1, steps, "weights constant" if exact else "converged")
                    bar.total = step + 1 + steps
                    bar.refresh()
            if course.decay_from is None and max_steps - step - 1 <= max_steps // 3:
                course.decay(step + 1, max(1, max_steps - step - 1), "max_steps")
            if course.decay_from is not None and step + 1 >= course.decay_from + course.decay_steps:
                break
            elapsed = time.monotonic() - began
            if max_time is not None:
                if elapsed >= max_time:
                    done.stop_reason = "max_time"
                    break
                if course.decay_from is None and elapsed >= 0.6 * max_time:
                    steps = max(1, int((step + 1) * (max_time - elapsed) / elapsed * 0.95))
                    course.decay(step + 1, min(steps, max_steps - step - 1), "max_time")
            course.step, course.seconds = step + 1, elapsed
            if entry is not None and entry.due():
                entry.note(course.state_dict())
    last = copy.deepcopy(modules.state_dict())
    try:
        settle([course.first_state, course.best_state])
    except KeyboardInterrupt:
        modules.load_state_dict(last)
        done.stop_reason = "interrupted"
    if entry is not None and done.stop_reason != "interrupted":
        kept = None if memory is None else memory.state_dict()
        entry.finish({"modules": dict(modules.state_dict()), "done": done.state_dict(), "memory": kept})
    return done
