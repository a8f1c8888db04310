"""Every transform of a manifold: stays there, has an inverse, the volume ratio of the oracle, a density that integrates to one."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import pyro_flows as pf
from pyro_flows import manifolds as m
from pyro_flows.distributions import FlowDistribution
from pyro_flows.nn import VelocityMLP
from pyro_flows.transforms import Affine, Compose, MoebiusMixture, NonCompactProjection

F64 = torch.float64
# Steps that adapt look at values, which the oracle's vmap does not allow.
GRID = {"solver": "rk4", "num_steps": 10, "tolerance": 5e-4}
SPHERES = {
    "NormalizedAffine": m.NormalizedAffine,
    "NormalizedLinear": m.NormalizedLinear,
    "NormalizedTranslation": m.NormalizedTranslation,
    "Moebius": m.Moebius,
    "ExponentialMap": m.ExponentialMap,
    "CylinderSpline": lambda n, c: m.CylinderSpline(n, c, hidden_dims=(8,)),
    "CylinderSpline, other axis": lambda n, c: m.CylinderSpline(n, c, hidden_dims=(8,), axis=0),
    "SphereCNF": lambda n, c: m.SphereCNF(VelocityMLP(n, c, (8, 8)), **GRID),
    "SphereFreeForm": lambda n, c: m.SphereFreeForm(n, c, hidden_dims=(6,)),
    "a composition": lambda n, c: Compose([m.Moebius(n, c), m.ExponentialMap(n), m.CylinderSpline(n, c, hidden_dims=(8,)).inv]),
}
TORI = {
    "CircularCoupling": lambda n, c: m.CircularCoupling(n, c, hidden_dims=(8,)),
    "CircularCoupling, Möbius": lambda n, c: m.CircularCoupling(
        n, c, hidden_dims=(8,), circle_map=MoebiusMixture, mask=[i > 0 for i in range(n)]
    ),
    "CircularAutoregressive": lambda n, c: m.CircularAutoregressive(n, c, hidden_dims=(8,)),
    "CircularAutoregressive, projection": lambda n, c: m.CircularAutoregressive(
        n, c, hidden_dims=(8,), circle_map=NonCompactProjection, order=list(range(n))[::-1]
    ),
    "circles and lines, TorusCNF": lambda n, c: m.TorusCNF(
        VelocityMLP(n + (n + 1) // 2, c, (6, 6), time="concat"), [i % 2 == 0 for i in range(n)], **GRID
    ),
    "circles and lines, TorusFreeForm": lambda n, c: m.TorusFreeForm(
        n, c, hidden_dims=(6,), circles=[i % 2 == 0 for i in range(n)]
    ),
    "circles and lines, coupling": lambda n, c: m.CircularCoupling(
        n, c, hidden_dims=(8,), circles=[i % 2 == 0 for i in range(n)], line_map=Affine
    ),
    "circles and lines, autoregressive": lambda n, c: m.CircularAutoregressive(
        n, c, hidden_dims=(8,), circles=[i % 2 == 1 for i in range(n)]
    ),
}
SIMPLICES = {
    "Calibration": m.Calibration,
    "Calibration, temperature": lambda n, c: m.Calibration(n, c, shift=False),
    "GeneralizedCalibration": m.GeneralizedCalibration,
}
FAMILIES = {
    **{name: ("sphere", build) for name, build in SPHERES.items()},
    **{name: ("torus", build) for name, build in TORI.items()},
    **{name: ("simplex", build) for name, build in SIMPLICES.items()},
}
PROJECTIONS = {"sphere": m.project_to_sphere, "torus": lambda x: x, "simplex": m.project_to_simplex}
CASES = [(n, c) for n in (2, 3, 4, 10) for c in (0, 3)]


def points(kind, *shape):
    noise = torch.randn(*shape, dtype=F64)
    if kind == "torus":
        return 2 * math.pi * (torch.rand(*shape, dtype=F64) - 0.5)
    return m.project_to_sphere(noise) if kind == "sphere" else noise.softmax(-1)


def built(name, n, c=0, dtype=F64):
    torch.manual_seed(n + 100 * c)
    scale = 0.1 if FAMILIES[name][0] == "simplex" else 0.2  # powers of probabilities are soon beyond all digits
    transform = FAMILIES[name][1](n, c).to(dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return transform


def apart(kind, a, b, circles=None):
    """Largest distance, of angles around the circle."""
    gap = (a - b).detach()
    if circles is not None:
        around = torch.remainder(gap + math.pi, 2 * math.pi) - math.pi
        gap = torch.where(torch.tensor(circles), around, gap)
    return float(gap.abs().max())


def test_a_rotation_has_no_ratio():
    q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=F64))
    x = points("sphere", 5, 4)
    y, log_ratio = m.Rotation(q).forward_and_log_det(x)
    torch.testing.assert_close(y, x @ q.T)
    torch.testing.assert_close(m.Rotation(q).inv(y), x)
    assert bool((log_ratio == 0).all())


def circles_of(transform):
    from pyro_flows.manifolds.torus import circles_of as found

    return found(transform.domain)


@pytest.mark.parametrize(("n", "c"), CASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_both_directions_and_the_ratio_of_the_oracle(name, n, c):
    kind, transform = FAMILIES[name][0], built(name, n, c)
    x, context = points(kind, 12, n), torch.randn(c, dtype=F64) if c else None
    y, log_ratio = transform.forward_and_log_det(x, context)
    assert bool(transform.codomain.check(y).all())
    back, log_ratio_back = transform.inverse_and_log_det(y, context)
    allowed = max(1e-9, transform.accuracy)
    assert apart(kind, back, x, circles_of(transform)) < allowed
    assert float((log_ratio_back + log_ratio).detach().abs().max()) < allowed
    dim = n if kind == "torus" else n - 1
    _, truth = m.log_volume_ratio(lambda v: transform.forward_and_log_det(v, context)[0], x, PROJECTIONS[kind], dim)
    assert float((log_ratio - truth).detach().abs().max()) < allowed
    _, truth = m.log_volume_ratio(lambda v: transform.inverse_and_log_det(v, context)[0], y, PROJECTIONS[kind], dim)
    assert float((log_ratio_back - truth).detach().abs().max()) < 10 * allowed


@pytest.mark.parametrize("name", FAMILIES)
def test_starts_near_the_identity_and_copies(name):
    kind = FAMILIES[name][0]
    transform = FAMILIES[name][1](3, 0).double()
    x = points(kind, 20, 3)
    y = transform(x)
    assert apart(kind, y, x, circles_of(transform)) < 0.1
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(other(x), y)


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_contexts_and_default_devices(name):
    kind, transform = FAMILIES[name][0], built(name, 3, 2)
    x, context = points(kind, 4, 1, 3), torch.randn(5, 2, dtype=F64)
    y, log_ratio = transform.forward_and_log_det(x, context)
    assert y.shape == (4, 5, 3) and log_ratio.shape == (4, 5)
    one, log_one = transform.forward_and_log_det(x[2, 0], context[3])
    torch.testing.assert_close(y[2, 3], one)
    torch.testing.assert_close(log_ratio[2, 3], log_one)
    with torch.device("meta"):
        there = transform.forward_and_log_det(x, context)[0]
        back = transform.inverse_and_log_det(y, context)[0]
    assert there.device.type == back.device.type == "cpu"
    assert transform.forward_and_log_det(x[:0], context)[0].shape == (0, 5, 3)
    with pytest.raises(ValueError, match="needs a context"):
        transform.forward_and_log_det(x)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_both_directions(name):
    kind, transform = FAMILIES[name][0], built(name, 3)
    parameters = list(transform.parameters())
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        x = points(kind, 3, 3)

        def objective(direction=direction, x=x):
            y, log_ratio = direction(x)
            return y.sin().sum() + log_ratio.cos().sum()

        gradients = torch.autograd.grad(objective(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            way, step = torch.randn_like(parameter), 1e-5
            with torch.no_grad():
                parameter.add_(step * way)
                up = objective()
                parameter.sub_(2 * step * way)
                down = objective()
                parameter.add_(step * way)
            expected = float((up - down).detach() / (2 * step))
            found = 0.0 if gradient is None else float((gradient * way).sum())
            assert abs(found - expected) < 1e-5 * (1 + abs(expected)), parameter.shape


def circle_grid(count):
    angle = (torch.arange(count, dtype=F64) + 0.5) * 2 * math.pi / count - math.pi
    return torch.stack([angle.cos(), angle.sin()], -1), torch.full((count,), 2 * math.pi / count, dtype=F64)


def sphere_grid(count):
    """Even in height and angle, which is even in area."""
    h = (torch.arange(count, dtype=F64) + 0.5) * 2 / count - 1
    ring, _ = circle_grid(count)
    r = (1 - h.square()).sqrt()
    grid = torch.cat([r[:, None, None] * ring, h[:, None, None].expand(-1, count, 1)], -1)
    return grid.reshape(-1, 3), torch.full((count * count,), 4 * math.pi / count**2, dtype=F64)


def torus_grid(count):
    angle = (torch.arange(count, dtype=F64) + 0.5) * 2 * math.pi / count - math.pi
    return torch.cartesian_prod(angle, angle), torch.full((count * count,), (2 * math.pi / count) ** 2, dtype=F64)


def simplex_grid(count):
    """By isometric log-ratio coordinates, with the density of these."""
    z = torch.linspace(-25, 25, count, dtype=F64)
    p, log_det = m.IsometricLogRatio(3).double().forward_and_log_det(torch.cartesian_prod(z, z))
    keep = (p > 1e-14).all(-1)
    return p[keep], (log_det.exp() * (z[1] - z[0]) ** 2)[keep]


@pytest.mark.parametrize("name", [name for name, (kind, _) in FAMILIES.items() if kind != "torus" or "lines" not in name])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_density_integrates_to_one(name, inverse):
    kind = FAMILIES[name][0]
    for n in (2, 3) if kind == "sphere" else (2,) if kind == "torus" else (3,):
        transform = built(name, n)
        q = FlowDistribution(transform.inv if inverse else transform)
        grid, weights = {"sphere": circle_grid if n == 2 else sphere_grid, "torus": torus_grid, "simplex": simplex_grid}[kind](
            {("sphere", 2): 4000, ("sphere", 3): 300, ("torus", 2): 300, ("simplex", 3): 400}[kind, n]
        )
        with torch.no_grad():
            total = float((q.log_prob(grid).exp() * weights).sum())
        assert abs(total - 1) < 2e-3, total


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_have_the_density(name):
    """Mean log-density of draws against minus the entropy by importance: E_base[log q(f(x))]; 4,000 draws, 5 standard errors."""
    kind, transform = FAMILIES[name][0], built(name, 3)
    q = pf.FlowDistribution(transform)
    y, log_q = q.rsample_and_log_prob((4000,))
    allowed = max(1e-8, transform.accuracy)
    torch.testing.assert_close(q.log_prob(y.detach()), log_q, atol=allowed, rtol=allowed)
    # E_q[p / q] = 1 for the uniform density p, or nearly so where lines are normal.
    if kind != "torus" or "lines" not in name:
        ratio = (FlowDistribution(transform).base.log_prob(y) - log_q).exp().detach()
        assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 4000**0.5 + 1e-9


@pytest.mark.parametrize("name", SPHERES)
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_poles_seams_and_antipodes(name, n, dtype):
    transform = built(name, n, dtype=dtype)
    eye = torch.eye(n, dtype=dtype)
    tiny = m.project_to_sphere(eye + 1e-6 * torch.ones(n, dtype=dtype))
    x = torch.cat([eye, -eye, tiny, -tiny, tiny.flip(-1)]).requires_grad_()
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        y, log_ratio = direction(x)
        assert bool(torch.isfinite(y).all()) and bool(torch.isfinite(log_ratio).all())
        (gradient,) = torch.autograd.grad(log_ratio.sum(), x, allow_unused=True)
        assert gradient is None or not bool(torch.isnan(gradient).any())
    y, log_ratio = transform.forward_and_log_det(x)
    back, log_back = transform.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, atol=max(1e-6 if dtype == F64 else 5e-3, transform.accuracy), rtol=0)


def test_the_oracle_has_gradients_and_refuses_points_elsewhere():
    flow = m.NormalizedLinear(3).double()
    x = points("sphere", 4, 3)
    parameter = flow.params.get_parameter("log_diagonal")
    for value in (flow.forward_and_log_det(x)[1], m.log_volume_ratio(lambda v: flow(v), x, m.project_to_sphere, 2)[1]):
        (gradient,) = torch.autograd.grad(value.cos().sum() + value.square().sum(), parameter)
        torch.testing.assert_close(gradient, torch.autograd.grad(_again(flow, x), parameter)[0], atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="must lie on the manifold"):
        m.log_volume_ratio(lambda v: v, 2 * x, m.project_to_sphere, 2)
    with pytest.raises(ValueError, match="dim must be"):
        m.log_volume_ratio(lambda v: v, x, m.project_to_sphere, 4)


def _again(flow, x):
    value = flow.forward_and_log_det(x)[1]
    return value.cos().sum() + value.square().sum()
