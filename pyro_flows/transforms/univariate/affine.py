"""Affine map of one variable, the transformer of RealNVP, MAF and IAF."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_flows.solvers.mode import takes_closed_forms

from .base import Params, UnivariateMap


class Affine(UnivariateMap):
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

    def __init__(self, log_scale_bound: float = 3.0) -> None:
        super().__init__()
        if not 0 < log_scale_bound < math.inf:
            raise ValueError(f"log_scale_bound must be positive and finite, got {log_scale_bound}")
        self.log_scale_bound = log_scale_bound

    def extra_repr(self) -> str:
        return f"log_scale_bound={self.log_scale_bound}"

    def raw_log_scale(self, log_scale: Tensor) -> Tensor:
        """The raw parameter of a log-scale within the bound."""
        return log_scale * torch.rsqrt(1 - (log_scale / self.log_scale_bound).square())

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._evaluate(x, params[0], False)

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._evaluate(y, params[0], True)

    def _evaluate(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        fits = raw.dim() == at.dim() + 1 and all(a in (1, b) for a, b in zip(raw.shape[1:], at.shape, strict=True))
        if fits and takes_closed_forms():
            return AffineFunction.apply(at, raw, inverse, self.log_scale_bound)  # type: ignore[no-any-return, no-untyped-call]
        return affine_map(at, raw, inverse, self.log_scale_bound)


def affine_map(at: Tensor, raw: Tensor, inverse: bool, bound: float) -> tuple[Tensor, Tensor]:
    """Value and log-slope as autograd and compilers follow them.

    Example:
        >>> affine_map(torch.tensor([3.0]), torch.tensor([[2.0], [0.0]]), True, 3.0)[0]
        tensor([1.])
    """
    shift, free = raw.unbind(0)
    log_scale = free * torch.rsqrt(1 + (free / bound).square())  # smooth as tanh is, at a quarter of its price
    if inverse:
        return (at - shift) * (-log_scale).exp(), -log_scale
    return torch.addcmul(shift, at, log_scale.exp()), log_scale


class AffineFunction(torch.autograd.Function):
    r"""Value and log-slope at points ``(*)`` with raw parameters ``(2, *)``, with their gradient in closed form.

    A dimension of the parameters may be 1 where points share them; the log-slope then has that shape too. Derivatives of higher
    order are those of autograd.

    Example:
        >>> AffineFunction.apply(torch.tensor([3.0]), torch.tensor([[2.0], [0.0]]), True, 3.0)[0]
        tensor([1.])
    """

    @staticmethod
    def forward(ctx: Any, at: Tensor, raw: Tensor, inverse: bool, bound: float) -> tuple[Tensor, Tensor]:
        shift, free = raw.unbind(0)
        shrink = (free / bound).square_().add_(1).rsqrt_()
        log_slope = free * shrink
        if inverse:
            log_slope.neg_()
        scale = log_slope.exp()
        value = (at - shift).mul_(scale) if inverse else torch.addcmul(shift, at, scale)
        ctx.save_for_backward(at, raw, value, scale, shrink)
        ctx.inverse, ctx.bound = inverse, bound
        return value, log_slope

    @staticmethod
    def backward(ctx: Any, g_value: Tensor, g_log_slope: Tensor) -> tuple[Tensor | None, ...]:
        at, raw, value, scale, shrink = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # somebody asks for derivatives of these
            results = affine_map(at, raw, ctx.inverse, ctx.bound)
            inputs = [tensor for tensor, wanted in zip((at, raw), needed, strict=True) if wanted]
            found = iter(torch.autograd.grad(results, inputs, (g_value, g_log_slope), create_graph=True))
            return *(next(found) if wanted else None for wanted in needed), None, None
        g_at = g_value * scale
        if not needed[1]:
            return g_at, None, None, None
        g_raw = torch.empty_like(raw, memory_format=torch.contiguous_format)
        g_shift, g_free = g_raw.unbind(0)
        shared = [i for i, (a, b) in enumerate(zip(raw.shape[1:], at.shape, strict=True)) if a != b]

        def reduced(entries: Tensor) -> Tensor:
            return entries.sum(shared, keepdim=True) if shared else entries

        if ctx.inverse:
            g_shift.copy_(reduced(g_at)).neg_()
            g_free.copy_(g_log_slope).add_(reduced(g_value * value)).neg_()
        else:
            g_shift.copy_(reduced(g_value))
            g_free.copy_(g_log_slope).add_(reduced(g_at * at))
        g_free.mul_(shrink).mul_(shrink).mul_(shrink)
        return g_at, g_raw, None, None
