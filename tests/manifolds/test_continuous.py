"""Continuous flows on spheres and tori: their divergence, their ways, and flow matching along geodesics."""

from __future__ import annotations

import math

import pytest
import torch

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows import manifolds as m
from pyro_flows.nn import VelocityMLP

F64 = torch.float64
QUICK = {"seed": 0, "progress": False}


def moved(module, size=0.5):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p += size * torch.randn(p.shape, generator=generator)
    return module.double()


def sphere(n, **options):
    return moved(m.SphereCNF(VelocityMLP(n, hidden_dims=(6, 5)), **options))


def torus(circles, **options):
    return moved(m.TorusCNF(VelocityMLP(len(circles) + sum(circles), hidden_dims=(6, 5)), circles, **options))


def units(*shape):
    return m.project_to_sphere(torch.randn(*shape, dtype=F64))


def rates(flow, x, probe=None):
    return flow._rates(flow.velocity.at(None), torch.tensor(0.3, dtype=F64), x, probe)


@pytest.mark.parametrize("n", [2, 3, 4, 10])
def test_divergence_on_the_sphere_is_the_trace_along_it(n):
    torch.manual_seed(n)
    flow = sphere(n)
    for x in units(5, n):
        at = rates(flow, x)
        jacobian = torch.autograd.functional.jacobian(lambda v: rates(flow, v).velocity, x)
        along = torch.eye(n, dtype=F64) - torch.outer(x, x)
        assert float((at.velocity * x).sum().detach().abs()) < 1e-14
        assert float((at.divergence() - (along @ jacobian).trace()).detach().abs()) < 1e-9


@pytest.mark.parametrize("circles", [(True,), (True, True), (True, False, True), (False, True)])
def test_divergence_on_the_torus_is_the_trace(circles):
    torch.manual_seed(len(circles))
    flow = torus(circles)
    for x in 3 * torch.randn(5, len(circles), dtype=F64):
        jacobian = torch.autograd.functional.jacobian(lambda v: rates(flow, v).velocity, x)
        assert float((rates(flow, x).divergence() - jacobian.trace()).detach().abs()) < 1e-9


@pytest.mark.parametrize("build", [lambda **o: sphere(3, **o), lambda **o: torus((True, False), **o)])
def test_estimates_are_the_divergence_in_the_mean(build):
    # 20,000 probes: within 4 standard errors but in one of 16,000 runs.
    torch.manual_seed(1)
    exact, estimated = build(), build(trace="estimate")
    estimated.load_state_dict(exact.state_dict())
    assert estimated.log_det_kind == "estimate"
    x = units(3) if isinstance(exact, m.SphereCNF) else torch.randn(2, dtype=F64)
    probe = torch.randn(20_000, *x.shape, dtype=F64)
    with torch.no_grad():
        found = rates(estimated, x.expand(probe.shape), probe).divergence()
        truth = rates(exact, x).divergence()
    assert float(found.std()) > 0.01
    assert abs(float(found.mean() - truth)) < 4 * float(found.std()) / math.sqrt(20_000)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_adaptive_solves_stay_on_the_sphere_and_come_back(n):
    torch.manual_seed(n)
    flow = sphere(n, tolerance=1e-7)
    x = units(20, n)
    y, log_ratio = flow.forward_and_log_det(x)
    back, log_back = flow.inverse_and_log_det(y)
    assert float((y.norm(dim=-1) - 1).detach().abs().max()) < 1e-14
    assert float((y - x).detach().abs().max()) > 0.1
    assert float((back - x).detach().abs().max()) < 1e-6
    assert float((log_ratio + log_back).detach().abs().max()) < 1e-5


def test_geodesics_of_spheres_have_constant_speed():
    x, y = units(8, 3), units(8, 3)
    distance = torch.acos((x * y).sum(-1).clamp(-1, 1))
    flow = sphere(3)
    for share in (0.0, 0.25, 1.0):
        at, speed = flow.geodesic(x, y, torch.full((8,), share, dtype=F64))
        ahead, _ = flow.geodesic(x, y, torch.full((8,), share + 1e-6, dtype=F64))
        torch.testing.assert_close(speed.norm(dim=-1), distance)
        torch.testing.assert_close((ahead - at) / 1e-6, speed, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.acos((x * at).sum(-1).clamp(-1, 1)), share * distance, atol=1e-7, rtol=0)
    torch.testing.assert_close(flow.geodesic(x, y, torch.ones(8, dtype=F64))[0], y)
    for end in (x, -x):
        assert bool(torch.isfinite(torch.cat(flow.geodesic(x, end, torch.full((8,), 0.5, dtype=F64)))).all())


def test_geodesics_of_circles_go_the_shorter_way_round():
    flow = torus((True, False))
    at, speed = flow.geodesic(torch.tensor([3.0, 3.0]), torch.tensor([-3.0, -3.0]), torch.tensor(0.5))
    torch.testing.assert_close(speed, torch.tensor([2 * math.pi - 6, -6.0]))
    assert abs(abs(float(at[0])) - math.pi) < 1e-6 and float(at[1]) == 0


def test_flow_matching_on_the_sphere_finds_two_clusters():
    torch.manual_seed(0)
    truth = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.5, 0.5])),
        m.VonMisesFisher(torch.eye(3)[:2] * torch.tensor([[1.0], [-1.0]]), torch.tensor([20.0, 20.0])),
    )
    data, fresh = truth.sample((2000,)), truth.sample((2000,))
    options = {"flow_options": {"hidden_dims": (32, 32)}, "lr": 1e-2, "max_epochs": 40, "patience": 40, **QUICK}
    fit = pf.fit_density("sphere_cnf", data, objective="flow_matching", **options)
    # The truth has -1.1 nats, the uniform density -2.5.
    assert float((truth.log_prob(fresh) - fit.log_prob(fresh)).mean()) < 0.15
    assert float((fit.sample(500, seed=0).norm(dim=-1) - 1).abs().max()) < 1e-5


def test_flow_matching_on_a_product_of_circle_and_line_has_no_seam():
    torch.manual_seed(0)
    angle = math.pi + 0.3 * torch.randn(2000, 1)
    data = torch.cat(
        [torch.remainder(angle + math.pi, 2 * math.pi) - math.pi, 5 + 2 * (angle - math.pi) + 0.3 * torch.randn(2000, 1)], -1
    )
    flow = flows.torus_cnf(2, circles=(True, False), hidden_dims=(32, 32))
    fit = pf.fit_density(flow, data, objective="flow_matching", lr=1e-2, max_epochs=40, patience=40, **QUICK)
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3))
    assert fit.held_out > -entropy - 0.25
    at = torch.tensor([[-math.pi, 5.0], [math.pi - 1e-4, 5.0]])
    found = fit.log_prob(at)
    assert abs(float(found[0] - found[1])) < 0.01


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: m.SphereCNF(VelocityMLP(1)), "velocity.dim must be an integer of at least 2"),
        (lambda: m.TorusCNF(VelocityMLP(3)), "two variables for each angle"),
        (lambda: m.TorusCNF(VelocityMLP(4), (True, False)), "two variables for each angle"),
        (lambda: flows.sphere_cnf(3)(torch.ones(3)), "unit vectors"),
        (
            lambda: pf.fit_density(
                "sphere_cnf", units(50, 3).float(), objective="flow_matching", path="variance_preserving", **QUICK
            ),
            "is for vectors",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
