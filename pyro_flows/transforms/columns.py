"""Points as columns, the layout in which layers of many univariate maps are computed."""

from __future__ import annotations

from torch import Tensor


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


def context_rows(context: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Rows ``(N, C)`` of contexts for points of some batch shape, or ``(1, C)`` where all have the same.

    Example:
        >>> context_rows(torch.zeros(2, 4), (5, 2)).shape, context_rows(torch.zeros(4), (5, 2)).shape
        (torch.Size([10, 4]), torch.Size([1, 4]))
    """
    if context.numel() == context.shape[-1]:
        return context.reshape(1, -1)
    return context.expand(*batch, -1).reshape(-1, context.shape[-1])
