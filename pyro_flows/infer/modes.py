"""Modes that a guide misses: the one failure that its own draws cannot show."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .gaussian import Density, Gaussian, gaussian_log_weights
from .laplace import laplace

#: Log-weight at a mode, in nats above the log evidence, from which on the guide is taken to be absent there.
ABSENT = 5.0
#: Share of the posterior below which a mode does not matter.
NEGLIGIBLE_MASS = 0.01


def climb_together(density: Density, points: Tensor, num_steps: int = 80, lr: float = 0.1) -> Tensor:
    """Let many points climb to modes at once, each coordinate with a step size of its own (torch's Rprop).

    Args:
        density: The log joint density.
        points: Where they begin, ``(N, D)``, in coordinates where the posterior is of order one.
        num_steps: Steps.
        lr: First step.

    Returns:
        Where they end, ``(N, D)``; those at which the density or its gradient ceased to be finite are left out.

    Example:
        >>> density = Density(lambda z: -0.5 * (z.abs() - 3).square().sum(-1), torch.zeros(1))
        >>> climb_together(density, torch.tensor([[-1.0], [2.0]]).double()).round().tolist()
        [[-3.0], [3.0]]
    """
    at = points.clone()
    optimizer = torch.optim.Rprop([at], lr=lr, step_sizes=(1e-8, 5.0))
    alive = torch.ones(len(at), dtype=torch.bool, device="cpu")
    for _ in range(num_steps):
        value, gradient = density.with_gradient(at)
        alive = alive & torch.isfinite(value) & torch.isfinite(gradient).all(-1)
        at.grad = -torch.where(alive[:, None], gradient, torch.zeros_like(gradient))
        optimizer.step()
    return at[alive]


def missed_modes(
    density: Density, log_q: Density, draws: Tensor, log_evidence: float, starts: Tensor, most: int = 8
) -> list[Gaussian]:
    r"""Modes where the posterior has mass and the guide has none.

    Points climb from ``starts`` and from draws of the guide blown up by 2 and by 5 about their mean. An end where
    :math:`\log p - \log q` stands more than 5 nats above the log evidence is a mode that the guide may miss; how much of the
    posterior it holds is estimated by importance weights of the Gaussian with the curvature there.

    Args:
        density: The log joint density.
        log_q: Log-density of the guide.
        draws: Draws of the guide, ``(N, D)``.
        log_evidence: Log evidence as the guide sees it, in nats.
        starts: More points to climb from, ``(M, D)``.
        most: Number of modes to describe, at most.

    Returns:
        A Gaussian at each mode found that holds more than 1 % of what the guide sees, the heaviest first. Its ``elbo`` is the log
        evidence of the mode, in nats.

    Example:
        >>> pair = Density(lambda z: torch.logaddexp(-0.5 * (z + 9).square(), -0.5 * (z - 9).square()).sum(-1), torch.zeros(1))
        >>> one = Density(lambda z: -0.5 * (z - 9).square().sum(-1), torch.zeros(1))
        >>> draws = 9 + torch.randn(64, 1).double()
        >>> [round(float(mode.loc)) for mode in missed_modes(pair, one, draws, 0.92, torch.tensor([[-3.0]]).double())]
        [-9]
    """
    mean, centred = draws.mean(0), draws - draws.mean(0)
    scale = draws.std(0)
    begin = torch.cat([mean + 2 * centred, mean + 5 * centred, starts])
    ends = mean + scale * climb_together(_standardised(density, mean, scale), (begin - mean) / scale)
    excess = density(ends) - log_q(ends) - log_evidence
    order = torch.argsort(torch.where(torch.isnan(excess), -math.inf, density(ends)), descending=True)
    found: list[Gaussian] = []
    for index in order.tolist():
        if not float(excess[index]) > ABSENT or len(found) >= most:
            continue
        if any(_inside(ends[index], mode) for mode in found):
            continue
        scale_tril = laplace(density, ends[index])
        if scale_tril is None:
            continue
        weights = gaussian_log_weights(density, ends[index], scale_tril, 1024)
        value = float(weights.nan_to_num(nan=-math.inf).logsumexp(0)) - math.log(1024)
        found.append(Gaussian(f"mode {len(found) + 1}", ends[index], scale_tril, value))
    heavy = [mode for mode in found if mode.elbo - log_evidence > math.log(NEGLIGIBLE_MASS)]
    return sorted(heavy, key=lambda mode: mode.elbo, reverse=True)


def _standardised(density: Density, mean: Tensor, scale: Tensor) -> Density:
    """The density in coordinates of zero mean and unit scale."""
    like = torch.empty(0, dtype=density.dtype, device=density.device)
    shift, factor = mean.to(like), scale.to(like)
    return Density(lambda x: density.log_density(shift + factor * x), like, density.chunk)


def _inside(point: Tensor, mode: Gaussian) -> bool:
    """Whether a point lies where a mode has its mass."""
    noise = torch.linalg.solve_triangular(mode.scale_tril, (point - mode.loc)[:, None], upper=False)
    return float(noise.square().sum()) < (math.sqrt(len(point)) + 3) ** 2
