"""The training loop of ``fit``: path gradients, a step size that warms up and decays, a stop rule, and the best state kept."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_flows.distributions import FlowDistribution

#: What ``fit`` can maximise: the evidence lower bound, the importance-weighted one of all draws of a step, Rényi's bound of order
#: one half; and the lower bound first and then, as far as the weights allow, minus the divergence of the guide from the posterior.
OBJECTIVES = ("path", "iwae", "renyi", "forward_kl")
LogDensity = Callable[[Tensor], Tensor]
Callback = Callable[[int, float], object]


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    Training warms up, runs at a constant step size until the ELBO has not risen by more than its own noise for ``patience``
    windows. Then the step size decays to zero over ``decay`` of the steps taken so far, or over ``exact_decay`` of them where the
    log-weights have become constant. While it decays there are ``growth`` times as many draws, and the objective leans from the
    evidence lower bound, which cuts tails, towards the Hellinger distance, which sees both sides (``alpha``).

    Args:
        lr: Step size of Adam.
        warmup: Steps of linear warm-up.
        window: Steps per window of the stop rule.
        patience: Windows without progress before the decay.
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

    @property
    def steps(self) -> int:
        """Number of steps, those skipped included."""
        return len(self.losses) + self.skipped

    def summary(self) -> dict[str, Any]:
        """Its figures, for a record."""
        return {
            "steps": self.steps,
            "skipped": self.skipped,
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
        )


class _Progress:
    """The stop rule: has the ELBO risen by more than its noise lately?"""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.best = math.inf
        self.stale = 0

    def update(self, losses: Sequence[float]) -> bool:
        """Take the last window; true once progress has ended."""
        window = torch.tensor(losses[-self.schedule.window :], dtype=torch.float64, device="cpu")
        # A median does not mind single draws from a far tail, which a mean would take for a relapse.
        level = float(window.median())
        noise = 1.25 * float((window - window.median()).abs().median()) * 1.4826 / math.sqrt(len(window))
        if level < self.best - max(2 * noise, 1e-3):
            self.best, self.stale = level, 0
        else:
            self.best = min(self.best, level)
            self.stale += 1
        return self.stale >= self.schedule.patience and len(losses) >= self.schedule.min_steps


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


def train(
    distribution: FlowDistribution,
    log_density: LogDensity,
    extra_parameters: Sequence[nn.Parameter] = (),
    *,
    num_particles: int,
    max_steps: int,
    max_time: float | None,
    schedule: Schedule,
    progress: bool,
    callback: Callback | None = None,
    explain: Callable[[Tensor], str] = lambda z: "",
    full_density: LogDensity | None = None,
    objective: str = "path",
) -> Training:
    """Maximise the ELBO of ``distribution`` by path gradients, in place.

    Args:
        distribution: The guide over unconstrained latents, event shape ``(D,)``.
        log_density: Log joint density of model and data, ``(N, D)`` to ``(N,)``.
        extra_parameters: Parameters of the model, trained too.
        num_particles: Draws per step.
        max_steps: Steps at most.
        max_time: Seconds at most; None for no limit.
        schedule: Step sizes and stop rule.
        progress: Show a bar.
        callback: Called as ``callback(step, loss)`` after each step.
        explain: Says which sites are not finite at given latents, for the error.
        full_density: Log joint density with all data, where ``log_density`` takes minibatches.
        objective: One of :data:`OBJECTIVES`.

    Returns:
        What was done.

    Raises:
        ArithmeticError: If too many steps had a loss or gradient that is not finite.

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(1))
        >>> done = train(q, lambda z: -0.5 * (z - 1).square().sum(-1), num_particles=64, max_steps=400, max_time=None,
        ...              schedule=Schedule(), progress=False)
        >>> abs(q.rsample((1000,)).mean().item() - 1) < 0.2
        True
    """
    modules = nn.ModuleList([distribution, nn.ParameterList(extra_parameters)])
    learns = bool(extra_parameters)

    def take(decaying: bool) -> Step:
        # A model learns parameters by the bound on its evidence, and minibatches are unbiased for that alone.
        bound_only = learns or full_density is not None
        count = num_particles * schedule.growth if decaying else num_particles
        alpha = schedule.alpha if decaying and not bound_only else 0.0
        loss, sd, z, dropped = path_step(distribution, log_density, count, alpha, learns, objective)
        return Step(loss, sd, count, dropped, lambda: explain(z))

    def settle(states: Sequence[dict[str, Tensor]]) -> None:
        margin = 1.0 if objective != "path" else 0.05 if schedule.alpha else 0.0
        _keep_better(distribution, full_density or log_density, modules, states, num_particles * schedule.growth, margin)

    return descend(
        take,
        modules,
        settle,
        max_steps=max_steps,
        max_time=max_time,
        schedule=schedule,
        progress=progress,
        callback=callback,
        parameters=[*distribution.parameters(), *extra_parameters],
    )


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
        See :func:`train`.
    """
    of_sparse = {id(p) for p in sparse}
    dense = [p for p in parameters if p.requires_grad and id(p) not in of_sparse]
    optimizer = torch.optim.Adam(dense, lr=schedule.lr, fused=True)
    lazy = torch.optim.SparseAdam(list(sparse), lr=schedule.lr) if sparse else None
    done, stop, clip = Training(), _Progress(schedule), Clip()
    decay_from, decay_steps, began = None, 0, time.monotonic()
    first_state = copy.deepcopy(modules.state_dict())
    best_loss, best_state = math.inf, first_state
    recent_skips = 0
    with tqdm(total=max_steps, disable=not progress, desc="fit", unit="step", dynamic_ncols=True, leave=True) as bar:
        for step in range(max_steps):
            lr = schedule.lr * min(1.0, (step + 1) / schedule.warmup)
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
                if recent_skips >= 50 or done.skipped > 20 + 0.2 * (step + 1):
                    raise ArithmeticError(
                        f"{done.skipped} of {step + 1} steps had a loss or gradient that is not finite{step_done.explain()}; "
                        f"check priors and likelihood there, or give init= a point where they are finite"
                    )
            bar.update()
            count = len(done.losses)
            if finite and count % schedule.window == 0:
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


def path_step(
    distribution: FlowDistribution,
    log_density: LogDensity,
    num_particles: int,
    alpha: float,
    learns: bool = False,
    objective: str = "path",
) -> tuple[float, float, Tensor, int]:
    """Add one path gradient to those of the parameters.

    Returns loss, standard deviation of the log-weights, the draws, and how many were left out.

    Single draws without a finite gradient, as far out in the tails of a model that overflows there, are left out; with more than a
    tenth of them the loss is NaN. A gradient 100 times as long as that of the median draw is shortened to that. Where the model has
    parameters to learn, all draws count in full.
    """
    z, log_q, score = distribution.rsample_with_score((num_particles,))
    event = tuple(range(z.dim() - len(distribution.event_shape), z.dim()))
    at = z.detach().requires_grad_()
    log_p = log_density(at)
    (gradient,) = torch.autograd.grad(log_p.sum(), at, retain_graph=learns)
    log_weights = (log_p - log_q).detach().double()
    direction = gradient - score
    if learns:
        usable = torch.ones_like(log_weights, dtype=torch.bool)
    else:
        usable = torch.isfinite(log_weights) & torch.isfinite(direction).all(-1)
        direction = _bounded(torch.where(usable[:, None], direction, torch.zeros_like(score)))
    path = (z * direction).sum(event)
    dropped = num_particles - int(usable.sum())
    if dropped > 0.1 * num_particles:
        return math.nan, math.nan, z.detach(), dropped
    kept = log_weights[usable]
    by_draw, of_model = _factors(objective, kept, alpha)
    factor = torch.zeros_like(log_weights).masked_scatter(usable, by_draw)
    total = path * factor.to(path.dtype)
    if learns:
        total = total + log_p * of_model.to(path.dtype)
    (-total).mean().backward()
    return -float(kept.mean()), float(kept.std()), z.detach(), dropped


def _bounded(rows: Tensor) -> Tensor:
    """Rows ``(N, D)`` of at most 100 times the median length, so that one draw does not decide a step, or overflow it."""
    lengths = rows.double().norm(dim=-1)
    limit = 100 * lengths.median()
    return rows * (limit / lengths.clamp_min(1e-300)).clamp_max(1.0).to(rows.dtype).unsqueeze(-1)


def _factors(objective: str, log_weights: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    r"""Factors ``(N,)`` of the draws in the path gradient, and of their log-densities in that of the model's parameters.

    The doubly reparametrised gradients of :class:`~pyro_flows.infer.RenyiPathELBO` with all draws of a step as its particles.
    """
    ones = torch.ones_like(log_weights)
    if objective == "path" or not bool(torch.isfinite(log_weights).all()):
        return _tempered(log_weights, alpha), ones
    if objective == "forward_kl":
        return _tempered(log_weights, 1.0 if alpha else 0.0), ones
    order = {"iwae": 1.0, "renyi": 0.5}[objective]
    share = (order * log_weights).softmax(0)
    return len(log_weights) * ((1 - order) * share + order * share.square()), len(log_weights) * share


def _tempered(log_weights: Tensor, alpha: float) -> Tensor:
    r"""Factors :math:`w^\alpha` of the draws, of mean one, with the power halved until at least half of the draws count.

    With the path gradient they descend the divergence :math:`(1 - E_q[w^\alpha]) / (\alpha (1 - \alpha))`: the score terms of the
    total and of the doubly reparametrised gradient (https://arxiv.org/abs/1810.04152) leave :math:`E_q[w^\alpha \nabla_z \log w
    \, dz/d\theta]`.
    """
    if alpha == 0 or not bool(torch.isfinite(log_weights).all()):
        return torch.ones_like(log_weights)
    powers = alpha * 0.5 ** torch.arange(6, dtype=log_weights.dtype, device=log_weights.device)
    weights = (powers[:, None] * log_weights).softmax(1) * len(log_weights)
    enough = weights.square().mean(1) < 2  # at least half of the draws count
    if not bool(enough.any()):
        return torch.ones_like(log_weights)
    return weights[int(enough.int().argmax())]


@torch.no_grad()
def _keep_better(
    distribution: FlowDistribution,
    log_density: LogDensity,
    modules: nn.Module,
    states: Sequence[dict[str, Tensor]],
    chunk: int,
    margin: float = 0.0,
) -> None:
    """Go back to the best of some states where the last one has an ELBO that is lower by a margin, in nats, on the same noise.

    The margin is what other objectives than the ELBO may cost of it.
    """
    noise = distribution.base.sample((min(2048, 8 * chunk),))

    def elbo() -> float:
        total = 0.0
        for part in noise.split(chunk):
            z, log_det = distribution.transform.forward_and_log_det(part)
            total += float((log_density(z).double() + log_det.double() - distribution.base.log_prob(part).double()).sum())
        return total / len(noise)

    best, best_state = elbo() + margin, copy.deepcopy(modules.state_dict())
    for state in states:
        modules.load_state_dict(state)
        value = elbo()
        if value > best or (math.isnan(best) and not math.isnan(value)):
            best, best_state = value, state
    modules.load_state_dict(best_state)
