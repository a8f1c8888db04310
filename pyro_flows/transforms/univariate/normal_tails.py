"""Distribution function, hazard and quantile of the standard normal, with their digits far out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.solvers import attach_gradient

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def log_ndtr_and_log_hazard(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logs of the distribution function of the standard normal and of :math:`\varphi(z) / \Phi(z)`, its derivative.

    Both come from one :math:`e^{z^2 / 2} \Phi(-|z|)`, which loses no digits. torch's ``log_ndtr`` has no rule for ``vmap``, and a
    gradient that loses them.

    Example:
        >>> value, log_slope = log_ndtr_and_log_hazard(torch.tensor([-10.0, 0.0, 10.0]))
        >>> value
        tensor([-5.3231e+01, -6.9315e-01, -7.6199e-24])
        >>> log_slope.exp()
        tensor([1.0098e+01, 7.9788e-01, 7.6946e-23])
    """
    left = z < 0
    away = torch.where(left, -z, z)
    scaled = 0.5 * torch.special.erfcx(away * 0.5**0.5)
    log_density = -0.5 * away.square()
    log_scaled, log_upper = scaled.log(), (-scaled * log_density.exp()).log1p()
    value = torch.where(left, log_scaled + log_density, log_upper)
    return value, torch.where(left, -log_scaled, log_density - log_upper) - _LOG_SQRT_2PI


def normal_quantile(log_p: Tensor) -> Tensor:
    r"""Quantile of the standard normal at a probability up to 1/2, from its logarithm.

    Example:
        >>> normal_quantile(torch.tensor([0.25, 1e-10], dtype=torch.float64).log())
        tensor([-0.6745, -6.3613], dtype=torch.float64)
    """

    def value_and_slope(y: Tensor) -> tuple[Tensor, Tensor]:
        value, log_slope = log_ndtr_and_log_hazard(y)
        return value, log_slope.exp()

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
