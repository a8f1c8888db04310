"""Training of a flow over a flat vector: path gradients of several objectives, and the best state kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_flows.distributions import FlowDistribution

from .descent import Callback, Schedule, Step, Training, descend

#: What ``fit`` can maximise: the evidence lower bound, the importance-weighted one of all draws of a step, Rényi's bound of order
#: one half; and the lower bound first and then, as far as the weights allow, minus the divergence of the guide from the posterior.
OBJECTIVES = ("path", "iwae", "renyi", "forward_kl")
LogDensity = Callable[[Tensor], Tensor]


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
