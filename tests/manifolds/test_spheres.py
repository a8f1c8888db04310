"""Spheres: distributions against closed forms, flows whose law is known, and refusals."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions import VonMises, VonMises3D

import pyro_flows as pf
from pyro_flows import manifolds as m
from pyro_flows.manifolds.sphere import log_normaliser
from pyro_flows.manifolds.sphere.geometry import any_frame, log_area

F64 = torch.float64


def on_sphere(*shape):
    return m.project_to_sphere(torch.randn(*shape, dtype=F64))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_uniform_distribution_has_the_moments_of_one(n):
    """Second moments 1/n; 20,000 draws, 5 standard errors for n numbers: false alarms below 1e-5."""
    uniform = m.UniformSphere(n, dtype=F64)
    x = uniform.sample((20_000,))
    error = (x.square().var(0) / len(x)).sqrt()
    assert ((x.square().mean(0) - 1 / n).abs() < 5 * error).all()
    torch.testing.assert_close(uniform.log_prob(x[0]), torch.tensor(-log_area(n), dtype=F64))
    assert uniform.expand((3, 1)).sample((2,)).shape == (2, 3, 1, n)
    assert round(math.exp(log_area(4)), 6) == round(2 * math.pi**2, 6)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 50, 300])
@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.1, 1.0, 10.0, 100.0, 1e4, 1e7])
def test_the_normaliser_is_that_of_bessel_functions(n, kappa):
    scipy = pytest.importorskip("scipy.special")
    nu = 0.5 * n - 1
    found = float(log_normaliser(torch.tensor(kappa, dtype=F64), n))
    # Hypergeometric 0F1 where the Bessel function is too small for floating point.
    if kappa < 2 * math.sqrt(nu + 1):
        expected = log_area(n) + math.log(scipy.hyp0f1(nu + 1, kappa**2 / 4)) - kappa
    else:
        expected = 0.5 * n * math.log(2 * math.pi) + math.log(scipy.ive(nu, kappa)) - nu * math.log(kappa)
    assert abs(found - expected) < 1e-10 * (1 + abs(expected))


@pytest.mark.parametrize("n", [2, 3, 4, 10])
@pytest.mark.parametrize("kappa", [0.0, 0.1, 1.0, 10.0, 1e3, 1e4])
def test_draws_of_von_mises_fisher_have_its_moments(n, kappa):
    """Mean direction and mean squared cosine against Bessel ratios; 20,000 draws, 5 standard errors: false alarms about 1e-6."""
    vmf = m.VonMisesFisher(on_sphere(n), kappa)
    x = vmf.sample((20_000,))
    assert float((x.norm(dim=-1) - 1).abs().max()) < 1e-12
    gap = 0.5 * (x - vmf.loc).square().sum(-1)  # 1 - cosine, to all its digits
    at = torch.tensor(kappa, dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(log_normaliser(at, n), at, create_graph=True)
    (second,) = torch.autograd.grad(first, at)
    first = first.detach()
    # E[cos - 1] and Var[cos] are derivatives of the log-normaliser.
    assert abs(float(gap.mean() + first)) < 5 * float(gap.std()) / len(x) ** 0.5
    assert abs(float(gap.var() - second)) < 5 * float((gap - gap.mean()).square().std()) / len(x) ** 0.5
    across = x - (1 - gap)[:, None] * vmf.loc
    assert (across.mean(0).abs() < 5 * across.std(0) / len(x) ** 0.5 + 1e-12).all()
    torch.testing.assert_close(vmf.mean_resultant_length, 1 + first)


def test_von_mises_fisher_agrees_with_pyro_where_pyro_has_it():
    angle, loc = 2.0 * torch.randn(7, dtype=F64), torch.tensor(0.7, dtype=F64)
    unit = lambda a: torch.stack([a.cos(), a.sin()], -1)  # noqa: E731
    for kappa in (0.5, 30.0):
        ours = m.VonMisesFisher(unit(loc), kappa).log_prob(unit(angle))
        torch.testing.assert_close(ours, VonMises(loc, kappa).log_prob(angle), atol=1e-6, rtol=1e-6)
        x, mu = on_sphere(7, 3), on_sphere(3)
        torch.testing.assert_close(
            m.VonMisesFisher(mu, kappa).log_prob(x), VonMises3D(kappa * mu).log_prob(x), atol=1e-6, rtol=1e-6
        )


def test_draws_in_three_dimensions_carry_gradients_and_others_say_that_they_do_not():
    mu = on_sphere(3).requires_grad_()
    kappa = torch.tensor(5.0, dtype=F64, requires_grad=True)
    x = m.VonMisesFisher(mu, kappa).rsample((50_000,))
    (found,) = torch.autograd.grad((x @ mu.detach()).mean(), kappa)
    at = kappa.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_normaliser(at, 3), at, create_graph=True)
    assert abs(float(found - torch.autograd.grad(slope, at)[0])) < 2e-3  # d/dk E[cos] = Var[cos] = 0.04
    with pytest.raises(ValueError, match="those for n = 3"):
        m.VonMisesFisher(on_sphere(4), kappa).rsample()


def test_log_densities_run_under_vmap():
    x, kappa = on_sphere(5, 4), torch.rand(5, dtype=F64)
    together = m.VonMisesFisher(on_sphere(4), kappa)
    alone = torch.func.vmap(lambda value, k: m.VonMisesFisher(together.loc[0], k, validate_args=False).log_prob(value))(x, kappa)
    torch.testing.assert_close(together.log_prob(x), alone)


@pytest.mark.parametrize("n", [2, 3, 4, 10])
def test_a_linear_flow_of_the_uniform_distribution_is_angular_central_gaussian(n):
    flow = m.NormalizedLinear(n).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    matrix = flow.matrix().detach()
    acg = m.AngularCentralGaussian(torch.linalg.cholesky(matrix @ matrix.T))
    x = on_sphere(50, n)
    torch.testing.assert_close(pf.FlowDistribution(flow).log_prob(x), acg.log_prob(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(acg.log_prob(x), acg.log_prob(-x))
    draws = acg.sample((20_000,))
    ratio = (m.UniformSphere(n, dtype=F64).log_prob(draws) - acg.log_prob(draws)).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / len(draws) ** 0.5


def test_a_translation_of_the_uniform_distribution_has_the_moments_of_its_formula():
    """On S2 the mean of y = (x + c) / |x + c| is (1 - ...) along c, by quadrature over the cosine of x; 5 standard errors."""
    flow = m.NormalizedTranslation(3).double()
    with torch.no_grad():
        flow.params.get_parameter("raw_shift").copy_(torch.tensor([0.3, -0.4, 0.5], dtype=F64))
    c = flow.shift().detach()
    size = float(c.norm())
    cosine = (torch.arange(20_000, dtype=F64) + 0.5) / 10_000 - 1
    expected = float(((cosine + size) / (1 + 2 * size * cosine + size**2).sqrt()).mean())
    y = pf.FlowDistribution(flow).sample((40_000,))
    along = y @ (c / size)
    assert abs(float(along.mean()) - expected) < 5 * float(along.std()) / 200


def test_a_moebius_map_is_conformal_and_inverts_by_its_opposite():
    flow = m.Moebius(3).double()
    with torch.no_grad():
        flow.params.get_parameter("raw_centre").copy_(torch.tensor([0.5, 0.1, -0.3], dtype=F64))
    x = on_sphere(3)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v / v.norm()), x)
    basis = any_frame(x)[:, :2]
    gram = (jacobian @ basis).T @ (jacobian @ basis)
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(2, dtype=F64), atol=1e-9, rtol=0)
    torch.testing.assert_close(gram[0, 0].log(), flow.forward_and_log_det(x)[1])


def test_frames_are_orthogonal_everywhere():
    for n in (2, 3, 7):
        points = torch.cat([torch.eye(n, dtype=F64), -torch.eye(n, dtype=F64), on_sphere(5, n)])
        frames = any_frame(points)
        torch.testing.assert_close(frames @ frames.mT, torch.eye(n, dtype=F64).expand(len(points), n, n))
        torch.testing.assert_close(frames[..., -1], points)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_flow_learns_a_ring(dtype):
    """Points about a circle of latitude: held-out nats of a short fit against the uniform distribution's."""
    torch.manual_seed(0)
    height = 0.5 + 0.05 * torch.randn(1000, dtype=dtype)
    angle = 2 * math.pi * torch.rand(1000, dtype=dtype)
    ring = (1 - height.square()).sqrt()
    x = m.project_to_sphere(torch.stack([ring * angle.cos(), height, ring * angle.sin()], -1))
    flow = m.CylinderSpline(3, hidden_dims=(16,), axis=1).to(dtype)
    fit = pf.fit_density(flow, x, max_epochs=60, lr=1e-2, batch_size=128, seed=0, progress=False)
    expected = -0.5 * math.log(2 * math.pi * math.e * 0.05**2) - math.log(2 * math.pi)  # of height and angle, even in area
    assert abs(float(fit.log_prob(x).mean()) - expected) < 0.15


def test_a_flow_on_the_sphere_is_a_likelihood_in_pyro():
    data = m.VonMisesFisher(torch.tensor([0.0, 0.6, 0.8]), 20.0).sample((200,))
    flow = m.NormalizedTranslation(3)

    def model():
        pyro.module("flow", flow)
        with pyro.plate("data", len(data)):
            pyro.sample("x", pf.FlowDistribution(flow), obs=data)

    svi = pyro.infer.SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    losses = [svi.step() for _ in range(100)]
    assert losses[-1] < losses[0] - 200
    direction = flow.shift().detach()
    assert float(direction @ torch.tensor([0.0, 0.6, 0.8])) / float(direction.norm()) > 0.99


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: m.Moebius(3)(torch.tensor([1.0, 1.0, 1.0])), "x must hold unit vectors.* off by 0.732"),
        (lambda: m.Moebius(3).inv(torch.tensor([0.0, 0.0, 0.0])), "y must hold unit vectors"),
        (lambda: m.Moebius(3)(torch.tensor([torch.nan, 0.0, 1.0])), "unit vectors"),
        (lambda: m.Moebius(1), "input_dim must be an integer of at least 2"),
        (lambda: m.UniformSphere(1), "ambient_dim"),
        (lambda: m.VonMisesFisher(torch.tensor([1.0, 1.0]), 1.0, validate_args=True), "loc"),
        (lambda: m.VonMisesFisher(torch.tensor([0.0, 1.0]), -1.0, validate_args=True), "concentration"),
        (lambda: m.AngularCentralGaussian(torch.ones(3)), "scale_tril must be square"),
        (lambda: m.AngularCentralGaussian(torch.zeros(3, 3), validate_args=True), "scale_tril"),
        (lambda: m.Rotation(torch.ones(2, 2)), "orthogonal"),
        (lambda: m.Rotation(torch.ones(2)), "square"),
        (lambda: m.ExponentialMap(3, num_components=0), "num_components"),
        (lambda: m.CylinderSpline(3, axis=3), "axis"),
    ],
)
def test_bad_input_is_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()
