"""Continuous flow of angles, and of numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows.nn.velocity import FieldAtContext, VelocityField
from pyro_flows.transforms.cnf import CNF, Rates

from .angles import check_circles, features, support, wrapped


class TorusCNF(CNF):
    r"""Continuous flow on a torus, or on a product of circles and lines.

    A field u sees angles by cosine and sine, :math:`z = E(x)`, so that there is no seam, and its tangential part moves them,

    .. math:: \dot x_i = \tau_i(x_i)^\top u(z), \quad
        \mathrm{div} = \sum_i \tau_i'^\top u + \tau_i^\top \frac{\partial u}{\partial z} \tau_i,

    with :math:`\tau_i = \partial E / \partial x_i`. Angles are given out on :math:`[-\pi, \pi)`.

    References:
        Mathieu, Nickel (2020), *Riemannian continuous normalizing flows*, https://arxiv.org/abs/2006.10605

    Args:
        velocity: The field u, of two variables for each angle and one for each other number.
        circles: Which of the variables are angles, ``(D,)``; all if None, of half as many variables as the field has.
        options: As for :class:`~pyro_flows.transforms.CNF`.

    Raises:
        ValueError: If an argument is not as described.
        ArithmeticError: When called, if the solver does not get through.

    Example:
        >>> from pyro_flows.nn import VelocityMLP
        >>> TorusCNF(VelocityMLP(3), (True, False)).event_shape
        torch.Size([2])
    """

    def __init__(self, velocity: VelocityField, circles: Sequence[bool] | None = None, **options: Any) -> None:
        super().__init__(velocity, **options)
        self.circles = check_circles(velocity.dim // 2 if circles is None else len(tuple(circles)), circles)
        count = sum(2 if circle else 1 for circle in self.circles)
        if velocity.dim != count:
            raise ValueError(
                f"velocity must have two variables for each angle and one for each other number, {count} for circles="
                f"{self.circles}, got {velocity.dim}"
            )
        self.input_dim = len(self.circles)
        self.event_shape = torch.Size((self.input_dim,))
        self.domain = self.codomain = support(self.circles)

    def _rates(self, field: FieldAtContext, t: Tensor, x: Tensor, probe: Tensor | None) -> Rates:
        z = features(x, self.circles)
        at = field(t, z)
        along, turned = self._along(z, at.velocity)
        pulled = None
        if probe is not None:
            back, _ = self._along(z, at.pull_back(self._lifted(z, probe)))
            pulled = back + turned * probe

        def divergence() -> Tensor:
            if self.log_det_kind == "estimate" and probe is not None and pulled is not None:
                return (pulled * probe).sum(-1)
            total = turned.sum(-1)
            for i in range(self.input_dim):
                unit = torch.zeros_like(x)
                unit[..., i] = 1
                total = total + self._along(z, at.pull_back(self._lifted(z, unit)))[0][..., i]
            return total

        return Rates(along, divergence, pulled)

    def _along(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\tau_i^\top u` and :math:`\tau_i'^\top u`, ``(*, D)``."""
        first, second, k = [], [], 0
        for circle in self.circles:
            if circle:
                c, s, a, b = z[..., k], z[..., k + 1], u[..., k], u[..., k + 1]
                first.append(c * b - s * a)
                second.append(-c * a - s * b)
            else:
                first.append(u[..., k])
                second.append(torch.zeros_like(u[..., k]))
            k += 2 if circle else 1
        return torch.stack(first, -1), torch.stack(second, -1)

    def _lifted(self, z: Tensor, e: Tensor) -> Tensor:
        r""":math:`\sum_i \tau_i e_i`, ``(*, F)``."""
        parts, k = [], 0
        for i, circle in enumerate(self.circles):
            parts += [-z[..., k + 1] * e[..., i], z[..., k] * e[..., i]] if circle else [e[..., i]]
            k += 2 if circle else 1
        return torch.stack(parts, -1)

    def _arrived(self, x: Tensor) -> Tensor:
        return wrapped(x, torch.tensor(self.circles, device=x.device))

    def geodesic(self, start: Tensor, end: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Points on the shortest way between points, angles the shorter way round, and the velocity on it."""
        way = self._arrived(end - start)
        return self._arrived(start + share[..., None] * way), way
