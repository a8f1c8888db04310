"""Laplace approximation: the Gaussian of the curvature at a mode."""

from __future__ import annotations

import torch
from torch import Tensor

from .gaussian import Density


def laplace(density: Density, mode: Tensor) -> Tensor | None:
    """Cholesky factor of the inverse curvature of the log-density, ``(D, D)``; None where it has no positive curvature.

    Args:
        density: The log joint density.
        mode: The mode, ``(D,)``.

    Example:
        >>> density = Density(lambda z: -0.5 * (z - 3).square().sum(-1) / 4, torch.zeros(1).double())
        >>> laplace(density, torch.tensor([3.0]).double()).round(decimals=4)
        tensor([[2.]], dtype=torch.float64)
    """
    precision = _negative_hessian(density, mode)
    if not bool(torch.isfinite(precision).all()):
        return None
    values, vectors = torch.linalg.eigh(precision)
    if float(values.max()) <= 0:
        return None
    # Directions of negative or vanishing curvature have no scale of their own: leave them at one unit at most.
    values = torch.where(values > 1e-8 * values.max(), values, torch.ones_like(values)).clamp_min(1e-12)
    covariance = (vectors / values) @ vectors.mT
    scale_tril, info = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.mT))
    return scale_tril if int(info) == 0 else None


def _negative_hessian(density: Density, at: Tensor) -> Tensor:
    """Central differences of the gradient, ``(D, D)``; works for every path by which the model is evaluated."""
    dim = at.shape[0]
    step = (torch.finfo(density.dtype).eps ** (1 / 3)) * (1 + at.abs())
    offsets = torch.diag(step)
    gradient = density.with_gradient(torch.cat([at + offsets, at - offsets]))[1]
    hessian = (gradient[:dim] - gradient[dim:]) / (2 * step[:, None])
    return -0.5 * (hessian + hessian.mT)
