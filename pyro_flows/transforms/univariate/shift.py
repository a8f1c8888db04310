"""Shift of one variable, the map of NICE."""

from __future__ import annotations

from torch import Tensor

from .base import Params, UnivariateMap


class Shift(UnivariateMap):
    r"""Shift :math:`y = x + t`; the log-determinant is zero.

    References:
        Dinh, Krueger, Bengio (2014), *NICE: non-linear independent components estimation*, https://arxiv.org/abs/1410.8516

    Example:
        >>> Shift().forward_and_log_det(torch.tensor([1.0]), (torch.tensor([2.0]),))
        (tensor([3.]), tensor([0.]))
    """

    param_shapes = ((),)
    affine = True

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        y = x + params[0]
        return y, y.new_zeros(()).expand(y.shape)

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        x = y - params[0]
        return x, x.new_zeros(()).expand(x.shape)
