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


def context_columns(context: Tensor | None, batch: tuple[int, ...]) -> Tensor | None:
    """Columns ``(C, N)`` of contexts for points of some batch shape, ``(C, 1)`` where all have the same, None for none.

    Example:
        >>> context_columns(torch.zeros(2, 4), (5, 2)).shape, context_columns(torch.zeros(4), (5, 2)).shape
        (torch.Size([4, 10]), torch.Size([4, 1]))
    """
    if context is None:
        return None
    if context.numel() == context.shape[-1]:
        return context.reshape(-1, 1)
    return context.expand(*batch, -1).reshape(-1, context.shape[-1]).t()
