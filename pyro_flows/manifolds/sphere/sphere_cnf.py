"""Continuous flow on a sphere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_flows.nn.velocity import FieldAtContext, VelocityField
from pyro_flows.transforms.cnf import CNF, Rates

from .geometry import SPHERE, check_ambient_dim, check_on_sphere, project_to_sphere


class SphereCNF(CNF):
    r"""Continuous flow on :math:`S^{n-1}`: unit vectors move along the tangential part of a field u of the ambient space.

    .. math:: \dot x = u - x\,(x \cdot u), \quad
        \mathrm{div} = \mathrm{tr}\,\frac{\partial u}{\partial x} - x^\top \frac{\partial u}{\partial x} x - (n - 1)\, x \cdot u,

    the divergence being that of the sphere. The field is smooth everywhere, without poles or seams.

    References:
        Mathieu, Nickel (2020), *Riemannian continuous normalizing flows*, https://arxiv.org/abs/2006.10605;
        Lou et al. (2020), *Neural manifold ordinary differential equations*, https://arxiv.org/abs/2006.10254

    Args:
        velocity: The field u of n variables, n at least 2.
        options: As for :class:`~pyro_flows.transforms.CNF`.

    Raises:
        ValueError: If an argument is not as described; when called, if points are no unit vectors.
        ArithmeticError: When called, if the solver does not get through.

    Example:
        >>> from pyro_flows.nn import VelocityMLP
        >>> SphereCNF(VelocityMLP(3))(torch.tensor([0.0, 0.6, 0.8])).detach()
        tensor([0.0000, 0.6000, 0.8000])
    """

    domain = SPHERE
    codomain = SPHERE

    def __init__(self, velocity: VelocityField, **options: Any) -> None:
        super().__init__(velocity, **options)
        check_ambient_dim(self.input_dim, "velocity.dim")

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward_and_log_det(check_on_sphere(x, "x"), context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().inverse_and_log_det(check_on_sphere(y, "y"), context)

    def _rates(self, field: FieldAtContext, t: Tensor, x: Tensor, probe: Tensor | None) -> Rates:
        x = project_to_sphere(x)
        at = field(t, x)
        radial = _dot(x, at.velocity)
        velocity = at.velocity - radial * x
        tangent = pulled = None
        if probe is not None:
            tangent = probe - _dot(probe, x) * x
            back = at.pull_back(tangent)
            pulled = back - _dot(back, x) * x - radial * tangent

        def divergence() -> Tensor:
            if self.log_det_kind == "exact" or tangent is None or pulled is None:
                trace = at.divergence() - _dot(at.pull_back(x), x)[..., 0]
                return trace - (self.input_dim - 1) * radial[..., 0]
            return _dot(pulled, tangent)[..., 0]

        return Rates(velocity, divergence, pulled)

    def _arrived(self, x: Tensor) -> Tensor:
        return project_to_sphere(x)

    def geodesic(self, start: Tensor, end: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Points on the great circle between unit vectors, and the velocity on it; between antipodes on none in particular."""
        cosine = _dot(start, end)
        across = end - cosine * start
        sine = across.norm(dim=-1, keepdim=True)
        angle = torch.atan2(sine, cosine)
        across = across / sine.clamp_min(torch.finfo(sine.dtype).tiny)
        turned = share[..., None] * angle
        between = turned.cos() * start + turned.sin() * across
        return project_to_sphere(between), angle * (turned.cos() * across - turned.sin() * start)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
