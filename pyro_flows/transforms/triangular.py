"""Strictly triangular matrices from packed entries, and products and solves with a batch of matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def strictly_lower_index(dim: int) -> Tensor:
    """Index that spreads ``dim (dim - 1) / 2`` packed entries over the strict lower triangle.

    The other places point one past the last entry, where :func:`unpack` puts a zero.

    Args:
        dim: Number of rows.

    Returns:
        Integers, shape ``(dim, dim)``.

    Example:
        >>> strictly_lower_index(3)
        tensor([[3, 3, 3],
                [0, 3, 3],
                [1, 2, 3]])
    """
    count = dim * (dim - 1) // 2
    index = torch.full((dim, dim), count)
    rows, columns = torch.tril_indices(dim, dim, offset=-1)
    index[rows, columns] = torch.arange(count)
    return index


def unpack(packed: Tensor, index: Tensor) -> Tensor:
    """Spread packed entries over a matrix of which the other entries are zero.

    Args:
        packed: Shape ``(*, n)``.
        index: Of :func:`strictly_lower_index`, or its transpose; shape ``(D, D)``.

    Returns:
        Shape ``(*, D, D)``.

    Example:
        >>> unpack(torch.tensor([1.0, 2.0, 3.0]), strictly_lower_index(3))
        tensor([[0., 0., 0.],
                [1., 0., 0.],
                [2., 3., 0.]])
    """
    return torch.cat([packed, packed.new_zeros(packed.shape[:-1] + (1,))], dim=-1)[..., index]


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """Product of a matrix with every vector of a batch, without copies of an unbatched matrix.

    Args:
        matrix: Shape ``(E, D)`` or ``(*, E, D)``.
        x: Shape ``(*, D)``.

    Returns:
        Shape ``(*, E)``.

    Example:
        >>> matvec(torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([3.0, 4.0]))
        tensor([ 3., 10.])
    """
    if matrix.dim() == 2:
        return x @ matrix.mT
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def triangular_solve(matrix: Tensor, y: Tensor, *, upper: bool, unit_diagonal: bool = False) -> Tensor:
    """Solve a triangular system for every vector of a batch.

    Args:
        matrix: Triangular, shape ``(D, D)`` or ``(*, D, D)``.
        y: Shape ``(*, D)``.
        upper: Whether the matrix is upper triangular.
        unit_diagonal: Whether to take the diagonal as ones, whatever it holds.

    Returns:
        Shape ``(*, D)``.

    Example:
        >>> triangular_solve(torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([3.0, 10.0]), upper=False)
        tensor([3., 4.])
    """
    if matrix.dim() == 2:
        rows = y.reshape(-1, y.shape[-1])
        x = torch.linalg.solve_triangular(matrix.mT, rows, upper=not upper, left=False, unitriangular=unit_diagonal)
        return x.reshape(y.shape)
    x = torch.linalg.solve_triangular(matrix, y.unsqueeze(-1), upper=upper, unitriangular=unit_diagonal)
    return x.squeeze(-1)
