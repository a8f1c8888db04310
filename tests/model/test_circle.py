"""Circular latents: a bijection cut where it hurts least, and posteriors that lie across the cut of Pyro's angles."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.manifolds.torus import wrap
from pyro_flows.model.circle import CircleTransform, find_centre

PI = math.pi


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_transform_is_a_bijection_with_the_log_det_of_autograd(dtype, tolerance):
    circle = CircleTransform(torch.tensor(2.0, dtype=dtype))
    x = torch.linspace(-3.5, 3.5, 15, dtype=dtype).requires_grad_()
    y = circle(x)
    assert bool((y.abs() <= PI).all())
    torch.testing.assert_close(circle.inv(y.detach() + 4 * PI), x.detach(), rtol=tolerance, atol=tolerance)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), circle.log_abs_det_jacobian(x, y), rtol=tolerance, atol=tolerance)


def test_a_standard_normal_becomes_the_uniform_angle():
    circle = CircleTransform(torch.tensor(1.0, dtype=torch.float64))
    x = torch.randn(100, dtype=torch.float64)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(x) - circle.log_abs_det_jacobian(x, circle(x))
    torch.testing.assert_close(density, torch.full_like(density, -math.log(2 * PI)))


def test_every_angle_has_a_finite_inverse():
    circle = CircleTransform(torch.tensor(0.5))
    angles = torch.tensor([0.5 + PI, 0.5 - PI, 100.0, 0.0, PI, -PI])
    assert bool(torch.isfinite(circle.inv(angles)).all())
    assert bool((wrap(angles).abs() <= PI).all())


def test_centre_is_found_across_the_cut():
    mode = torch.tensor([3.1, -0.4])
    centre = find_centre(lambda angle: 3 * (angle - mode).cos().sum(), torch.zeros(2))
    assert float(wrap(centre - mode).abs().max()) < PI / 24 + 1e-6
    many = torch.zeros(100)
    assert torch.equal(find_centre(lambda angle: angle.cos().sum(), many), many)


@pytest.mark.parametrize(
    ("loc", "concentration"), [(PI, 20.0), *(pytest.param(loc, 4.0, marks=pytest.mark.slow) for loc in (2.5, 3.1)), (0.0, 0.1)]
)
def test_a_posterior_across_the_cut_is_whole(loc, concentration):
    def model():
        pyro.sample("angle", dist.VonMises(loc, concentration))

    fit = pf.fit(model, num_particles=128, max_steps=300, seed=0, progress=False)
    diagnosis = fit.diagnose()
    assert diagnosis.verdict == "good"
    assert diagnosis.log_evidence == pytest.approx(0.0, abs=0.01)
    angles = fit.sample(20_000, seed=1)["angle"]
    exact = torch.special.i1(torch.tensor(concentration)) / torch.special.i0(torch.tensor(concentration))
    # the sd of a cosine is below 1, that of its mean below 0.0071: five of them, false alarm below 1e-6
    assert float((angles - loc).cos().mean()) == pytest.approx(float(exact), abs=0.036)
    assert float((angles - loc).sin().mean()) == pytest.approx(0.0, abs=0.036)


def test_density_is_that_of_the_angle_however_it_is_wrapped():
    def model():
        pyro.sample("angle", dist.VonMises(3.0, 1.0))

    guide = pf.AutoFlow(model, "affine", init_scale=1.0).setup()
    found = [guide.log_prob({"angle": value}) for value in (4.0, 4.0 - 2 * PI, torch.tensor(4.0 + 2 * PI))]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    with torch.no_grad():
        grid = (torch.arange(2000) + 0.5) / 2000 * 2 * PI - PI
        assert float(guide.log_prob({"angle": grid}).exp().mean()) * 2 * PI == pytest.approx(1.0, abs=1e-3)


def test_copies_and_state_know_where_the_circle_is_cut():
    def model(loc):
        pyro.sample("angle", dist.VonMises(loc, 2.0).to_event(0))

    guide = pf.AutoFlow(model, "affine").setup(torch.tensor(3.0))
    for new in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.testing.assert_close(new.log_prob({"angle": 2.0}), guide.log_prob({"angle": 2.0}))
    other = pf.AutoFlow(model, "affine").setup(torch.tensor(0.0))
    other.load_state_dict(guide.state_dict())
    torch.testing.assert_close(other.log_prob({"angle": 2.0}), guide.log_prob({"angle": 2.0}))
    assert other.double().charts["angle"].centre.dtype == torch.float64


def test_a_torus_keeps_the_dependence_of_its_angles():
    def model():
        one = torch.tensor
        pyro.sample("angles", dist.SineBivariateVonMises(one(3.0), one(-3.0), one(4.0), one(4.0), one(2.0)))

    fit = pf.fit(model, num_particles=128, max_steps=800, seed=0, progress=False)
    assert fit.diagnose().ess_fraction > 0.95
    angles = wrap(fit.sample(10_000, seed=1)["angles"] - torch.tensor([3.0, -3.0]))
    assert float(torch.corrcoef(angles.T)[0, 1]) > 0.3
