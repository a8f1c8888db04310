"""Sites on an interval, left as they are in the flat vector where a flow knows the bounds itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from .circle import CircleTransform
from .structure import LatentSite

_INTERVALS = (type(constraints.interval(0.0, 1.0)), type(constraints.half_open_interval(0.0, 1.0)))


class WithinInterval(Transform):
    """The identity on an interval, whose bounds themselves are taken as the nearest numbers inside.

    Rounding can put a draw on a bound, where the density of a uniform prior is zero.

    Args:
        lower: Lower bound.
        upper: Upper bound, of a shape that broadcasts.

    Example:
        >>> within = WithinInterval(torch.tensor(0.0), torch.tensor(1.0))
        >>> bool(within(torch.tensor(1.0)) < 1)
        True
    """

    bijective = True
    sign = 1
    domain = constraints.real
    codomain = constraints.real

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper

    def _call(self, x: Tensor) -> Tensor:
        lower, upper = self.lower.to(x).expand_as(x), self.upper.to(x).expand_as(x)
        return torch.minimum(torch.maximum(x, torch.nextafter(lower, upper)), torch.nextafter(upper, lower))

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero, of the shape of ``x``."""
        return torch.zeros_like(x)


def flat_transform(site: LatentSite) -> Any:
    """The transform of a site to a flat vector that keeps intervals: the identity there, that of the site elsewhere.

    Args:
        site: The site. A circle has its own transform and keeps it.

    Example:
        >>> from pyro_flows.model import read_model
        >>> def model():
        ...     pyro.sample("u", dist.Uniform(0.0, 2.0))
        >>> flat_transform(read_model(model).sites[0])(torch.tensor(1.5))
        tensor(1.5000)
    """
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    is_circle = isinstance(getattr(site.transform, "base_transform", site.transform), CircleTransform)
    if is_circle or not isinstance(support, _INTERVALS):
        return site.transform
    return WithinInterval(torch.as_tensor(support.lower_bound), torch.as_tensor(support.upper_bound))
