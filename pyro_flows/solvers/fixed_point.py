"""Fixed point of a contraction, and its gradient, without Jacobian matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .mode import is_eager


def fixed_point(
    step: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    product: Callable[[Tensor, Tensor], Tensor],
    max_iterations: int = 2000,
) -> Tensor:
    r"""Solve :math:`x = g(x)` for a contraction g of vectors, each row by itself.

    Picard iteration until a step is at rounding level. The gradient solves :math:`v = w + (\partial g / \partial x)^\top v` by
    the same iteration, at the solution; it has no second derivatives, and says so when asked.

    References:
        Behrmann et al. (2019), *Invertible residual networks*, https://arxiv.org/abs/1811.00995, algorithm 1;
        Bai, Kolter, Koltun (2019), *Deep equilibrium models*, https://arxiv.org/abs/1909.01377

    Args:
        step: The map g, from ``(*, D)`` to ``(*, D)``.
        start: First guess, ``(*, D)``.
        product: Maps ``x`` and ``v`` to :math:`(\partial g / \partial x)^\top v`.
        max_iterations: Bound on evaluations.

    Returns:
        The fixed points, ``(*, D)``; NaN in rows that are not finite.

    Raises:
        ArithmeticError: If a row has not converged.
        RuntimeError: Under ``torch.func``, tracing or compilation.

    Example:
        >>> fixed_point(lambda x: 1 + 0.5 * x, torch.zeros(1, dtype=torch.float64), product=lambda x, v: 0.5 * v)
        tensor([2.0000], dtype=torch.float64)
    """
    if not is_eager():
        raise RuntimeError(
            "fixed_point runs in eager mode only, not under torch.func, tracing or compilation; a residual layer with "
            'log_det="exact" does without it'
        )
    with torch.no_grad():
        root = _iterate(step, start, max_iterations, "fixed_point")
    return _Attach.apply(step(root), root, product, max_iterations)  # type: ignore[no-any-return, no-untyped-call]


def _iterate(step: Callable[[Tensor], Tensor], start: Tensor, max_iterations: int, what: str) -> Tensor:
    tolerance = 8 * torch.finfo(start.dtype).eps
    usable = torch.isfinite(start).all(-1)
    x = start.masked_fill(~usable[..., None], 0.0)
    converged = ~usable
    for _ in range(max_iterations):
        new = step(x)
        moved = (new - x).abs().amax(-1)
        x = torch.where(converged[..., None], x, new)
        converged = converged | (moved <= tolerance * (1 + new.abs().amax(-1)))
        if bool(converged.all()):
            return x.masked_fill(~usable[..., None], torch.nan)
    raise ArithmeticError(
        f"{what}: {int((~converged).sum())} of {converged.numel()} rows have not converged in {max_iterations} iterations; "
        f"check that inputs are finite and of ordinary size, or use float64"
    )


class _Attach(torch.autograd.Function):
    """The value of a step at its fixed point, with the gradient of the fixed point."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, root: Tensor, product: Callable[[Tensor, Tensor], Tensor], max_iterations: int) -> Tensor:
        ctx.save_for_backward(root)
        ctx.product, ctx.max_iterations = product, max_iterations
        return value.clone()

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (root,) = ctx.saved_tensors
        solved = _iterate(lambda v: gradient + ctx.product(root, v), gradient, ctx.max_iterations, "gradient of a fixed point")
        return solved, None, None, None
