"""Logarithm of determinants, right under every transform of torch.func."""

from __future__ import annotations

import torch
from torch import Tensor

from .mode import is_eager


def log_abs_det(matrix: Tensor) -> Tensor:
    r""":math:`\log|\det A|` of matrices ``(*, n, n)``.

    Outside of eager mode it is the value, and the series
    :math:`\mathrm{tr} X - \tfrac12 \mathrm{tr} X^2 + \tfrac13 \mathrm{tr} X^3` of :math:`X = A_0^{-1} (A - A_0)` at
    :math:`A = A_0`, whose first three derivatives are those of the logarithm: torch's rules for ``vmap`` of forward mode over
    solvers of linear systems give wrong numbers (torch 2.13).

    Example:
        >>> round(log_abs_det(torch.diag(torch.tensor([2.0, 3.0]))).exp().item(), 4)
        6.0
    """
    if is_eager():
        return torch.linalg.slogdet(matrix)[1]
    fixed = matrix.detach()
    x = torch.linalg.inv(fixed) @ (matrix - fixed)
    squared = x @ x
    traces = [part.diagonal(dim1=-2, dim2=-1).sum(-1) for part in (x, squared, squared @ x)]
    return torch.linalg.slogdet(fixed)[1] + traces[0] - traces[1] / 2 + traces[2] / 3
