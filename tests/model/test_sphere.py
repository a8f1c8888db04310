"""Directions as latents: a chart of the sphere that is cut where it hurts least, and posteriors that are known."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyro_flows as pf
from pyro_flows.manifolds import UniformSphere, VonMisesFisher, log_volume_ratio, project_to_sphere
from pyro_flows.manifolds.sphere.geometry import log_area
from pyro_flows.model.sphere import SphereChart, find_direction

QUICK = {"seed": 0, "progress": False}


@pytest.mark.parametrize("n", [2, 3, 4, 7])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_a_chart_is_a_bijection_with_the_area_of_the_oracle(n, centred, dtype, tolerance):
    chart = SphereChart(torch.randn(n, dtype=dtype) if centred else None)
    x = torch.cat([scale * torch.randn(30, n - 1, dtype=dtype) for scale in (1e-5, 1e-2, 1.0)]).clamp(-4, 4)
    y = chart(x)
    assert bool(chart.codomain.check(y).all()) and chart.forward_shape(x.shape) == y.shape == (90, n)
    torch.testing.assert_close(chart.inv(y), x, atol=tolerance, rtol=tolerance)
    _, expected = log_volume_ratio(chart, x, lambda v: v, n - 1)
    torch.testing.assert_close(chart.log_abs_det_jacobian(x, y), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("n", [2, 3])
def test_a_standard_normal_becomes_a_uniform_direction(n):
    chart, x = SphereChart(torch.ones(n, dtype=torch.float64)), torch.randn(100, n - 1, dtype=torch.float64)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1) - chart.log_abs_det_jacobian(x, chart(x))
    torch.testing.assert_close(density, torch.full_like(density, -log_area(n)))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_direction_has_a_finite_inverse_and_gradients(n, dtype):
    chart = SphereChart()
    eye = torch.eye(n, dtype=dtype)
    y = project_to_sphere(torch.cat([eye, -eye, -eye + 1e-7])).requires_grad_()
    x = chart.inv(y)
    assert bool(torch.isfinite(x).all())
    near = (1e-9 * torch.randn(4, n - 1, dtype=dtype)).requires_grad_()
    for value in (chart(near).sum(), chart.log_abs_det_jacobian(near, chart(near)).sum(), chart.inv(chart(near)).sum()):
        (gradient,) = torch.autograd.grad(value, near)
        assert bool(torch.isfinite(gradient).all())


def test_the_centre_is_found_for_each_direction():
    modes = project_to_sphere(torch.tensor([[0.0, 0.3, -1.0], [1.0, -1.0, 0.2]]))
    found = find_direction(lambda y: 8 * (y * modes).sum(), project_to_sphere(torch.ones(2, 3)))
    assert float((found * modes).sum(-1).min()) > 0.95
    many = project_to_sphere(torch.randn(100, 3))
    assert torch.equal(find_direction(lambda y: y.sum(), many), many)


@pytest.mark.parametrize(("n", "concentration"), [(2, 20.0), (3, 20.0), (3, 0.5), (5, 20.0)])
def test_a_conjugate_direction(n, concentration):
    """A vMF prior and vMF data have a vMF posterior: direction within 0.5 degrees, κ within 3 %, from 40,000 draws."""
    torch.manual_seed(1)
    prior, truth = torch.eye(n)[0], -torch.eye(n)[0] + 0.5 * torch.eye(n)[1]
    y = VonMisesFisher(project_to_sphere(truth), concentration).sample((12,))

    def model(y):
        direction = pyro.sample("direction", VonMisesFisher(prior, 2.0))
        with pyro.plate("data", 12):
            pyro.sample("y", VonMisesFisher(direction, concentration), obs=y)

    fit = pf.fit(model, y, **QUICK)
    total = 2 * prior + concentration * y.sum(0)
    kappa = total.norm()
    diagnosis = fit.diagnose()
    assert diagnosis.verdict == "good" and diagnosis.ess_fraction > 0.95
    draws = fit.sample(40_000, seed=1)["direction"]
    assert draws.shape == (40_000, n) and float((draws.norm(dim=-1) - 1).abs().max()) < 1e-5
    mean = draws.mean(0)
    angle = math.degrees(torch.atan2((mean / mean.norm() - total / kappa).norm(), torch.tensor(1.0)))
    # The mean of 40,000 draws is off by 1 / sqrt(40,000 kappa R) itself, in radians.
    assert angle < 0.5 + 3 * math.degrees((40_000 * float(kappa)) ** -0.5)
    # 1 - R is (n - 1) / (2 kappa) for a large κ.
    expected = 1 - VonMisesFisher(prior, kappa).mean_resultant_length
    assert abs(float((1 - mean.norm()) / expected) - 1) < 0.03 + 5 * 40_000**-0.5


@pytest.mark.slow
def test_a_direction_and_a_scale_against_nuts_on_normal_vectors():
    """The direction of a normal vector is uniform: the same model with a latent that NUTS knows."""
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    y = 2.0 * (x @ torch.tensor([0.6, 0.0, 0.8])) + 0.5 * torch.randn(60)

    def likelihood(direction, scale):
        with pyro.plate("data", 60):
            pyro.sample("y", dist.Normal(scale * (x @ direction), 0.5), obs=y)

    def model():
        direction = pyro.sample("direction", UniformSphere(3))
        likelihood(direction, pyro.sample("scale", dist.LogNormal(0.0, 1.0)))

    def unconstrained():
        vector = pyro.sample("vector", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        likelihood(vector / vector.norm(), pyro.sample("scale", dist.LogNormal(0.0, 1.0)))

    fit = pf.fit(model, **QUICK)
    assert fit.diagnose().verdict == "good"
    draws = fit.sample(10_000, seed=0)
    mcmc = MCMC(NUTS(unconstrained), num_samples=800, warmup_steps=300, disable_progbar=True)
    mcmc.run()
    reference = mcmc.get_samples()
    direction = project_to_sphere(reference["vector"])
    for found, expected in ((draws["direction"], direction), (draws["scale"][:, None], reference["scale"][:, None])):
        # 800 correlated draws of NUTS: about 0.06 sd of error.
        assert ((found.mean(0) - expected.mean(0)).abs() < 0.25 * expected.std(0)).all()
        assert ((found.std(0) / expected.std(0) - 1).abs() < 0.2).all()


def test_directions_in_a_plate_and_beside_one_another():
    def model():
        with pyro.plate("groups", 2):
            d = pyro.sample("d", VonMisesFisher(torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]), 5.0))
            pyro.sample("y", VonMisesFisher(d, 10.0), obs=torch.tensor([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]]))

    fit = pf.fit(model, **QUICK)
    assert fit.diagnose().ess_fraction > 0.9
    idata = fit.to_arviz(100)
    assert idata["posterior"]["d"].shape[-2:] == (2, 3)
    assert fit.guide.median()["d"].shape == (2, 3)


def test_guides_with_directions_are_saved_copied_and_refused_by_neutra():
    def model(y=None):
        pyro.sample("d", VonMisesFisher(torch.tensor([0.0, -0.6, -0.8]), 30.0))

    guide = pf.AutoFlow(model, "affine").setup()
    centre = guide.charts["d"].centre
    assert float(centre @ torch.tensor([0.0, -0.6, -0.8])) > 0.9
    assert any("_chart_modules" in name for name in guide.state_dict())
    value = {"d": torch.tensor([0.0, -0.6, -0.8])}
    other = copy.deepcopy(guide)
    assert torch.equal(other.charts["d"].centre, centre) and torch.equal(other.log_prob(value), guide.log_prob(value))
    noise = torch.randn(4, 2)
    assert torch.equal(pickle.loads(pickle.dumps(guide.distribution)).log_prob(noise), guide.distribution.log_prob(noise))
    with pytest.raises(ValueError, match="must lie in the support"):
        guide.log_prob({"d": torch.tensor([0.0, -0.6, 0.9])})
    from pyro.infer.reparam import NeuTraReparam

    with pytest.raises(ValueError, match="circles or spheres"):
        NeuTraReparam(guide).reparam(model)()


def test_nuts_of_pyro_knows_the_chart_too():
    def model():
        pyro.sample("d", VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), 20.0))

    mcmc = MCMC(NUTS(model), num_samples=300, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["d"]
    assert draws.shape == (300, 3) and abs(float(draws[:, 2].mean()) - 0.95) < 0.02
