"""Soft limits of a variable: to an interval, or to growth like a logarithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.solvers.mode import is_eager

from .base import Params, UnivariateMap
from .raw_parameters import check_bound


class SoftClip(UnivariateMap):
    r"""Map of the line onto the interval :math:`(-B, B)`, :math:`y = x / (1 + |x| / B)`, without parameters.

    Near zero it is the identity. The log-slope is :math:`-2 \log(1 + |x| / B)`; it is continuous, its derivative jumps at zero.

    Args:
        bound: The bound B. Must be positive.

    Raises:
        ValueError: If ``bound`` is not positive and finite, or a value to be inverted is not inside the interval.

    Example:
        >>> SoftClip(2.0).forward_and_log_det(torch.tensor([2.0, -2.0]), ())[0]
        tensor([ 1., -1.])
    """

    def __init__(self, bound: float = 5.0) -> None:
        super().__init__()
        self.bound = float(check_bound(bound))
        self.codomain = constraints.interval(-self.bound, self.bound)

    def extra_repr(self) -> str:
        return f"bound={self.bound}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        shrunk = x.abs() / self.bound
        return x / (1 + shrunk), -2 * shrunk.log1p()

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        share = y.abs() / self.bound
        if is_eager() and bool((share >= 1).any()):
            worst = float(y.detach().abs().max())
            raise ValueError(f"y must lie inside (-{self.bound}, {self.bound}), the image of SoftClip, got {worst:.6g}")
        return y / (1 - share), -2 * torch.log1p(-share)


class LogSoftExtension(UnivariateMap):
    r"""The identity up to :math:`\tau`, and a logarithm beyond, without parameters.

    .. math:: y = \operatorname{sign}(x) \big(\min(|x|, \tau) + \log(1 + \max(|x| - \tau, 0))\big)

    As the last map of a guide it keeps single draws of a badly trained flow from being astronomically large.

    References:
        Andrade (2024), *Stabilizing training of normalizing flows for high-dimensional variational inference*,
        https://arxiv.org/abs/2402.16408

    Args:
        threshold: Where the logarithm begins, :math:`\tau`. Must be positive.

    Raises:
        ValueError: If ``threshold`` is not positive and finite.

    Example:
        >>> LogSoftExtension(1.0).forward_and_log_det(torch.tensor([0.5, math.e]), ())[0]
        tensor([0.5000, 2.0000])
    """

    def __init__(self, threshold: float = 100.0) -> None:
        super().__init__()
        if not 0 < threshold < math.inf:
            raise ValueError(f"threshold must be positive and finite, got {threshold}")
        self.threshold = float(threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.threshold, self.threshold)
        log = (x - inside).abs().log1p()
        return inside + torch.copysign(log, x), -log

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        inside = y.clamp(-self.threshold, self.threshold)
        # A value beyond 80 has a preimage that no float32 holds.
        log = (y - inside).abs()
        return inside + torch.copysign(log.expm1(), y), log
