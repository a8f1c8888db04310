"""The simplex, and coordinates of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.solvers.mode import is_eager

SIMPLEX = constraints.simplex


def project_to_simplex(p: Tensor) -> Tensor:
    r""":math:`p / \sum_i p_i`, ``(*, n)``.

    Example:
        >>> project_to_simplex(torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500])
    """
    return p / p.sum(-1, keepdim=True)


def check_on_simplex(p: Tensor, what: str) -> Tensor:
    """The points, if they are positive and sum to one as far as their dtype allows; no check outside of eager mode.

    Raises:
        ValueError: If one is not; an exact zero has no finite logarithm.

    Example:
        >>> check_on_simplex(torch.tensor([0.25, 0.75]), "p").shape
        torch.Size([2])
    """
    if is_eager() and p.numel():
        low, error = float(p.detach().min()), float((p.detach().sum(-1) - 1).abs().max())
        allowed = 1e3 * torch.finfo(p.dtype).eps
        if not low > 0:
            raise ValueError(f"{what} must be positive, got {low:.3g}; zeros have no logarithm: mix in a small uniform share first")
        if not error <= allowed:
            raise ValueError(f"{what} must sum to one, and one point is off by {error:.3g} (allowed for {p.dtype}: {allowed:.1g})")
    return p


def helmert(n: int, like: Tensor) -> Tensor:
    r"""Orthonormal basis V of the vectors that sum to zero, ``(n - 1, n)``, to the digits of ``like``.

    Example:
        >>> helmert(2, torch.zeros(1))
        tensor([[ 0.7071, -0.7071]])
    """
    k = torch.arange(1, n, device="cpu", dtype=torch.float64)
    columns = torch.arange(n, device="cpu", dtype=torch.float64)
    rows = torch.where(columns[None] < k[:, None], 1.0, 0.0) - torch.where(columns[None] == k[:, None], k[:, None], 0.0)
    rows = rows / (k * (k + 1)).sqrt()[:, None]
    return rows.to(like)


def log_volume(p: Tensor) -> Tensor:
    r""":math:`\sum_i \log p_i + \tfrac12 \log n`, the log-determinant of isometric log-ratio coordinates to all but one of the p.

    Example:
        >>> round(log_volume(torch.tensor([0.5, 0.5])).item(), 4)
        -1.0397
    """
    return p.log().sum(-1) + 0.5 * math.log(p.shape[-1])
