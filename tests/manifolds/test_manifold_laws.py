"""Every transform of a manifold: stays there, has an inverse, the volume ratio of the oracle, a density that integrates to one."""

from __future__ import annotations

import pytest
import torch

from pyro_flows import manifolds as m
from pyro_flows import transforms as t
from pyro_flows.nn import VelocityMLP
from pyro_flows.testing import LAWS, MANIFOLD_LAWS, ConformanceError, check_manifold_transform
from pyro_flows.transforms import Affine, Compose, MoebiusMixture, NonCompactProjection
from pyro_flows.transforms.cnf import Rates

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
FAMILIES = {**SPHERES, **TORI, **SIMPLICES}
CASES = ((2, 0), (3, 3), (4, 0), (10, 3))
SLOW_CASES = tuple((n, c) for n in (2, 3, 4, 10) for c in (0, 3))


# One of each kind; the others are compiled with --slow.
COMPILED = {"NormalizedAffine", "CylinderSpline", "CircularCoupling", "GeneralizedCalibration"}


def cases():
    for name in FAMILIES:
        for law in MANIFOLD_LAWS:
            slow = law == "compiles_in_one_graph" and name not in COMPILED
            yield pytest.param(name, law, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "law"), list(cases()))
def test_transform_of_a_manifold_keeps_law(name, law, request):
    all_cases = SLOW_CASES if request.config.getoption("--slow") else CASES
    for n, c in all_cases if law not in LAWS else ((3, 3),):
        dtypes = (F64,) if law == "compiles_in_one_graph" else (torch.float32, F64)
        check_manifold_transform(FAMILIES[name], input_dim=n, context_dim=c, laws=[law], dtypes=dtypes)


def test_a_rotation_has_no_ratio():
    q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=F64))
    x = m.project_to_sphere(torch.randn(5, 4, dtype=F64))
    y, log_ratio = m.Rotation(q).forward_and_log_det(x)
    torch.testing.assert_close(y, x @ q.T)
    torch.testing.assert_close(m.Rotation(q).inv(y), x)
    assert bool((log_ratio == 0).all())


def test_the_oracle_has_gradients_and_refuses_points_elsewhere():
    flow = m.NormalizedLinear(3).double()
    x = m.project_to_sphere(torch.randn(4, 3, dtype=F64))
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


class OffTheSphere(m.NormalizedTranslation):
    def on_sphere(self, at, context, inverse):
        y, log_ratio = super().on_sphere(at, context, inverse)
        return 1.01 * y, log_ratio


class WrongPower(m.NormalizedTranslation):
    """Its log-ratio is that of a of a map that moves less; the two directions agree on it."""

    def on_sphere(self, at, context, inverse):
        y, log_ratio = super().on_sphere(at, context, inverse)
        return y, 0.5 * log_ratio


class OneWay(m.NormalizedTranslation):
    def on_sphere(self, at, context, inverse):
        return super().on_sphere(at, context, False)


class NanAtPoles(m.NormalizedTranslation):
    def on_sphere(self, at, context, inverse):
        y, log_ratio = super().on_sphere(at, context, inverse)
        return y, log_ratio + 0 * at[..., 0].acos()


class WrongDraws(m.NormalizedTranslation):
    def on_sphere(self, at, context, inverse):
        y, log_ratio = super().on_sphere(at, context, inverse)
        return y, log_ratio + 0.5


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (OffTheSphere, "stays_on_the_manifold"),
        (OneWay, "round_trip_on_the_manifold"),
        (WrongPower, "log_det_is_that_of_the_oracle"),
        (WrongDraws, "density_integrates_to_one"),
        (NanAtPoles, "poles_seams_and_antipodes"),
        (WrongDraws, "draws_have_the_density"),
    ],
)
def test_a_broken_transform_is_caught(broken, law):
    check_manifold_transform(m.NormalizedTranslation, laws=[law])
    with pytest.raises(ConformanceError, match=law):
        check_manifold_transform(broken, laws=[law])


@pytest.mark.parametrize("kind", ["sphere", "circle and line"])
def test_solves_that_adapt_are_held_to_the_oracle(kind):
    base = m.SphereCNF if kind == "sphere" else m.TorusCNF

    class Doubled(base):
        def _rates(self, *given):
            rates = super()._rates(*given)
            return Rates(rates.velocity, lambda: 2 * rates.divergence(), rates.pulled)

    def made(which, n, c):
        field = VelocityMLP(n if kind == "sphere" else 3, c, (8,))
        return which(field) if kind == "sphere" else which(field, (True, False))

    options = {"input_dim": 5 if kind == "sphere" else 2, "laws": ["log_det_is_that_of_the_oracle"]}
    check_manifold_transform(lambda n, c: made(base, n, c), **options)
    with pytest.raises(ConformanceError, match="against the oracle"):
        check_manifold_transform(lambda n, c: made(Doubled, n, c), **options)


def test_the_suite_is_for_manifolds():
    with pytest.raises(ValueError, match="transform of a sphere, torus or simplex"):
        check_manifold_transform(lambda d, c: Compose([t.AffineTril(d, c)]))
    with pytest.raises(ValueError, match="are unknown"):
        check_manifold_transform(m.Moebius, laws=["round_trip"])
