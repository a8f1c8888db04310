"""Descent: steps whose size warms up and decays, a stop rule, and steps that are not finite left out."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

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
    done, stop, clip, relapse = Training(), _Progress(schedule), Clip(), _Relapse()
    lr_factor, setbacks = 1.0, 0
    decay_from, decay_steps, began = None, 0, time.monotonic()
    first_state = copy.deepcopy(modules.state_dict())
    best_loss, best_state = math.inf, first_state
    recent_skips = 0

    def go_back(count: int) -> None:
        """Go on from the best state with smaller steps; the last steps do not count."""
        nonlocal lr_factor, setbacks, clip, stop
        modules.load_state_dict(best_state)
        for each in (optimizer, lazy):
            if each is not None:
                each.state.clear()
        lr_factor, setbacks, clip, stop = _SMALLER * lr_factor, setbacks + 1, Clip(), _Progress(schedule)
        done.undone += count
        if count:
            del done.losses[-count:], done.log_weight_sds[-count:]

    with tqdm(total=max_steps, disable=not progress, desc="fit", unit="step", dynamic_ncols=True, leave=True) as bar:
        for step in range(max_steps):
            lr = lr_factor * schedule.lr * min(1.0, (step + 1) / schedule.warmup)
            if decay_from is not None:
                lr *= 0.5 * (1 + math.cos(math.pi * (step - decay_from) / decay_steps))
            for each in (optimizer, lazy):
                for group in each.param_groups if each is not None else []:
                    group["lr"] = lr
            try:
                for parameter in (*modules.parameters(), *parameters, *sparse):
                    parameter.grad = None
                step_done = take(decay_from is not None)
                loss, sd = step_done.loss, step_done.log_weight_sd
                done.draws, done.dropped = done.draws + step_done.draws, done.dropped + step_done.dropped
                finite = math.isfinite(loss) and clip(dense)
                if finite:
                    optimizer.step()
                    if lazy is not None:
                        lazy.step()
                if callback is not None:
                    callback(step, loss)
            except KeyboardInterrupt:
                done.stop_reason = "interrupted"
                break
            if finite:
                recent_skips = 0
                done.losses.append(loss)
                done.log_weight_sds.append(sd)
            else:
                done.skipped += 1
                recent_skips += 1
                if recent_skips >= 20 and done.losses and setbacks < _SETBACKS:
                    go_back(len(done.losses) % schedule.window)
                    recent_skips = 0
                elif recent_skips >= 50 or done.skipped > 20 + 0.2 * (step + 1) + 50 * setbacks:
                    raise ArithmeticError(
                        f"{done.skipped} of {step + 1} steps had a loss or gradient that is not finite{step_done.explain()}; "
                        f"check priors and likelihood there, or give init= a point where they are finite"
                    )
            bar.update()
            count = len(done.losses)
            lost = finite and count % schedule.window == 0 and relapse.update(done.losses[-schedule.window :])
            if lost and setbacks < _SETBACKS:
                go_back(schedule.window)
            elif finite and count % schedule.window == 0:
                level = sum(done.losses[-schedule.window :]) / schedule.window
                bar.set_postfix_str(f"ELBO {-level:.3f}")
                if level < best_loss:
                    best_loss, best_state = level, copy.deepcopy(modules.state_dict())
                ended = stop.update(done.losses)
                sds = sorted(done.log_weight_sds[-schedule.window :])
                exact = sds[len(sds) // 2] < schedule.exact_sd and step + 1 >= schedule.min_steps
                if decay_from is None and (ended or exact):
                    share = schedule.exact_decay if exact else schedule.decay
                    decay_from, decay_steps = step + 1, max(schedule.min_steps // 2, int(share * (step + 1)))
                    decay_steps = min(decay_steps, max_steps - decay_from)
                    done.stop_reason = "weights constant" if exact else "converged"
                    bar.total = decay_from + decay_steps
                    bar.refresh()
            if decay_from is None and max_steps - step - 1 <= max_steps // 3:
                decay_from, decay_steps = step + 1, max(1, max_steps - step - 1)
                done.stop_reason = "max_steps"
            if decay_from is not None and step + 1 >= decay_from + decay_steps:
                break
            if max_time is not None:
                elapsed = time.monotonic() - began
                if elapsed >= max_time:
                    done.stop_reason = "max_time"
                    break
                if decay_from is None and elapsed >= 0.6 * max_time:
                    decay_from, decay_steps = step + 1, max(1, int((step + 1) * (max_time - elapsed) / elapsed * 0.95))
                    decay_steps = min(decay_steps, max_steps - decay_from)
                    done.stop_reason = "max_time"
    states = [first_state, best_state]
    last = copy.deepcopy(modules.state_dict())
    try:
        settle(states)
    except KeyboardInterrupt:
        modules.load_state_dict(last)
        done.stop_reason = "interrupted"
    return done
