"""The path gradient of a step: a function of noise alone, without branches on values, so that it can be traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flows.distributions import FlowDistribution

#: What ``fit`` can maximise: the evidence lower bound, the importance-weighted one of all draws of a step, Rényi's bound of order
#: one half; and the lower bound first and then, as far as the weights allow, minus the divergence of the guide from the posterior.
OBJECTIVES = ("path", "iwae", "renyi", "forward_kl")
LogDensity = Callable[[Tensor], Tensor]


class PathGradient(NamedTuple):
    """What :func:`path_gradient` found.

    Args:
        log_weights: Log-weights of the draws ``(N,)``, float64.
        usable: Which of them count ``(N,)``.
        z: The draws ``(N, *event)``.
        gradients: Of the parameters, in their order; None for one that has no part in it.

    Example:
        >>> PathGradient(torch.zeros(2), torch.ones(2) > 0, torch.zeros(2, 1), ()).usable.all().item()
        True
    """

    log_weights: Tensor
    usable: Tensor
    z: Tensor
    gradients: tuple[Tensor | None, ...]


def path_gradient(
    distribution: FlowDistribution,
    log_density: LogDensity,
    parameters: Sequence[Tensor],
    noise: Tensor,
    alpha: float = 0.0,
    learns: bool = False,
    objective: str = "path",
) -> PathGradient:
    """Gradient of a loss, by the path through the draws of a flow.

    Single draws without a finite gradient, as far out in the tails of a model that overflows there, are left out. A gradient 100
    times as long as that of the median draw is shortened to that. Where the model has parameters to learn, all draws count in full.

    Args:
        distribution: The guide over unconstrained latents.
        log_density: Log joint density of model and data, ``(N, D)`` to ``(N,)``.
        parameters: What gradients are taken to.
        noise: Draws of the base ``(N, *event)``.
        alpha: Power of the importance weights that draws have.
        learns: Whether parameters of the model are among ``parameters``.
        objective: One of :data:`OBJECTIVES`.

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(1))
        >>> found = path_gradient(q, lambda z: -0.5 * z.square().sum(-1), list(q.parameters()), torch.randn(5, 1))
        >>> bool(found.log_weights.std() < 1e-6)  # the guide is exact
        True
    """
    z, log_q, score = distribution.with_score(noise)
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
    by_draw, of_model = factors(objective, log_weights, usable, alpha)
    total = (z * direction).sum(event) * by_draw.to(z.dtype)
    if learns:
        total = total + log_p * of_model.to(z.dtype)
    # A mean over the draws that count would have their number in the denominator, which none of them may change.
    gradients = torch.autograd.grad(-total.mean(), list(parameters), allow_unused=True)
    return PathGradient(log_weights, usable, z.detach(), gradients)


def _bounded(rows: Tensor) -> Tensor:
    """Rows ``(N, D)`` of at most 100 times the median length, so that one draw does not decide a step, or overflow it."""
    lengths = rows.double().norm(dim=-1)
    limit = 100 * lengths.median()
    return rows * (limit / lengths.clamp_min(1e-300)).clamp_max(1.0).to(rows.dtype).unsqueeze(-1)


def factors(objective: str, log_weights: Tensor, usable: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    r"""Factors ``(N,)`` of the draws in the path gradient, and of their log-densities in that of the model's parameters.

    The doubly reparametrised gradients of :class:`~pyro_flows.infer.RenyiPathELBO` with all draws of a step as its particles.
    Draws that are not usable have none; where one of the others has no finite weight, all count the same.

    Args:
        objective: One of :data:`OBJECTIVES`.
        log_weights: Log-weights of the draws ``(N,)``.
        usable: Which of them count ``(N,)``.
        alpha: Power of the weights, for the objectives ``"path"`` and ``"forward_kl"``; the latter takes 1 where it is not zero.

    Example:
        >>> factors("path", torch.zeros(2), torch.tensor([True, False]), 0.0)[0]
        tensor([1., 0.])
    """
    equal = usable.to(log_weights.dtype)
    if objective in ("path", "forward_kl"):
        power = alpha if objective == "path" else 1.0 if alpha else 0.0
        return tempered(log_weights, usable, power), equal
    order = {"iwae": 1.0, "renyi": 0.5}[objective]
    share = (order * log_weights.masked_fill(~usable, -torch.inf)).softmax(0)
    count = equal.sum()
    finite = (torch.isfinite(log_weights) | ~usable).all()
    by_draw = count * ((1 - order) * share + order * share.square())
    return torch.where(finite, by_draw, equal), torch.where(finite, count * share, equal)


def tempered(log_weights: Tensor, usable: Tensor, alpha: float) -> Tensor:
    r"""Factors :math:`w^\alpha` of the draws, of mean one, with the power halved until at least half of the draws count.

    With the path gradient they descend the divergence :math:`(1 - E_q[w^\alpha]) / (\alpha (1 - \alpha))`: the score terms of the
    total and of the doubly reparametrised gradient (https://arxiv.org/abs/1810.04152) leave :math:`E_q[w^\alpha \nabla_z \log w
    \, dz/d\theta]`.

    Example:
        >>> tempered(torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([True, True, False]), 0.9)
        tensor([1., 1., 0.])
    """
    equal = usable.to(log_weights.dtype)
    if alpha == 0:
        return equal
    powers = alpha * 0.5 ** torch.arange(6, dtype=log_weights.dtype, device=log_weights.device)
    weights = (powers[:, None] * log_weights.masked_fill(~usable, -torch.inf)).softmax(1) * equal.sum()
    enough = weights.square().sum(1) < 2 * equal.sum()  # at least half of the draws count
    first = weights.index_select(0, enough.int().argmax().reshape(1))[0]
    finite = (torch.isfinite(log_weights) | ~usable).all()
    return torch.where(finite & enough.any(), first, equal)
