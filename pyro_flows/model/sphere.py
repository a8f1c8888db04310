"""Directions: a chart of the sphere, cut at the point opposite the place where the posterior is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.distributions import TransformModule
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_flows.manifolds.sphere.geometry import SPHERE, any_frame, project_to_sphere

_NUM_DIRECTIONS = 40
_MOST_DIRECTIONS = 32


class SphereChart(TransformModule):  # type: ignore[misc]
    r"""Bijection from :math:`R^{n-1}` to the sphere :math:`S^{n-1}` without the point opposite a centre c.

    A point goes from the centre in the direction of x, by an angle θ that depends on :math:`r = |x|`. For n = 3,
    :math:`\cos\theta = 2 e^{-r^2/2} - 1`, and for n = 2 :math:`\theta = \pi\,\mathrm{erf}(r / \sqrt 2)`: a uniform direction is a
    standard normal x. For larger n it is stereographic, :math:`\theta = 2 \arctan(r / 2)`. The log-determinant is that of area. The
    centre is a buffer, and moves with ``state_dict``.

    Args:
        centre: The unit vectors c, of the shape of one value; the last axis if None.

    Example:
        >>> chart = SphereChart(torch.tensor([0.0, 0.6, 0.8]))
        >>> chart(torch.zeros(2))
        tensor([0.0000, 0.6000, 0.8000])
        >>> [round(value, 4) for value in chart.inv(chart(torch.tensor([0.5, -2.0]))).tolist()]
        [0.5, -2.0]
    """

    domain = constraints.real_vector
    codomain = SPHERE
    bijective = True
    centre: Tensor | None

    def __init__(self, centre: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("centre", None if centre is None else project_to_sphere(centre.detach().clone()))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of directions for that of coordinates."""
        return torch.Size(shape[:-1]) + (shape[-1] + 1,)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of coordinates for that of directions."""
        return torch.Size(shape[:-1]) + (shape[-1] - 1,)

    def _call(self, x: Tensor) -> Tensor:
        squared = x.square().sum(-1, keepdim=True)
        cosine, sine_ratio = _polar(squared, x.shape[-1])
        y = torch.cat([sine_ratio * x, cosine], -1)
        return project_to_sphere(y if self.centre is None else (any_frame(self.centre) @ y[..., None])[..., 0])

    def _inverse(self, y: Tensor) -> Tensor:
        if self.centre is not None:
            y = (any_frame(self.centre).mT @ y[..., None])[..., 0]
        across, cosine = y[..., :-1], y[..., -1:]
        squared = _squared_radius(across.square().sum(-1, keepdim=True), cosine, across.shape[-1])
        return across / _polar(squared, across.shape[-1])[1]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the area at y for a unit of volume at x, ``(*)``."""
        dim, squared = x.shape[-1], x.square().sum(-1)
        if dim == 1:
            return 0.5 * math.log(2 * math.pi) - 0.5 * squared
        if dim == 2:
            return math.log(2) - 0.5 * squared
        return -dim * torch.log1p(0.25 * squared)


def _polar(squared: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The cosine of the angle, and its sine over the radius, from the squared radius; smooth at zero."""
    if dim > 2:
        return (1 - 0.25 * squared) / (1 + 0.25 * squared), 1 / (1 + 0.25 * squared)
    small = squared < 1e-4
    safe = torch.where(small, torch.ones_like(squared), squared)
    s = torch.where(small, squared, torch.zeros_like(squared))
    if dim == 2:
        ratio = torch.where(small, 0.5 - s / 8 + s.square() / 48, -torch.expm1(-0.5 * safe) / safe)
        return 2 * (-0.5 * squared).exp() - 1, 2 * (-0.25 * squared).exp() * ratio.sqrt()
    radius = safe.sqrt()
    angle = math.pi * torch.erf(radius * math.sqrt(0.5))
    # erf(r / sqrt 2) = sqrt(2 / pi) (r - r^3 / 6 + ...)
    slope = math.sqrt(2 * math.pi)
    of_small = slope * (1 - s / 6 * (1 + slope**2))
    cosine = torch.where(small, 1 - 0.5 * slope**2 * s, angle.cos())
    # Beyond the digits of erf the angle is pi, and the sine would be zero, by which the inverse divides.
    sine = angle.sin().abs().clamp(min=torch.finfo(squared.dtype).eps)
    return cosine, torch.where(small, of_small, sine / radius)


def _squared_radius(across: Tensor, cosine: Tensor, dim: int) -> Tensor:
    """The squared radius from the squared sine and the cosine of the angle; the point opposite is taken as one beside it."""
    eps = torch.finfo(cosine.dtype).eps
    if dim == 1:
        angle = torch.atan2(across.clamp(min=eps**2).sqrt(), cosine)
        return 2 * torch.erfinv((angle / math.pi).clamp(max=1 - eps)).square()
    # sin^2(a / 2) in front of the equator and cos^2(a / 2) behind it, to all their digits
    front = cosine > 0
    part = (across / (2 * (1 + cosine.abs()))).clamp(min=torch.finfo(cosine.dtype).tiny if dim == 2 else eps**2)
    if dim == 2:
        return torch.where(front, -2 * torch.log1p(-part.clamp(max=0.75)), -2 * part.log())
    return 4 * torch.where(front, part / (1 - part.clamp(max=0.75)), (1 - part) / part)


@torch.no_grad()
def find_direction(log_density: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a density over directions is high: the best of 40 places on the sphere and some near it, one direction after the other.

    Args:
        log_density: Log-density of unit vectors of the shape of ``start``, ``(*, n)``.
        start: Where the other directions begin. More than 32 directions are left there.

    Example:
        >>> found = find_direction(lambda y: 5 * y[2], torch.tensor([1.0, 0.0, 0.0]))
        >>> found[2].item() > 0.8
        True
    """
    rows = start.clone().reshape(-1, start.shape[-1])
    if len(rows) > _MOST_DIRECTIONS:
        return start.clone()
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.randn(_NUM_DIRECTIONS, rows.shape[-1], generator=generator, dtype=torch.float64, device="cpu").to(rows)
    for i in range(len(rows)):
        best, highest = rows[i].clone(), -math.inf
        for spread in (math.inf, 0.5, 0.15):
            places = noise if math.isinf(spread) else best + spread * noise
            for place in (best, *project_to_sphere(places)):
                rows[i] = place
                value = float(log_density(rows.reshape(start.shape)))
                if math.isfinite(value) and value > highest:
                    best, highest = place.clone(), value
        rows[i] = best
    return rows.reshape(start.shape)


@biject_to.register(SPHERE)
def _chart_of_sphere(_: constraints.Constraint) -> SphereChart:
    """With the last axis as its centre; guides choose better ones."""
    return SphereChart()
