"""The sphere as a subset of Euclidean space."""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows.solvers.mode import is_eager

#: Unit vectors, as Pyro knows them.
SPHERE = constraints.sphere


def check_ambient_dim(n: int, name: str = "input_dim") -> int:
    """The number of coordinates, if it is at least 2.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_ambient_dim(3)
        3
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 2:
        raise ValueError(f"{name} must be an integer of at least 2, the coordinates of unit vectors, got {n!r}")
    return n


def project_to_sphere(x: Tensor) -> Tensor:
    r"""The nearest unit vector, :math:`x / |x|`, ``(*, n)``.

    Example:
        >>> project_to_sphere(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    return x / x.norm(dim=-1, keepdim=True)


def log_area(n: int) -> float:
    r"""Logarithm of the area of :math:`S^{n-1}`, :math:`2 \pi^{n/2} / \Gamma(n/2)`.

    Example:
        >>> round(math.exp(log_area(3)) / math.pi, 6)
        4.0
    """
    return math.log(2) + 0.5 * n * math.log(math.pi) - math.lgamma(0.5 * n)


def check_on_sphere(x: Tensor, what: str) -> Tensor:
    """The points, if they have unit length as far as their dtype allows; no check outside of eager mode.

    Raises:
        ValueError: If one has not.

    Example:
        >>> check_on_sphere(torch.tensor([0.6, 0.8]), "x").shape
        torch.Size([2])
    """
    if is_eager() and x.numel():
        error = float((x.detach().norm(dim=-1) - 1).abs().max())
        allowed = 1e3 * torch.finfo(x.dtype).eps
        if not error <= allowed:
            raise ValueError(
                f"{what} must hold unit vectors, and the length of one is off by {error:.3g} (allowed for {x.dtype}: "
                f"{allowed:.1g}); divide by the norm, or convert after that and not before"
            )
    return x


def any_frame(point: Tensor) -> Tensor:
    """An orthogonal matrix ``(*, n, n)`` whose last column is the unit vector ``(*, n)``: the reflection that takes the last axis
    there.

    Example:
        >>> any_frame(torch.tensor([0.6, 0.8]))[:, -1]
        tensor([0.6000, 0.8000])
    """
    n = point.shape[-1]
    eye = torch.eye(n, dtype=point.dtype, device=point.device)
    # The reflection from e to -sign p, of which the difference is long, with its last column turned round.
    sign = torch.where(point[..., -1:] < 0, -1.0, 1.0).to(point)
    v = point + sign * eye[-1]
    v = v / v.norm(dim=-1, keepdim=True)
    reflection = eye - 2 * v[..., :, None] * v[..., None, :]
    flip = torch.cat([torch.ones_like(point[..., :-1]), -sign], -1)
    return reflection * flip[..., None, :]
