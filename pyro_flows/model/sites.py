"""What a sample site is: enumerated or continuous, on which support, and where its guide may start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import IndependentTransform

from pyro_flows.manifolds.sphere.geometry import SPHERE
from pyro_flows.manifolds.torus.angles import ANGLE
from pyro_flows.transforms.supports import is_kind

from .circle import CircleTransform
from .sphere import SphereChart

Site = dict[str, Any]

#: Distributions of a location and a scale on the whole line.
LOCATION_SCALE = (dist.Normal, dist.Cauchy, dist.Laplace, dist.StudentT, dist.Gumbel)


def innermost(fn: Any) -> Any:
    """The distribution inside ``Independent``, masked and expanded wrappers.

    Example:
        >>> type(innermost(dist.Normal(torch.zeros(2), 1.0).to_event(1))).__name__
        'Normal'
    """
    while hasattr(fn, "base_dist") and isinstance(fn, (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def location_and_log_scale(fn: Any, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    """Location and log-scale of a prior in unconstrained coordinates, both of a shape; None if it has none.

    Example:
        >>> location_and_log_scale(dist.LogNormal(2.0, 1.0), torch.Size([2]))
        (tensor([2., 2.]), tensor([0., 0.]))
        >>> location_and_log_scale(dist.Gamma(2.0, 1.0), torch.Size([2]))
    """
    base = innermost(fn)
    if isinstance(base, dist.LogNormal):
        base = innermost(base.base_dist)
    if not isinstance(base, LOCATION_SCALE):
        return None
    return base.loc.expand(shape), base.scale.log().expand(shape)


def site_support(fn: Any) -> constraints.Constraint:
    r"""Support of a site's distribution, with circles recognised.

    Pyro declares ``VonMises`` real and ``SineBivariateVonMises`` a real vector; a density on the whole line is
    improper there. Both are taken on one period, :math:`(-\pi, \pi)`.

    The components of a mixture share a support, and that is taken.

    Example:
        >>> site_support(dist.VonMises(0.0, 1.0)).lower_bound
        -3.141592653589793
    """
    if is_circular(fn):
        return constraints.independent(ANGLE, fn.event_dim) if fn.event_dim else ANGLE
    return _without_mixture(fn.support)


def _without_mixture(support: constraints.Constraint) -> constraints.Constraint:
    """The support that the components of a mixture share, for which bijections are registered; as it is if they share none."""
    if isinstance(support, constraints.independent):
        return constraints.independent(_without_mixture(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, constraints.MixtureSameFamilyConstraint) and not _has_bounds(support.base_constraint):
        return support.base_constraint
    return support


def _has_bounds(support: constraints.Constraint) -> bool:
    """Whether it is bounded by tensors with a dimension, one entry per component."""
    parts = vars(support).values()
    return any(
        part.dim() > 0 if isinstance(part, Tensor) else isinstance(part, constraints.Constraint) and _has_bounds(part)
        for part in parts
    )


def is_circular(fn: Any) -> bool:
    """Whether a site lives on a circle or torus that Pyro declares real.

    Example:
        >>> is_circular(dist.Normal(0.0, 1.0))
        False
    """
    return isinstance(innermost(fn), (dist.VonMises, dist.SineBivariateVonMises))


def is_cut(fn: Any) -> bool:
    """Whether a site lives on a circle, a torus or a sphere, whose coordinates are cut somewhere.

    Example:
        >>> is_cut(dist.VonMises(0.0, 1.0)), is_cut(dist.Normal(0.0, 1.0))
        (True, False)
    """
    return is_circular(fn) or is_kind(fn.support, SPHERE)


def site_transform(fn: Any, centre: Tensor | None = None) -> Any:
    """Bijection from unconstrained values to the support of a site, as ``biject_to`` but right on circles and spheres.

    Args:
        fn: Distribution of the site.
        centre: For a circle or a sphere, the value opposite which it is cut; zero, or the last axis, if None.

    Raises:
        ValueError: If no bijection is known for the support.

    Example:
        >>> site_transform(dist.LogNormal(0.0, 1.0))(torch.tensor(0.0))
        tensor(1.)
    """
    support = site_support(fn)
    if is_circular(fn):
        circle = CircleTransform(torch.zeros(()) if centre is None else centre)
        return IndependentTransform(circle, fn.event_dim) if fn.event_dim else circle
    if is_kind(support, SPHERE):
        chart = SphereChart(centre)
        return IndependentTransform(chart, fn.event_dim - 1) if fn.event_dim > 1 else chart
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"no bijection from unconstrained values to the support {support} of {type(innermost(fn)).__name__} is "
            f"known; register one with torch.distributions.biject_to.register"
        ) from error


def is_enumerated(site: Site) -> bool:
    """Whether a site is discrete and marked ``infer={"enumerate": "parallel"}``, so that ``TraceEnum_ELBO`` sums over it.

    Example:
        >>> site = {"type": "sample", "fn": dist.Bernoulli(0.5), "is_observed": False}
        >>> is_enumerated({**site, "infer": {"enumerate": "parallel"}})
        True
    """
    if site["type"] != "sample" or site["is_observed"] or (site.get("infer") or {}).get("enumerate") != "parallel":
        return False
    return bool(getattr(site["fn"], "has_enumerate_support", False))


def support_centre(fn: Any) -> Tensor:
    """The point of a support that lies at zero in unconstrained coordinates; needs no sampling.

    Example:
        >>> support_centre(dist.Uniform(0.0, 2.0))
        tensor(1.)
    """
    transform = site_transform(fn)
    shape = transform.inverse_shape(fn.shape())
    like = next((v for v in vars(innermost(fn)).values() if isinstance(v, Tensor) and v.is_floating_point()), None)
    zeros = torch.zeros(shape) if like is None else torch.zeros(shape, dtype=like.dtype, device=like.device)
    return transform(zeros)


class InitToSupport:
    """An initialisation strategy that falls back to :func:`support_centre` where a prior cannot be sampled.

    Args:
        init_loc_fn: Pyro initialisation strategy, ``site -> value``.

    Example:
        >>> from pyro.infer.autoguide.initialization import init_to_median
        >>> flat = dist.ImproperUniform(dist.constraints.positive, (), ())
        >>> InitToSupport(init_to_median)({"type": "sample", "name": "s", "fn": flat})
        tensor(1.)
    """

    def __init__(self, init_loc_fn: Callable[[Any], Tensor]) -> None:
        self.init_loc_fn = init_loc_fn

    def __call__(self, site: Site) -> Tensor:
        if site["fn"].support.is_discrete:
            return site["fn"].sample()  # an enumerated site has no start; any of its values serves
        try:
            return self.init_loc_fn(site)
        except NotImplementedError:
            return support_centre(site["fn"])


def is_subsample(site: Site) -> bool:
    """Whether a site is a plate's draw of indices.

    Example:
        >>> is_subsample({"type": "sample", "fn": dist.Normal(0.0, 1.0)})
        False
    """
    return type(site["fn"]).__name__ == "_Subsample"


def is_deterministic(site: Site) -> bool:
    """Whether a site is a ``pyro.deterministic``.

    Example:
        >>> is_deterministic({"type": "sample", "infer": {"_deterministic": True}})
        True
    """
    return bool((site.get("infer") or {}).get("_deterministic"))


def is_factor(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``.

    Example:
        >>> is_factor({"fn": dist.Unit(torch.tensor(1.0))})
        True
    """
    return type(site["fn"]).__name__ == "Unit"
