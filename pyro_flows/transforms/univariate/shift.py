"""Shift of one variable, the map of NICE."""

from __future__ import annotations

from torch import Tensor

from .base import Params
from .closed_form import ClosedFormMap, MappedPoints


class Shift(ClosedFormMap):
    r"""Shift :math:`y = x + t`; the log-determinant is zero.

    References:
        Dinh, Krueger, Bengio (2014), *NICE: non-linear independent components estimation*, https://arxiv.org/abs/1410.8516

    Example:
        >>> Shift().forward_and_log_det(torch.tensor([1.0]), (torch.tensor([2.0]),))
        (tensor([3.]), tensor([0.]))
    """

    param_shapes = ((),)
    affine = True
    broadcasts = True

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        y = x + params[0]
        return y, y.new_zeros(()).expand(y.shape)

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        x = y - params[0]
        return x, x.new_zeros(()).expand(x.shape)

    def arithmetic(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return (self.inverse_and_log_det if inverse else self.forward_and_log_det)(at, (raw[0],))

    def evaluate(self, at: Tensor, raw: Tensor, inverse: bool) -> MappedPoints:
        return MappedPoints(at, raw, inverse, *self.arithmetic(at, raw, inverse), ())

    def pullback(
        self, done: MappedPoints, g_value: Tensor, g_log_slope: Tensor, *, to_raw: bool = True, last: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        return g_value, (-g_value if done.inverse else g_value).sum_to_size(done.raw.shape[1:])[None] if to_raw else None
