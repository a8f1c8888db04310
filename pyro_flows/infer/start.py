"""Where training starts: Gaussians proposed for the unconstrained latents, and the one with the best ELBO."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GaussianStart:
    """A Gaussian over the unconstrained latents.

    Args:
        name: How it was found.
        loc: Mean, ``(D,)``.
        scale_tril: Cholesky factor of the covariance, ``(D, D)``.
        elbo: Its evidence lower bound in nats.

    Example:
        >>> GaussianStart("plain", torch.zeros(2), torch.eye(2), -3.0).name
        'plain'
    """

    name: str
    loc: Tensor
    scale_tril: Tensor
    elbo: float


@torch.no_grad()
def gaussian_elbo(
    log_density: LogDensity, loc: Tensor, scale_tril: Tensor, num_particles: int = 1024, chunk: int | None = None
) -> float:
    """Evidence lower bound of a Gaussian, from draws; minus infinity if any draw has no finite log-density.

    Args:
        log_density: Maps ``(N, D)`` to ``(N,)``.
        loc: Mean, ``(D,)``.
        scale_tril: Cholesky factor, ``(D, D)``.
        num_particles: Number of draws.
        chunk: How many to evaluate at once; None for all.

    Example:
        >>> round(gaussian_elbo(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2), torch.eye(2)), 4)
        1.8379
    """
    noise = torch.randn(num_particles, loc.shape[0], dtype=loc.dtype, device=loc.device)
    log_p = torch.cat([log_density(loc + part @ scale_tril.mT) for part in noise.split(chunk or num_particles)]).double()
    log_q = -0.5 * noise.double().square().sum(-1) - scale_tril.diagonal().double().log().sum()
    value = (log_p - log_q).mean().item() + 0.5 * math.log(2 * math.pi) * loc.shape[0]
    return value if math.isfinite(value) else -math.inf


class _OutOfTimeError(Exception):
    pass


def laplace(
    log_density: LogDensity, point: Tensor, max_iter: int = 200, deadline: float = math.inf
) -> tuple[Tensor, Tensor] | None:
    """Mode and Cholesky factor of the inverse curvature there, by L-BFGS; None where no such mode is found in time.

    Args:
        log_density: Maps ``(N, D)`` to ``(N,)``.
        point: Where the search begins, ``(D,)``.
        max_iter: Iterations of L-BFGS.
        deadline: When to give up, on the clock of ``time.monotonic``.

    Example:
        >>> loc, scale_tril = laplace(lambda z: -0.5 * (z - 3).square().sum(-1) / 4, torch.zeros(1))
        >>> round(loc.item(), 3), round(scale_tril.item(), 3)
        (3.0, 2.0)
    """
    z = point.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=max_iter, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        if time.monotonic() > deadline:
            raise _OutOfTimeError
        optimizer.zero_grad()
        loss = -log_density(z[None])[0]
        loss.backward()
        return loss

    try:
        optimizer.step(closure)
    except _OutOfTimeError:
        return None
    mode = z.detach()
    if not bool(torch.isfinite(mode).all()) or not math.isfinite(log_density(mode[None])[0].item()):
        return None
    precision = _negative_hessian(log_density, mode)
    if not bool(torch.isfinite(precision).all()):
        return None
    values, vectors = torch.linalg.eigh(precision.double())
    if float(values.max()) <= 0:
        return None
    # Directions of negative or vanishing curvature have no scale of their own: leave them at one unit at most.
    values = torch.where(values > 1e-8 * values.max(), values, torch.ones_like(values)).clamp_min(1e-12)
    covariance = (vectors / values) @ vectors.mT
    scale_tril, info = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.mT))
    return (mode, scale_tril.to(mode.dtype)) if int(info) == 0 else None


def _negative_hessian(log_density: LogDensity, at: Tensor) -> Tensor:
    """Central differences of the gradient, ``(D, D)``; works for every path by which the model is evaluated."""
    dim = at.shape[0]
    step = (torch.finfo(at.dtype).eps ** (1 / 3)) * (1 + at.abs())
    offsets = torch.diag(step)
    points = torch.cat([at + offsets, at - offsets]).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(points).sum(), points)
    hessian = (gradient[:dim] - gradient[dim:]) / (2 * step[:, None])
    return -0.5 * (hessian + hessian.mT)


def mean_field(
    log_density: LogDensity,
    loc: Tensor,
    scale: Tensor,
    *,
    num_steps: int = 400,
    num_particles: int = 64,
    deadline: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Mean-field Gaussian trained by path gradients from a given one, in its coordinates.

    Args:
        log_density: Maps ``(N, D)`` to ``(N,)``.
        loc: Mean at the start, ``(D,)``.
        scale: Standard deviations at the start, ``(D,)``.
        num_steps: Steps of Adam with cosine decay.
        num_particles: Draws per step.
        deadline: When to stop, on the clock of ``time.monotonic``.

    Returns:
        Mean and standard deviations, ``(D,)`` each.

    Example:
        >>> loc, scale = mean_field(lambda z: -0.5 * (z - 3).square().sum(-1) / 4, torch.zeros(1), torch.ones(1))
        >>> abs(loc.item() - 3) < 0.1 and abs(scale.item() - 2) < 0.1
        True
    """
    shift = torch.zeros_like(loc, requires_grad=True)
    log_scale = torch.zeros_like(loc, requires_grad=True)
    optimizer = torch.optim.Adam([shift, log_scale], lr=0.1)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / num_steps))
        if time.monotonic() > deadline:
            break
        noise = torch.randn(num_particles, loc.shape[0], dtype=loc.dtype, device=loc.device)
        z = loc + scale * (shift + log_scale.exp() * noise)
        path = (z * (-noise / (scale * log_scale.detach().exp()))).sum(-1)
        loss = (path - log_density(z)).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in (shift, log_scale)]
        if all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients):
            torch.nn.utils.clip_grad_norm_([shift, log_scale], 10.0 * math.sqrt(loc.shape[0]))
            optimizer.step()
    with torch.no_grad():
        return loc + scale * shift, scale * log_scale.exp()


def choose_start(
    log_density: LogDensity, point: Tensor, init_scale: float, num_particles: int = 256, max_time: float = math.inf
) -> tuple[GaussianStart, list[GaussianStart]]:
    """Propose Gaussians and take the one with the best evidence lower bound.

    Proposed are the plain one at ``point`` with ``init_scale`` and with unit scale, the Laplace approximation from ``point``, and a
    mean-field Gaussian trained from the best of these.

    Args:
        log_density: Maps ``(N, D)`` to ``(N,)``.
        point: Initial point, ``(D,)``.
        init_scale: Scale of the plain start.
        num_particles: Draws to evaluate at once, at most.
        max_time: Seconds after which the best found by then is taken.

    Returns:
        The best, and all in the order of their making.

    Example:
        >>> best, tried = choose_start(lambda z: -0.5 * (z - 3).square().sum(-1), torch.zeros(2), 0.1)
        >>> abs(best.elbo - 1.8379) < 0.01
        True
    """
    deadline = time.monotonic() + max_time

    def start(name: str, loc: Tensor, tril: Tensor) -> GaussianStart:
        return GaussianStart(
            name, loc, tril, gaussian_elbo(log_density, loc, tril, min(1024, 4 * num_particles), chunk=num_particles)
        )

    eye = torch.eye(point.shape[0], dtype=point.dtype, device=point.device)
    proposals = [("plain", point, init_scale * eye), ("plain, unit scale", point, eye)]
    found = laplace(log_density, point, deadline=deadline)
    if found is not None:
        proposals.append(("Laplace", *found))
    tried = [start(*proposal) for proposal in proposals]
    best = max(tried, key=lambda start: start.elbo)
    marginal = best.scale_tril.square().sum(-1).sqrt()
    loc, scale = mean_field(log_density, best.loc, marginal, num_particles=min(64, num_particles), deadline=deadline)
    if bool(torch.isfinite(loc).all() & torch.isfinite(scale).all()):
        tried.append(start("mean-field", loc, scale.diag()))
    return max(tried, key=lambda start: start.elbo), tried
