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


def log_det_near_one(jacobian: Tensor) -> Tensor:
    r""":math:`\log\det(I + J)` of matrices ``(*, D, D)`` for which it is positive.

    Example:
        >>> log_det_near_one(torch.zeros(2, 2))
        tensor(0.)
    """
    if jacobian.shape[-1] == 1:
        return jacobian[..., 0, 0].log1p()
    if jacobian.shape[-1] == 2:
        a, b, c, d = (jacobian[..., i, j] for i in range(2) for j in range(2))
        return (a + d + a * d - b * c).log1p()
    eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    return log_abs_det(eye + jacobian)
