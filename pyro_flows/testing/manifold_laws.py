"""The laws of a transform of a sphere, a torus, a product of circles and lines, or a simplex."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.distributions import FlowDistribution
from pyro_flows.manifolds import IsometricLogRatio, log_volume_ratio, project_to_simplex, project_to_sphere
from pyro_flows.manifolds.sphere import SPHERE
from pyro_flows.manifolds.torus import circles_of, wrapped
from pyro_flows.transforms.core import FlowTransform

from .case import Case, Law, directions, law, require
from .transform_laws import LAWS

#: Laws of transforms of vectors that hold on manifolds as they are.
_SHARED = (
    "batch_shapes",
    "context_broadcasts",
    "gradients_are_right",
    "no_tensor_on_a_default_device",
    "compiles_in_one_graph",
    "vmaps",
    "parameters_may_be_passed",
    "cache_is_never_stale",
    "copies_and_pickles",
    "state_dict_holds_everything",
    "starts_near_the_identity",
)
MANIFOLD_LAWS: dict[str, Law] = {}


@dataclass(frozen=True)
class ManifoldCase(Case):
    """A transform of a manifold under test, whose domain says of which.

    Example:
        >>> from pyro_flows.manifolds import Moebius
        >>> case = ManifoldCase(Moebius, 3, 0, torch.float64, 0)
        >>> case.dim, round(case.inputs(2).norm(dim=-1)[0].item(), 6)
        (2, 1.0)
    """

    def inputs(self, *batch: int, scale: float = 1.0) -> Tensor:
        """Points ``(*batch, n)`` of the manifold, whatever the scale."""
        noise = super().inputs(*batch)
        if self.circles is not None:
            return wrapped(noise.where(~self._is_circle, 2 * noise), self._is_circle)
        return project_to_sphere(noise) if self.on_sphere else noise.softmax(-1)

    @functools.cached_property
    def domain(self) -> constraints.Constraint:
        """Where points lie."""
        return self.fresh().domain

    @property
    def circles(self) -> tuple[bool, ...] | None:
        """Which variables are angles; None where it is no torus."""
        return circles_of(self.domain)

    @property
    def on_sphere(self) -> bool:
        """Whether points are unit vectors."""
        return self.domain is SPHERE

    @property
    def _is_circle(self) -> Tensor:
        return torch.tensor(self.circles or (False,) * self.input_dim)

    @property
    def dim(self) -> int:
        """Dimension of the manifold."""
        return self.input_dim if self.circles is not None else self.input_dim - 1

    def project(self, x: Tensor) -> Tensor:
        """Points ``(*, n)`` near the manifold to points on it."""
        if self.circles is not None:
            return x
        return project_to_sphere(x) if self.on_sphere else project_to_simplex(x)

    def apart(self, a: Tensor, b: Tensor) -> float:
        """Largest distance of points, of angles around the circle."""
        gap = wrapped((a - b).detach(), self._is_circle)
        return float(gap.abs().max()) if gap.numel() else 0.0


def _on(case: Case) -> ManifoldCase:
    if not isinstance(case, ManifoldCase):
        raise TypeError(f"this law is for a ManifoldCase, got {type(case).__name__}")
    return case


@law(MANIFOLD_LAWS)
def _stays_on_the_manifold(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(12), case.context()
    for name, method in directions(transform):
        inside = transform.codomain.check(method(x, context)[0]).all()
        require(bool(inside), f"{name}: a value is not in {transform.codomain}")


@law(MANIFOLD_LAWS)
def _round_trip_on_the_manifold(case: Case) -> None:
    case = _on(case)
    transform, x, context = case.build(), case.inputs(12), case.context()
    allowed = case.tolerance(1e-9, 2e-3)
    for there, back, name in (
        (transform.forward_and_log_det, transform.inverse_and_log_det, "inverse of forward"),
        (transform.inverse_and_log_det, transform.forward_and_log_det, "forward of inverse"),
    ):
        y, log_ratio = there(x, context)
        again, opposite = back(y, context)
        error = case.apart(again, x)
        require(error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}")
        error = float((log_ratio + opposite).detach().abs().max())
        require(error <= 10 * allowed, f"{name}: log-ratios are opposite to {error:.3g}, allowed {10 * allowed:.3g}")


@law(MANIFOLD_LAWS)
def _log_det_is_that_of_the_oracle(case: Case) -> None:
    case = _on(case)
    transform, context = case.build(), case.context()
    if transform.log_det_kind != "exact" or case.dtype != torch.float64:
        return
    allowed, vectorise = max(1e-9, case.accuracy), not transform.eager_only
    for name, method in directions(transform):
        x = case.inputs(8 if vectorise else 3)
        found = method(x, context)[1]
        mapped = lambda v, m=method: m(v, context)[0]  # noqa: E731
        _, truth = log_volume_ratio(mapped, x, case.project, case.dim, vectorise=vectorise)
        error = float((found - truth).detach().abs().max())
        require(error <= 10 * allowed, f"{name}: log-ratio against the oracle is off by {error:.3g}, allowed {10 * allowed:.3g}")


@law(MANIFOLD_LAWS)
def _draws_have_the_density(case: Case) -> None:
    """Mean ratio of the base's density to that of the flow, 4,000 draws, within five standard errors.

    Not where lines have no such base, nor in many dimensions, where few draws make most of the ratio.
    """
    case = _on(case)
    transform = case.conditioned()
    if transform.log_det_kind != "exact":
        return
    q = FlowDistribution(transform)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(case.seed)
        y, log_q = q.rsample_and_log_prob((4000,))
    allowed = case.tolerance(1e-8, 1e-2)
    error = float((q.log_prob(y) - log_q).detach().abs().max())
    require(error <= allowed, f"log_prob of draws is off by {error:.3g} from what they were drawn with, allowed {allowed:.3g}")
    if case.dim <= 3 and (case.circles is None or all(case.circles)):
        ratio = (q.base.log_prob(y) - log_q).exp().double()
        bound = 5 * float(ratio.std()) / len(ratio) ** 0.5 + 1e-6
        error = abs(float(ratio.mean()) - 1)
        require(error <= bound, f"the mean of p / q over draws is off from 1 by {error:.3g}, allowed {bound:.3g}")


@law(MANIFOLD_LAWS)
def _density_integrates_to_one(case: Case) -> None:
    case = _on(case)
    grid = _grid(case)
    if grid is None or case.dtype != torch.float64:
        return
    points, weights = grid
    for name, transform in (("flow", case.conditioned()), ("inverse of the flow", case.conditioned().inv)):
        if transform.log_det_kind != "exact":
            return
        with torch.no_grad():
            total = float((FlowDistribution(transform).log_prob(points).exp() * weights).sum())
        require(abs(total - 1) < 2e-3, f"the density of the {name} integrates to {total:.5f}")


def _grid(case: ManifoldCase) -> tuple[Tensor, Tensor] | None:
    """Points and weights of a quadrature on the circle, the sphere in three dimensions, tori and simplices of two; else None."""

    def midpoints(count: int, low: float, high: float) -> tuple[Tensor, float]:
        step = (high - low) / count
        return low + step * (torch.arange(count, dtype=case.dtype) + 0.5), step

    angle, step = midpoints(4000 if case.dim == 1 else 300, -math.pi, math.pi)
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    if case.circles is not None:
        if not all(case.circles) or case.dim > 2:
            return None
        points = torch.cartesian_prod(*[angle] * case.dim).reshape(-1, case.dim)
        return points, torch.full(points.shape[:1], step**case.dim, dtype=case.dtype)
    if case.on_sphere and case.dim == 1:
        return ring, torch.full(ring.shape[:1], step, dtype=case.dtype)
    if case.on_sphere and case.dim == 2:  # even in height and angle, which is even in area
        height, rise = midpoints(300, -1.0, 1.0)
        across = (1 - height.square()).sqrt()[:, None, None] * ring
        points = torch.cat([across, height[:, None, None].expand(*across.shape[:-1], 1)], -1).reshape(-1, 3)
        return points, torch.full(points.shape[:1], rise * step, dtype=case.dtype)
    if not case.on_sphere and case.dim == 2:
        z, width = midpoints(400, -25.0, 25.0)
        points, log_det = IsometricLogRatio(3).to(case.dtype).forward_and_log_det(torch.cartesian_prod(z, z))
        inside = (points > 1e-14).all(-1)
        return points[inside], (log_det.exp() * width**2)[inside]
    return None


@law(MANIFOLD_LAWS)
def _poles_seams_and_antipodes(case: Case) -> None:
    case = _on(case)
    transform, context = case.build(), case.context()
    for name, method in directions(transform):
        x = _special(case).requires_grad_()
        y, log_ratio = method(x, context)
        finite = torch.isfinite(y).all() & torch.isfinite(log_ratio).all()
        require(bool(finite), f"{name}: not finite at a pole, a seam or an antipode")
        if log_ratio.requires_grad:
            (gradient,) = torch.autograd.grad(log_ratio.sum(), x, allow_unused=True)
            require(
                gradient is None or not bool(torch.isnan(gradient).any()), f"{name}: the gradient of the log-ratio is NaN there"
            )
        back = dict(directions(transform))["inverse" if name == "forward" else "forward"](y, context)[0]
        # Where a map stretches by much, what rounding of its value costs is that much larger.
        allowed = case.tolerance(1e-6, 5e-3)
        error = case.apart(back, x)
        require(error <= allowed, f"{name} and back at a pole, a seam or an antipode: off by {error:.3g}, allowed {allowed:.3g}")


def _special(case: ManifoldCase) -> Tensor:
    """Poles and their neighbours, antipodes, both sides of seams; of a simplex points near its middle and its corners."""
    n, dtype = case.input_dim, case.dtype
    if case.circles is not None:
        edge = math.pi * (1 - 8 * torch.finfo(dtype).eps)
        return torch.tensor([-math.pi, -edge, 0.0, edge], dtype=dtype)[:, None].expand(-1, n).clone()
    eye = torch.eye(n, dtype=dtype)
    if case.on_sphere:
        near = project_to_sphere(eye + 1e-6)
        return torch.cat([eye, -eye, near, -near, near.flip(-1)])
    return torch.cat([torch.full((1, n), 1 / n, dtype=dtype), project_to_simplex(eye + 1e-3)])


for _name in _SHARED:
    MANIFOLD_LAWS[_name] = LAWS[_name]


def is_manifold(transform: FlowTransform) -> bool:
    """Whether points of a transform lie on a sphere, a torus or a simplex.

    Example:
        >>> from pyro_flows.manifolds import Moebius
        >>> is_manifold(Moebius(3))
        True
    """
    domain = transform.domain
    return domain is SPHERE or circles_of(domain) is not None or domain is constraints.simplex
