"""Smooth maps of an angle: non-compact projection, and mixtures of Möbius maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...nn.arguments import check_positive
from .base import Params, UnivariateMap
from .raw_parameters import aligned, along, gains, soft_bound
from .solved import SolvedMap


def turns(at: Tensor) -> Tensor:
    r"""The multiple of :math:`2 \pi` that takes an angle off :math:`[-\pi, \pi)`.

    Example:
        >>> round(turns(torch.tensor(7.0)).item(), 4)
        6.2832
    """
    return 2 * math.pi * torch.floor((at + math.pi) / (2 * math.pi))


class NonCompactProjection(UnivariateMap):
    r"""Non-compact projection :math:`y = 2 \arctan(\alpha \tan(x/2) + \beta) + \phi`, of an angle, and back.

    Its slope is :math:`\alpha / (\cos^2(x/2) + (\alpha \sin(x/2) + \beta \cos(x/2))^2)`; both directions are in closed form. As
    :class:`CircularSpline` it is a map of the line with :math:`u(x + 2\pi) = u(x) + 2\pi`.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428, section 2.1.3

    Example:
        >>> y, log_slope = NonCompactProjection().forward_and_log_det(torch.tensor([1.0]), tuple(torch.zeros(3, 1)))
        >>> round(y.item(), 5), abs(round(log_slope.item(), 5))
        (1.0, 0.0)
    """

    param_shapes = ((), (), ())

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        shift, raw, offset = params
        whole = turns(x)
        half = 0.5 * (x - whole)
        scale, offset = soft_bound(raw).exp(), soft_bound(offset)
        up = scale * half.sin() + offset * half.cos()
        value = 2 * torch.atan2(up, half.cos()) + whole + shift
        return value, scale.log() - (half.cos().square() + up.square()).log()

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        shift, raw, offset = params
        whole = turns(y - shift)
        half = 0.5 * (y - shift - whole)
        scale, offset = soft_bound(raw).exp(), soft_bound(offset)
        up, right = half.sin() - offset * half.cos(), scale * half.cos()
        return 2 * torch.atan2(up, right) + whole, scale.log() - (right.square() + up.square()).log()


class MoebiusMixture(SolvedMap):
    r"""Convex combination of Möbius maps of an angle, :math:`y = x + 2 \sum_k \rho_k \arg(1 - \omega_k e^{-i x}) + \phi`.

    :math:`|\omega_k| < 1` and :math:`\sum_k \rho_k = 1`; the slope is
    :math:`\sum_k \rho_k (1 - |\omega_k|^2) / |1 - \omega_k e^{-i x}|^2`. The inverse is solved. As :class:`CircularSpline` it is
    a map of the line with :math:`u(x + 2\pi) = u(x) + 2\pi`.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428, section 2.1.1

    Args:
        num_components: Number of Möbius maps.

    Raises:
        ValueError: If ``num_components`` is not a positive integer.

    Example:
        >>> MoebiusMixture(3).param_count
        10
    """

    gain: Tensor

    def __init__(self, num_components: int = 8) -> None:
        super().__init__()
        check_positive(num_components=num_components)
        self.num_components = num_components
        self.param_shapes = ((), (num_components,), (num_components,), (num_components,))
        self.register_buffer("gain", gains(num_components))

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        raw_weights, first, second = (soft_bound(aligned(part, x)) for part in params[1:])
        first, second = along(self.gain, first) * first, along(self.gain, second) * second
        weights = raw_weights.softmax(0)
        squared = first.square() + second.square()
        shrink = torch.rsqrt(1 + squared)
        first, second = shrink * first, shrink * second
        cos, sin = x.cos(), x.sin()
        right, up = 1 - first * cos - second * sin, first * sin - second * cos
        value = x + 2 * (weights * torch.atan2(up, right)).sum(0) + params[0]
        # 1 - |omega|^2 = 1 / (1 + |r|^2)
        slope = (weights / ((1 + squared) * (right.square() + up.square()))).sum(0)
        return value, slope.log()
