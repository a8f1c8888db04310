"""Affine map of one variable, the transformer of RealNVP, MAF and IAF."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Params, UnivariateMap


class Affine(UnivariateMap):
    r"""Affine map :math:`y = x \exp(s) + t` with a softly bounded log-scale.

    :math:`\log|dy/dx| = s`, with :math:`s = b \tanh(a / b)` for the raw parameter :math:`a`, so that one layer
    scales by at most :math:`e^{b}`. Both directions cost the same.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803

    Args:
        log_scale_bound: The bound :math:`b` on the absolute log-scale. Must be positive.

    Raises:
        ValueError: If ``log_scale_bound`` is not positive.

    Example:
        >>> y, log_det = Affine().forward_and_log_det(torch.tensor([1.0]), (torch.tensor([2.0]), torch.tensor([0.0])))
        >>> y
        tensor([3.])
    """

    param_shapes = ((), ())  # shift t, raw log-scale a
    affine = True

    def __init__(self, log_scale_bound: float = 3.0) -> None:
        super().__init__()
        if not 0 < log_scale_bound < math.inf:
            raise ValueError(f"log_scale_bound must be positive and finite, got {log_scale_bound}")
        self.log_scale_bound = log_scale_bound

    def extra_repr(self) -> str:
        return f"log_scale_bound={self.log_scale_bound}"

    def _log_scale(self, raw: Tensor) -> Tensor:
        return self.log_scale_bound * (raw / self.log_scale_bound).tanh()

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(params[1])
        return torch.addcmul(params[0], x, log_scale.exp()), log_scale

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(params[1])
        return (y - params[0]) * (-log_scale).exp(), -log_scale
