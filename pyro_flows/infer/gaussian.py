"""Gaussians over the unconstrained latents, by which starts of a fit are described and compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Share of the draws that may lie beyond a cliff of the density.
SPARED = 0.05

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian over the unconstrained latents.

    Args:
        name: How it was found.
        loc: Mean, ``(D,)``, float64.
        scale_tril: Cholesky factor of the covariance, ``(D, D)``, float64.
        elbo: Its evidence lower bound in nats, robust to single draws (:func:`gaussian_elbo`).

    Example:
        >>> Gaussian("plain", torch.zeros(2), torch.eye(2), -3.0).name
        'plain'
    """

    name: str
    loc: Tensor
    scale_tril: Tensor
    elbo: float


class Density:
    """A log-density in float64 on the CPU, where the search for a start does its linear algebra.

    Args:
        log_density: Maps ``(N, D)`` to ``(N,)``, in a dtype and on a device of its own.
        like: A tensor of that dtype and device.
        chunk: Points evaluated at once, at most.

    Example:
        >>> density = Density(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2))
        >>> density.with_gradient(torch.ones(1, 2, dtype=torch.float64))
        (tensor([-1.], dtype=torch.float64), tensor([[-1., -1.]], dtype=torch.float64))
    """

    def __init__(self, log_density: LogDensity, like: Tensor, chunk: int = 256) -> None:
        self.log_density = log_density
        self.dtype, self.device, self.chunk = like.dtype, like.device, chunk

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Log-density ``(N,)`` at ``z`` ``(N, D)``."""
        if len(z) == 0:
            return z.new_zeros(0)
        parts = z.to(dtype=self.dtype, device=self.device).split(self.chunk)
        return torch.cat([self.log_density(part) for part in parts]).double().cpu()

    def with_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density ``(N,)`` and its gradient ``(N, D)`` at ``z`` ``(N, D)``."""
        if len(z) == 0:
            return z.new_zeros(0), z
        values, gradients = [], []
        for part in z.detach().to(dtype=self.dtype, device=self.device).split(self.chunk):
            with torch.enable_grad():
                at = part.clone().requires_grad_()
                value = self.log_density(at)
                gradients.append(torch.autograd.grad(value.sum(), at)[0])
            values.append(value.detach())
        return torch.cat(values).double().cpu(), torch.cat(gradients).double().cpu()


def gaussian_elbo(density: Density, loc: Tensor, scale_tril: Tensor, num_draws: int = 1024) -> float:
    """Evidence lower bound of a Gaussian, from draws, where up to 5 % lie far below the others counted as if beside them.

    Else one draw beyond a cliff of the density, which a flow will not make, would decide between Gaussians. Far is 30 times the
    median absolute deviation of the log-weights.

    Args:
        density: The log joint density.
        loc: Mean, ``(D,)``.
        scale_tril: Cholesky factor, ``(D, D)``.
        num_draws: Number of draws.

    Returns:
        The estimate in nats; minus infinity if more than 5 % of the draws have no finite log-density.

    Example:
        >>> density = Density(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2))
        >>> round(gaussian_elbo(density, torch.zeros(2).double(), torch.eye(2).double()), 3)
        1.838
    """
    log_weights = gaussian_log_weights(density, loc, scale_tril, num_draws).nan_to_num(nan=-math.inf, posinf=-math.inf)
    middle = log_weights.median()
    cliff = middle - 30 * (log_weights - middle).abs().median() - 1
    if float((log_weights < cliff).double().mean()) <= SPARED:
        log_weights = log_weights.clamp_min(cliff)
    value = float(log_weights.mean())
    return value if math.isfinite(value) else -math.inf


def gaussian_log_weights(density: Density, loc: Tensor, scale_tril: Tensor, num_draws: int) -> Tensor:
    """Log-density less that of a Gaussian at draws of the latter, ``(num_draws,)``.

    Example:
        >>> density = Density(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2))
        >>> gaussian_log_weights(density, torch.zeros(2).double(), torch.eye(2).double(), 3).round(decimals=3)
        tensor([1.8380, 1.8380, 1.8380], dtype=torch.float64)
    """
    dim = loc.shape[0]
    noise = torch.randn(num_draws, dim, dtype=torch.float64, device="cpu")
    log_q = -0.5 * noise.square().sum(-1) - scale_tril.diagonal().log().sum() - 0.5 * math.log(2 * math.pi) * dim
    return density(loc + noise @ scale_tril.mT) - log_q
