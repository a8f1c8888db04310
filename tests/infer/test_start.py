"""The search for a start: exact on Gaussians of any scale, robust where a mode misleads."""

from __future__ import annotations

import math
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.infer.batch_and_match import batch_and_match
from pyro_flows.infer.gaussian import Density, gaussian_elbo, gaussian_log_weights
from pyro_flows.infer.laplace import laplace
from pyro_flows.infer.pathfinder import climb, pathfinder
from pyro_flows.infer.start import SearchInterrupted, choose_start


def gaussian(dim, log_sds=0.0, loc=0.0, seed=0):
    """A normalised Gaussian density of random correlations: the function, its mean and its covariance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(dim, dtype=torch.float64) + 0.3 * torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    sds = torch.full((dim,), 0.0, dtype=torch.float64) + torch.as_tensor(log_sds, dtype=torch.float64)
    factor = sds.exp()[:, None] * mixing
    mean = sds.exp() * loc
    normal = torch.distributions.MultivariateNormal(mean, factor @ factor.mT)
    return normal.log_prob, mean, factor @ factor.mT


def funnel(z):
    """Neal's funnel of 10 dimensions; its joint mode holds no mass."""
    neck = torch.distributions.Normal(0, 3).log_prob(z[:, 0])
    return neck + torch.distributions.Normal(0, (z[:, :1] / 2).exp(), validate_args=False).log_prob(z[:, 1:]).sum(-1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("span", [0.0, math.log(1e4)])
def test_batch_and_match_finds_a_gaussian_of_any_scale(span):
    target, mean, covariance = gaussian(8, torch.linspace(-span, span, 8), loc=3.0)
    density = Density(target, torch.zeros(8, dtype=torch.float64))
    loc, scale_tril = batch_and_match(density, torch.zeros(8).double(), torch.eye(8).double())
    sd = covariance.diagonal().sqrt()
    assert ((loc - mean) / sd).abs().max() < 1e-3
    assert ((scale_tril @ scale_tril.mT - covariance) / torch.outer(sd, sd)).abs().max() < 1e-3
    # A normalised density: the bound is 0 where the Gaussian is exact.
    assert abs(gaussian_elbo(density, loc, scale_tril)) < 1e-3


def test_batch_and_match_stops_at_its_deadline():
    target, *_ = gaussian(3)
    density = Density(target, torch.zeros(3, dtype=torch.float64))
    loc, scale_tril = batch_and_match(density, torch.ones(3).double(), torch.eye(3).double(), deadline=time.monotonic() - 1)
    assert torch.equal(loc, torch.ones(3).double()) and torch.equal(scale_tril, torch.eye(3).double())


def test_batch_and_match_shrinks_where_the_density_is_none():
    def half(z):
        inside = (z.abs() < 1).all(-1)
        return torch.where(inside, -0.5 * (10 * z).square().sum(-1), -math.inf)

    density = Density(half, torch.zeros(2, dtype=torch.float64))
    _, scale_tril = batch_and_match(density, torch.zeros(2).double(), 100 * torch.eye(2).double(), max_iter=60)
    assert scale_tril.diagonal().sub(0.1).abs().max() < 0.01


def test_batch_and_match_is_not_led_astray_by_nan():
    def broken(z):
        return torch.where(z[:, 0] > 1, math.nan, 1.0) * -0.5 * z.square().sum(-1)

    density = Density(broken, torch.zeros(2, dtype=torch.float64))
    loc, scale_tril = batch_and_match(density, torch.zeros(2).double(), torch.eye(2).double())
    assert torch.isfinite(loc).all() and torch.isfinite(scale_tril).all()


@pytest.mark.parametrize("dim", [1, 5])
def test_laplace_is_exact_on_a_gaussian(dim):
    target, mean, covariance = gaussian(dim, loc=2.0)
    scale_tril = laplace(Density(target, mean), mean)
    torch.testing.assert_close(scale_tril @ scale_tril.mT, covariance, rtol=1e-5, atol=1e-6)


def test_laplace_takes_one_unit_where_there_is_no_curvature():
    density = Density(lambda z: -0.5 * (10 * z[:, 0]).square() + 0 * z[:, 1], torch.zeros(2, dtype=torch.float64))
    assert laplace(density, torch.zeros(2).double()).diagonal().tolist() == pytest.approx([0.1, 1.0], rel=1e-4)


def test_laplace_gives_nothing_where_nothing_curves_downwards():
    density = Density(lambda z: z.square().sum(-1), torch.zeros(2, dtype=torch.float64))
    assert laplace(density, torch.zeros(2).double()) is None


@pytest.mark.parametrize("span", [0.0, math.log(1e2)])
def test_a_path_to_a_gaussian_ends_at_its_mean(span):
    target, mean, covariance = gaussian(6, torch.linspace(-span, span, 6), loc=1.0)
    density = Density(target, mean)
    loc, _ = pathfinder(density, climb(density, mean + covariance.diagonal().sqrt()))
    assert ((loc - mean) / covariance.diagonal().sqrt()).abs().max() < 0.3


def test_the_best_of_a_path_is_not_its_end_where_the_mode_holds_no_mass():
    density = Density(funnel, torch.zeros(10, dtype=torch.float64))
    path = climb(density, torch.ones(10).double())
    loc, scale_tril = pathfinder(density, path)
    end = path.points[-1]
    assert gaussian_elbo(density, loc, scale_tril) > gaussian_elbo(density, end, torch.eye(10).double()) + 5


def test_a_path_ends_where_the_density_does():
    density = Density(lambda z: torch.where(z[:, 0] < 2, z[:, 0], math.nan), torch.zeros(1, dtype=torch.float64))
    path = climb(density, torch.zeros(1).double())
    assert torch.isfinite(path.points).all() and path.points[-1].item() < 2


@pytest.mark.parametrize("dim", [1, 3, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_of_a_gaussian_is_exact(dim, dtype):
    target, mean, _ = gaussian(dim, loc=2.0)
    best, tried = choose_start(lambda z: target(z.double()).to(dtype), torch.zeros(dim, dtype=dtype), 0.1)
    # The best of several estimates from 1,000 draws each, of Gaussians that are off by a thousandth.
    assert abs(best.elbo) < (0.01 if dtype == torch.float32 else 3e-3)
    assert best.elbo >= max(start.elbo for start in tried)
    assert best.loc.dtype == torch.float64 and best.scale_tril.shape == (dim, dim)


def test_the_start_of_a_funnel_is_what_a_gaussian_can_do():
    # The best Gaussian has an ELBO of about -2; at the joint mode it is below -10.
    best, _ = choose_start(lambda z: funnel(z), torch.zeros(10), 0.1)
    assert best.elbo > -2.5


def test_a_mode_with_little_mass_is_not_preferred():
    # A spike of weight 0.01 is 100 times higher than the slab that holds the rest.
    def density(z):
        slab = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) + math.log(0.99)
        spike = torch.distributions.Normal(3.0, 0.001).log_prob(z).sum(-1) + math.log(0.01)
        return torch.logaddexp(slab, spike)

    best, _ = choose_start(density, torch.full((2,), 3.0), 0.1)
    assert best.elbo > -0.5


def test_what_a_gaussian_weighs_is_the_density_over_it():
    target, mean, covariance = gaussian(4, loc=1.0)
    scale_tril = torch.linalg.cholesky(covariance)
    weights = gaussian_log_weights(Density(target, mean), mean, scale_tril, 50)
    assert weights.abs().max() < 1e-9


def test_one_draw_beyond_a_cliff_does_not_decide_and_many_do():
    density = Density(lambda z: -0.5 * z.square().sum(-1) - 1e12 * (z[:, 0] > 2.6).to(z.dtype), torch.zeros(2).double())
    zero, one = torch.zeros(2).double(), torch.eye(2).double()
    assert abs(gaussian_elbo(density, zero, one) - math.log(2 * math.pi)) < 0.1
    assert gaussian_elbo(density, zero + torch.tensor([1.0, 0.0]), one) < -1e9


def test_a_start_is_found_beside_an_explosive_region():
    # A moving average of 200 terms: beyond |theta| = 1 its errors explode, to 1e60 and more.
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(201, generator=generator, dtype=torch.float64)
    y = noise[1:] + 0.7 * noise[:-1]

    def moving_average(z):
        theta, log_scale = z[:, 0], z[:, 1]
        error, total = torch.zeros_like(theta), -0.5 * z.square().sum(-1) / 4
        for value in y:
            error = value - theta * error
            total = total - 0.5 * (error * (-log_scale).exp()).square() - log_scale
        return total

    best, _ = choose_start(moving_average, torch.zeros(2, dtype=torch.float64), 0.1)
    assert 0.5 < float(best.loc[0]) < 0.9
    assert 0.02 < float(best.scale_tril[0, 0]) < 0.12
    weights = gaussian_log_weights(Density(moving_average, torch.zeros(2).double()), best.loc, best.scale_tril, 2000)
    assert float(weights.nan_to_num(nan=-1e30).quantile(0.9) - weights.quantile(0.1)) < 1.0


@pytest.mark.parametrize("calls", [3, 60, 200])
def test_an_interrupted_search_gives_what_it_found(calls):
    count = 0

    def model():
        nonlocal count
        count += 1
        if count > calls + 30:  # reading the model takes some
            count = -(10**9)
            raise KeyboardInterrupt
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.zeros(3), (0.5 * v).exp()).to_event(1))

    fit = pf.fit(model, seed=0, progress=False)
    assert fit.stop_reason == "interrupted"
    assert fit.record["steps"] == 0
    assert torch.isfinite(fit.sample(10)["x"]).all()


def test_a_search_interrupted_before_it_found_anything_is_interrupted():
    def density(z):
        raise KeyboardInterrupt

    with pytest.raises(SearchInterrupted) as caught:
        choose_start(density, torch.zeros(2), 0.1)
    assert caught.value.tried == []
