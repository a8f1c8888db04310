"""Tori, products of circles and lines, and simplices: what is known of them, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.distributions import Dirichlet

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows import manifolds as m
from pyro_flows.manifolds.simplex.geometry import helmert
from pyro_flows.transforms import CircularSpline, Compose, RationalQuadraticSpline

F64 = torch.float64


def moved(transform, scale=0.3):
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return transform.double()


@pytest.mark.parametrize("layer", [m.CircularCoupling, m.CircularAutoregressive])
def test_turns_do_not_matter(layer):
    flow = moved(layer(3, circles=(True, False, True), hidden_dims=(8,)))
    x = torch.randn(20, 3, dtype=F64)
    turned = x + 2 * math.pi * torch.tensor([1.0, 0.0, -2.0], dtype=F64)
    for one, other in zip(flow.forward_and_log_det(x), flow.forward_and_log_det(turned), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    y = flow(5 * x)
    assert bool((y[:, [0, 2]].abs() <= math.pi).all()) and bool((y[:, 1].abs() > math.pi).any())


def test_a_torus_flow_has_no_seam():
    flow = moved(Compose([m.CircularCoupling(2, hidden_dims=(8,)), m.CircularCoupling(2, hidden_dims=(8,), mask=[False, True])]))
    q = pf.FlowDistribution(flow)
    edge = torch.tensor([math.pi - 1e-8, -math.pi + 1e-8], dtype=F64)
    other = torch.linspace(-3, 3, 50, dtype=F64)
    for dim in (0, 1):
        points = torch.stack([edge[:, None].expand(2, 50), other.expand(2, 50)], -1)
        value = q.log_prob(points if dim == 0 else points.flip(-1))
        torch.testing.assert_close(value[0], value[1], atol=1e-5, rtol=0)


def test_a_torus_flow_learns_the_dependence_of_two_angles():
    """y = x + noise around the circle: a product of circles loses the mutual information, a coupling finds it."""
    torch.manual_seed(0)
    first = math.pi * (2 * torch.rand(2000) - 1)
    second = torch.remainder(first + 0.3 * torch.randn(2000) + math.pi, 2 * math.pi) - math.pi
    data = torch.stack([first, second], -1)
    flow = Compose([m.CircularCoupling(2, hidden_dims=(32, 32)), m.CircularCoupling(2, hidden_dims=(32, 32), mask=[False, True])])
    fit = pf.fit_density(flow, data, max_epochs=40, lr=1e-2, seed=0, progress=False)
    truth = -math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e * 0.09)
    assert truth - 0.2 < float(fit.log_prob(data).mean()) < truth + 0.1
    draws = fit.sample(500, seed=0)
    assert bool((draws.abs() <= math.pi).all())


def test_circles_and_lines_have_a_base_of_both():
    q = pf.FlowDistribution(m.CircularCoupling(2, circles=(True, False)))
    x = q.sample((20_000,))
    assert bool(q.support.check(x).all()) and not bool(q.support.check(torch.tensor([4.0, 0.0])))
    assert abs(float(x[:, 0].std()) - 2 * math.pi / 12**0.5) < 0.05 and abs(float(x[:, 1].std()) - 1) < 0.05
    expected = -math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi)
    assert abs(float(q.log_prob(torch.zeros(2)).detach()) - expected) < 1e-6
    assert q.double().sample().dtype == F64


def test_numbers_beside_angles_are_standardised_and_angles_are_not():
    """A line in units of its own, N(500, 30), and an angle: the density on the torus times the line integrates to one."""
    torch.manual_seed(0)
    angle = torch.remainder(0.5 * torch.randn(800) + math.pi, 2 * math.pi) - math.pi
    data = torch.stack([angle, 500 + 30 * angle.cos() + 5 * torch.randn(800)], -1)
    fit = pf.fit_density(
        "torus",
        data,
        flow_options={"circles": (True, False), "num_layers": 2, "hidden_dims": (16,)},
        max_epochs=30,
        seed=0,
        progress=False,
    )
    draws = fit.sample(2000, seed=0)
    assert bool((draws[:, 0].abs() <= math.pi).all()) and abs(float(draws[:, 1].mean() - data[:, 1].mean())) < 8
    x, y = torch.linspace(-math.pi, math.pi, 201)[:-1], torch.linspace(300, 700, 401)
    total = float(fit.log_prob(torch.cartesian_prod(x, y)).exp().sum()) * float((x[1] - x[0]) * (y[1] - y[0]))
    assert abs(total - 1) < 0.02
    assert "rows held out" in str(fit)


@pytest.mark.parametrize(
    ("event", "name"), [(event, name) for event in ("sphere", "torus", "simplex") for name in flows.names(event)]
)
def test_densities_on_manifolds_by_name(event, name):
    noise = torch.randn(64, 3)
    data = {"sphere": m.project_to_sphere(noise), "torus": noise.tanh() * math.pi, "simplex": noise.softmax(-1)}[event]
    options = {"hidden_dims": (8,), **({"tolerance": 1e-3} if name.endswith("cnf") else {"num_layers": 2})}
    fit = pf.fit_density(name, data, flow_options=options, max_epochs=2, seed=0, progress=False)
    assert fit.log_prob(data).shape == (64,) and bool(fit.distribution.support.check(fit.sample(10, seed=0)).all())
    with pytest.raises(ValueError, match="standardise must be False"):
        pf.fit_density(name, data, flow_options=options, standardise=True, progress=False) if event != "torus" else pf.fit_density(
            "simplex", noise.softmax(-1), standardise=True, progress=False
        )

    def model():
        import pyro

        pyro.sample("x", pyro.distributions.Normal(torch.zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match="flows of vectors are"):
        pf.AutoFlow(model, name).setup()
    with pytest.raises(ValueError, match="bijection of real vectors"):
        pf.diagnostics.audit_inverse(fit, data)


def test_isometric_log_ratios_are_isometric_and_have_the_density_of_a_dirichlet():
    basis = helmert(5, torch.zeros(1, dtype=F64))
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=F64))
    torch.testing.assert_close(basis.sum(-1), torch.zeros(4, dtype=F64), atol=1e-14, rtol=0)
    layer = m.IsometricLogRatio(4)
    x = torch.randn(3, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v)[..., :3], x)
    torch.testing.assert_close(layer.forward_and_log_det(x)[1], torch.linalg.slogdet(jacobian)[1])
    p, log_det = layer.forward_and_log_det(x)
    back, log_back = layer.inverse_and_log_det(p)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_back, -log_det)
    q = pf.FlowDistribution(Compose([moved(flows.nsf_coupling(3, num_layers=2), 0.1), layer]))
    draws = q.sample((20_000,))
    weights = (Dirichlet(torch.ones(4, dtype=F64) * 2).log_prob(draws) - q.log_prob(draws)).exp().detach()
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / len(draws) ** 0.5


def test_calibrations_form_a_group():
    first, second = (moved(m.GeneralizedCalibration(4)) for _ in range(2))
    p = torch.randn(10, 4, dtype=F64).softmax(-1)
    both = second.after(first)
    for found, expected in zip(both.forward_and_log_det(p), Compose([first, second]).forward_and_log_det(p), strict=True):
        torch.testing.assert_close(found, expected)
    unit = second.inv
    inverse = m.GeneralizedCalibration(4).double()
    inverse._set(torch.linalg.inv(second.inner_matrix()), -torch.linalg.solve(second.inner_matrix(), second.params()[0]))
    torch.testing.assert_close(inverse(p), unit(p))
    temperature = moved(m.Calibration(4))
    log_a, c = temperature._parts(None)
    same = m.GeneralizedCalibration.from_matrix(log_a.exp() * torch.eye(4, dtype=F64), c.detach())
    for found, expected in zip(same.forward_and_log_det(p), temperature.forward_and_log_det(p), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_calibration_of_a_given_matrix_is_that_of_its_formula():
    a = torch.randn(4, 4, dtype=F64)
    a = a - a.sum(-1, keepdim=True) / 4 + 0.5
    c, p = torch.randn(4, dtype=F64), torch.randn(10, 4, dtype=F64).softmax(-1)
    q, log_ratio = m.GeneralizedCalibration.from_matrix(a, c).forward_and_log_det(p)
    expected = (p.log() @ torch.linalg.inv(a).T + c).softmax(-1)
    torch.testing.assert_close(q, expected)
    formula = math.log(2.0) - torch.linalg.slogdet(a)[1] + q.log().sum(-1) - p.log().sum(-1)
    torch.testing.assert_close(log_ratio, formula)


def test_recalibration_of_a_classifier_by_maximum_likelihood():
    """Logits that are three times too large and shifted: temperature and shift come back, and the log-loss falls."""
    torch.manual_seed(0)
    truth = 1.5 * torch.randn(4000, 3, dtype=F64)
    labels = torch.distributions.Categorical(logits=truth).sample()
    overconfident = (3 * truth + torch.tensor([1.0, -1.0, 0.0], dtype=F64)).softmax(-1).clamp(min=1e-12)
    overconfident = overconfident / overconfident.sum(-1, keepdim=True)
    calibration = m.Calibration(3).double()
    optimiser = torch.optim.LBFGS(calibration.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -calibration(overconfident).log().gather(-1, labels[:, None]).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert abs(float(calibration.params.get_parameter("log_temperature").detach().exp()) - 3) < 0.25


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: m.CircularCoupling(2, circles=(True,)), "circles must hold 2 booleans"),
        (lambda: m.CircularCoupling(2, mask=[True, True]), "one of them False"),
        (lambda: m.CircularAutoregressive(2, order=[0, 0]), "permutation"),
        (lambda: m.CircularCoupling(2, circle_map=lambda: 3), "UnivariateMap"),
        (lambda: m.Calibration(3)(torch.tensor([0.0, 0.5, 0.5])), "must be positive, got 0"),
        (lambda: m.Calibration(3)(torch.tensor([0.2, 0.5, 0.5])), "must sum to one"),
        (lambda: m.Calibration(1), "num_components"),
        (lambda: m.IsometricLogRatio(1), "num_components"),
        (lambda: m.IsometricLogRatio(3).inv(torch.tensor([0.0, 0.5, 0.5])), "zeros have no logarithm"),
        (lambda: m.GeneralizedCalibration.from_matrix(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.zeros(2)), "same sum"),
        (lambda: m.GeneralizedCalibration.from_matrix(torch.ones(2, 2), torch.zeros(2)), "invertible"),
        (lambda: m.GeneralizedCalibration(3).after(m.GeneralizedCalibration(4)), "same number of components"),
    ],
)
def test_bad_input_is_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_circular_maps_are_the_default_and_lines_have_splines():
    layer = m.CircularCoupling(2, circles=(True, False))
    assert isinstance(layer.circle_map, CircularSpline) and isinstance(layer.line_map, RationalQuadraticSpline)
