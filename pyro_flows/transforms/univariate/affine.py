"""Affine map of one variable, the transformer of RealNVP, MAF and IAF."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.nn.arguments import is_between
from pyro_flows.solvers.mode import takes_closed_forms

from .base import Params
from .closed_form import ClosedFormFunction, ClosedFormMap, MappedPoints


class Affine(ClosedFormMap):
    r"""Affine map :math:`y = x \exp(s) + t` with a softly bounded log-scale.

    :math:`\log|dy/dx| = s`, with :math:`s = a / \sqrt{1 + (a / b)^2}` for the raw parameter :math:`a`, so that one layer
    scales by at most :math:`e^{b}`. Both directions cost the same.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803

    Args:
        log_scale_bound: The bound :math:`b` on the absolute log-scale. Must be positive.

    Raises:
        ValueError: If ``log_scale_bound`` is not positive.

    Example:
        >>> y, log_det = Affine().forward_and_log_det(torch.tensor([1.0]), (torch.tensor([[2.0], [0.0]]),))
        >>> y
        tensor([3.])
    """

    param_shapes = ((2,),)  # shift t, raw log-scale a
    affine = True
    broadcasts = True

    def __init__(self, log_scale_bound: float = 3.0) -> None:
        super().__init__()
        if not is_between(log_scale_bound, 0, math.inf):
            raise ValueError(f"log_scale_bound must be positive and finite, got {log_scale_bound!r}")
        self.log_scale_bound = log_scale_bound

    def extra_repr(self) -> str:
        return f"log_scale_bound={self.log_scale_bound}"

    def raw_log_scale(self, log_scale: Tensor) -> Tensor:
        """The raw parameter of a log-scale within the bound."""
        return log_scale * torch.rsqrt(1 - (log_scale / self.log_scale_bound).square())

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._mapped(x, params[0], False)

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._mapped(y, params[0], True)

    def _mapped(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        fits = raw.dim() == at.dim() + 1 and all(a in (1, b) for a, b in zip(raw.shape[1:], at.shape, strict=True))
        if fits and self.closed_form and takes_closed_forms():
            return ClosedFormFunction.apply(at, raw, inverse, self)  # type: ignore[no-any-return, no-untyped-call]
        return affine_map(at, raw, inverse, self.log_scale_bound)

    def arithmetic(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_map(at, raw, inverse, self.log_scale_bound)

    def evaluate(self, at: Tensor, raw: Tensor, inverse: bool) -> MappedPoints:
        shift, free = raw.unbind(0)
        shrink = torch.addcmul(raw.new_ones(()), free, free, value=self.log_scale_bound**-2).rsqrt_()
        log_slope = free * shrink
        if inverse:
            log_slope.neg_()
        scale = log_slope.exp()
        value = (at - shift).mul_(scale) if inverse else torch.addcmul(shift, at, scale)
        return MappedPoints(at, raw, inverse, value, log_slope, (scale, shrink))

    def pullback(
        self, done: MappedPoints, g_value: Tensor, g_log_slope: Tensor, *, to_raw: bool = True, last: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        at, raw, inverse = done.at, done.raw, done.inverse
        scale, shrink = done.saved
        g_at = g_value * scale
        if not to_raw:
            return g_at, None
        of_shift, (left, right) = (g_at, (g_value, done.value)) if inverse else (g_value, (g_at, at))
        g_raw = torch.empty_like(raw, memory_format=torch.contiguous_format)
        g_shift, g_free = g_raw.unbind(0)
        # Points that share their parameters add up.
        shared = [] if raw.shape[1:] == at.shape else [i for i, size in enumerate(raw.shape[1:]) if size != at.shape[i]]
        if shared:
            torch.sum(of_shift, shared, keepdim=True, out=g_shift)
            torch.add((left * right).sum(shared, keepdim=True), g_log_slope, out=g_free)
        else:
            g_shift.copy_(of_shift)
            torch.addcmul(g_log_slope, left, right, out=g_free)
        if inverse:
            g_raw.neg_()
        g_free.mul_(shrink).mul_(shrink).mul_(shrink)
        return g_at, g_raw


def affine_map(at: Tensor, raw: Tensor, inverse: bool, bound: float) -> tuple[Tensor, Tensor]:
    """Value and log-slope as operations that autograd and compilers follow.

    Example:
        >>> affine_map(torch.tensor([3.0]), torch.tensor([[2.0], [0.0]]), True, 3.0)[0]
        tensor([1.])
    """
    shift, free = raw.unbind(0)
    log_scale = free * torch.rsqrt(1 + free.square() * bound**-2)  # as smooth as tanh, at a quarter of its price
    if inverse:
        return (at - shift) * (-log_scale).exp(), -log_scale
    return torch.addcmul(shift, at, log_scale.exp()), log_scale
