"""Circular latents: one period of an angle, cut opposite the place where the posterior is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.distributions import TransformModule
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.manifolds.torus.angles import ANGLE, wrap

_NUM_ANGLES = 24
_MOST_ANGLES = 64


class CircleTransform(TransformModule):  # type: ignore[misc]
    r"""Bijection from the line to the circle without the point opposite a centre :math:`c`, elementwise.

    :math:`y = c + 2\pi\,\Phi(x) - \pi` with the normal distribution function, wrapped to :math:`[-\pi, \pi)`, so that a uniform
    angle is a standard normal :math:`x`. Every angle, wrapped or not, has an inverse. The cut lies at :math:`c \pm \pi`, so
    :math:`c` belongs where the mass is. It is a buffer, and moves with ``state_dict``.

    Args:
        centre: The angles :math:`c`, of the shape of one value.

    Example:
        >>> circle = CircleTransform(torch.tensor(3.0))
        >>> round(circle.inv(circle(torch.tensor(0.5)) + 4 * math.pi).item(), 4)
        0.5
    """

    domain = constraints.real
    codomain = ANGLE
    bijective = True
    sign = 1
    centre: Tensor

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", wrap(centre.detach().clone()))

    def _call(self, x: Tensor) -> Tensor:
        return wrap(math.pi * torch.erf(x * math.sqrt(0.5)) + self.centre)

    def _inverse(self, y: Tensor) -> Tensor:
        # The cut itself is taken as the nearest angle beside it.
        most = 1 - torch.finfo(y.dtype).eps
        return math.sqrt(2) * torch.erfinv((wrap(y - self.centre) / math.pi).clamp(-most, most))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\log|dy/dx|`, of the shape of ``x``."""
        return 0.5 * math.log(2 * math.pi) - 0.5 * x.square()


@torch.no_grad()
def find_centre(log_density: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a density over angles is high: the best of 24 places around the circle, one angle after the other.

    Args:
        log_density: Log-density of angles of the shape of ``start``.
        start: Where the other angles begin. More than 64 angles are left there.

    Example:
        >>> find_centre(lambda angle: (angle - 3.1).cos(), torch.tensor(0.0)).item() > 3.0
        True
    """
    centre = start.clone()
    if centre.numel() > _MOST_ANGLES:
        return centre
    flat = centre.reshape(-1)
    steps = torch.arange(1, _NUM_ANGLES + 1, dtype=flat.dtype, device=flat.device) * (2 * math.pi / _NUM_ANGLES) - math.pi
    for i in range(len(flat)):
        values = []
        for angle in steps:
            flat[i] = angle
            value = float(log_density(flat.reshape(start.shape)))
            values.append(value if math.isfinite(value) else -math.inf)
        flat[i] = steps[max(range(_NUM_ANGLES), key=values.__getitem__)]
    return flat.reshape(start.shape)
