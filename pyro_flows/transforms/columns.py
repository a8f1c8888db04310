"""Points as columns, the layout in which layers of many univariate maps are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_flows.solvers.mode import takes_closed_forms


def to_columns(x: Tensor) -> Tensor:
    """Columns ``(D, N)`` of points ``(*, D)``, each variable contiguous; a view of what :func:`from_columns` made.

    Example:
        >>> to_columns(torch.zeros(5, 2, 3)).shape
        torch.Size([3, 10])
    """
    return (x if x.dim() == 2 else x.reshape(-1, x.shape[-1])).t().contiguous()


def from_columns(columns: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Points ``(*batch, D)`` of columns ``(D, N)``, a view.

    Example:
        >>> from_columns(torch.zeros(3, 10), (5, 2)).shape
        torch.Size([5, 2, 3])
    """
    return columns.t() if len(batch) == 1 else columns.t().reshape(*batch, columns.shape[0])


def total(log_slopes: Tensor, columns: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Sums ``(*batch)`` over the variables of log-slopes that broadcast to the shape of some columns ``(D, N)``.

    Example:
        >>> total(torch.ones(3, 1), torch.zeros(3, 10), (5, 2)).shape
        torch.Size([5, 2])
    """
    if log_slopes.shape[:1] != columns.shape[:1]:
        log_slopes = log_slopes.expand(columns.shape)
    sums = log_slopes.sum(0)
    if sums.shape != columns.shape[1:]:
        sums = sums.expand(columns.shape[1:])
    return sums if len(batch) == 1 else sums.reshape(batch)


def context_rows(context: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Rows ``(N, C)`` of contexts for points of some batch shape, or ``(1, C)`` where all have the same.

    Example:
        >>> context_rows(torch.zeros(2, 4), (5, 2)).shape, context_rows(torch.zeros(4), (5, 2)).shape
        (torch.Size([10, 4]), torch.Size([1, 4]))
    """
    if context.numel() == context.shape[-1]:
        return context.reshape(1, -1)
    return context.expand(*batch, -1).reshape(-1, context.shape[-1])


def permute_rows(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Rows of ``x`` in another order.

    Args:
        x: Rows, ``(D, N)``.
        order: Which row stands where, a permutation, ``(D,)``.
        back: The inverse of it, by which gradients return without a sum.

    Example:
        >>> permute_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0]), torch.tensor([1, 0])).flatten().tolist()
        [2.0, 1.0]
    """
    if takes_closed_forms():
        return _PermuteRows.apply(x, order, back)  # type: ignore[no-any-return, no-untyped-call]
    return x.index_select(0, order)


class _PermuteRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return permute_rows(gradient, back, order), None, None
