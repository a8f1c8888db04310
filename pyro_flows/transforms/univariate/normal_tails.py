"""Distribution function, hazard and quantile of the standard normal, with their digits far out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.solvers import attach_gradient

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_LOG_SQRT_2_OVER_PI = 0.5 * math.log(2 / math.pi)


def log_ndtr(z: Tensor) -> Tensor:
    r"""Log of the distribution function of the standard normal; torch's has no rule for ``vmap``, and a gradient that loses digits.

    Example:
        >>> log_ndtr(torch.tensor([-10.0, 0.0, 10.0]))
        tensor([-5.3231e+01, -6.9315e-01, -7.6199e-24])
    """
    left = z < 0
    near, far = torch.where(left, -z, torch.zeros_like(z)), torch.where(left, torch.zeros_like(z), z)
    of_left = (0.5 * torch.special.erfcx(near * 0.5**0.5)).log() - 0.5 * near.square()
    return torch.where(left, of_left, (-0.5 * torch.erfc(far * 0.5**0.5)).log1p())


def log_hazard(z: Tensor) -> Tensor:
    r""":math:`\log \varphi(z) / \Phi(z)` of the standard normal.

    Example:
        >>> log_hazard(torch.zeros(1, dtype=torch.float64)).exp()
        tensor([0.7979], dtype=torch.float64)
    """
    left = z < 0
    near, far = torch.where(left, -z, torch.zeros_like(z)), torch.where(left, torch.zeros_like(z), z)
    by_erfcx = _LOG_SQRT_2_OVER_PI - torch.special.erfcx(near * 0.5**0.5).log()
    return torch.where(left, by_erfcx, -0.5 * far.square() - _LOG_SQRT_2PI - log_ndtr(far))


def normal_quantile(log_p: Tensor) -> Tensor:
    r"""Quantile of the standard normal at a probability up to 1/2, from its logarithm.

    Example:
        >>> normal_quantile(torch.tensor([0.25, 1e-10], dtype=torch.float64).log())
        tensor([-0.6745, -6.3613], dtype=torch.float64)
    """

    def value_and_slope(y: Tensor) -> tuple[Tensor, Tensor]:
        return log_ndtr(y), log_hazard(y).exp()

    with torch.no_grad():
        log_p_ = log_p.detach()
        near = -(2**0.5) * torch.erfinv(1 - 2 * log_p_.clamp(min=-30.0).exp())  # few digits left at -30, which Newton mends
        # Tail: log p = -y^2 / 2 - log(-y) - log sqrt(2 pi), nearly.
        twice = (-2 * log_p_ - 2 * _LOG_SQRT_2PI).clamp(min=1.0)
        far = -(twice - twice.log()).clamp(min=1.0).sqrt()
        y = torch.where(log_p_ > -30.0, near, far)
        for _ in range(3):
            value, slope = value_and_slope(y)
            y = y - (value - log_p_) / slope
    return attach_gradient(value_and_slope, log_p, y)
