"""What guide ``fit`` chooses, and that it says when it missed a mode."""

from __future__ import annotations

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value

import pyro_flows as pf
from pyro_flows.infer.gaussian import Density
from pyro_flows.infer.ladder import Deeper, default_flow, enough_ess
from pyro_flows.infer.modes import climb_together

QUICK = {"progress": False, "seed": 0}


def gaussian():
    pyro.sample("x", dist.MultivariateNormal(torch.ones(3), torch.eye(3) + 0.8))


def skewed():
    pyro.sample("x", dist.Gamma(torch.full((2,), 0.6), 1.0).to_event(1))


def two_modes():
    locs = torch.tensor([[-6.0, 0.0], [6.0, 2.0]])
    weights = dist.Categorical(torch.tensor([0.3, 0.7]))
    pyro.sample("x", dist.MixtureSameFamily(weights, dist.Normal(locs, 0.7).to_event(1)))


def test_an_exact_gaussian_is_kept_without_training():
    fit = pf.fit(gaussian, **QUICK)
    assert fit.record["flow"] == "gaussian"
    assert fit.record["steps"] == 0
    assert fit.diagnose().verdict == "good"
    assert fit.record["rungs"][0]["reason"].endswith("kept")
    mean, covariance = fit.sample(40_000, seed=1)["x"].mean(0), fit.sample(40_000, seed=1)["x"].T.cov()
    assert torch.allclose(mean, torch.ones(3), atol=0.03)  # 4.5 standard errors of a mean
    assert torch.allclose(covariance, torch.eye(3) + 0.8, atol=0.06)


def test_a_skewed_posterior_gets_a_flow_and_the_record_says_why():
    fit = pf.fit(skewed, max_steps=600, num_particles=64, **QUICK)
    assert fit.record["flow"].startswith("real_nvp")
    assert [rung["flow"] for rung in fit.record["rungs"]][:1] == ["gaussian"]
    assert "vary" in fit.record["rungs"][0]["reason"]
    assert fit.diagnose().ess_fraction > 0.95


def test_a_named_guide_is_taken_as_it_is():
    fit = pf.fit(gaussian, guide="nice", max_steps=50, num_particles=16, **QUICK)
    assert fit.record["flow"] == "nice"
    assert fit.record["rungs"] == []


def test_a_posterior_without_a_missed_mode_has_none_on_record():
    assert pf.fit(skewed, max_steps=300, num_particles=64, **QUICK).record["missed_modes"] == []


@pytest.fixture(scope="module")
def in_one_mode():
    """A Gaussian guide that starts in one of two modes, 12 sd of them apart, and stays there."""
    start = init_to_value(values={"x": torch.tensor([6.0, 2.0])})
    guide = pf.AutoFlow(two_modes, "affine", init_loc_fn=start, init_scale=0.5)
    return pf.fit(two_modes, guide=guide, max_steps=300, num_particles=64, **QUICK)


def test_a_missed_mode_makes_the_verdict_poor(in_one_mode):
    assert float(in_one_mode.sample(2000, seed=0)["x"][:, 0].min()) > 0
    (found,) = in_one_mode.record["missed_modes"]
    assert found["at"] == pytest.approx([-6.0, 0.0], abs=0.05)
    assert found["log_evidence"] == pytest.approx(math.log(0.3), abs=0.1)
    diagnosis = in_one_mode.diagnose()
    assert diagnosis.verdict == "poor"
    assert "misses at least" in diagnosis.advice
    assert diagnosis.ess_fraction > 0.95  # its own weights show nothing


def test_the_upper_bound_sees_what_own_draws_do_not(in_one_mode):
    torch.manual_seed(0)
    truth = torch.cat([torch.tensor([-6.0, 0.0]) + 0.7 * torch.randn(300, 2), torch.tensor([6.0, 2.0]) + 0.7 * torch.randn(700, 2)])
    assert in_one_mode.diagnose(posterior={"x": truth}).eubo > 10
    assert math.isnan(in_one_mode.diagnose().eubo)
    fit = pf.fit(gaussian, **QUICK)
    inside = fit.diagnose(posterior={"x": dist.MultivariateNormal(torch.ones(3), torch.eye(3) + 0.8).sample((4000,))})
    assert abs(inside.eubo) < 0.02
    assert inside.verdict == "good"
    with pytest.raises(ValueError, match="posterior: values must hold the sites"):
        fit.diagnose(posterior={"y": truth})
    with pytest.raises(ValueError, match="posterior must hold draws"):
        fit.diagnose(posterior={"x": torch.zeros(3)})


def test_a_deeper_guide_keeps_what_was_trained_and_is_pickled():
    guide = pf.AutoFlow(gaussian, default_flow).setup()
    before = guide.distribution.transform(torch.ones(3))
    guide.set_flow(Deeper(guide.flow))
    assert torch.allclose(guide.distribution.transform(torch.ones(3)), before, atol=1e-6)
    again = pickle.loads(pickle.dumps(guide))
    assert torch.equal(again.distribution.transform(torch.ones(3)), guide.distribution.transform(torch.ones(3)))


def test_points_climb_to_the_modes_next_to_them_and_broken_ones_are_left_out():
    density = Density(lambda z: (-0.5 * (z.abs() - 3).square() + torch.where(z > 50, torch.nan, 0.0)).sum(-1), torch.zeros(1))
    ends = climb_together(density, torch.tensor([[-1.0], [2.0], [60.0]]).double())
    assert ends.flatten().tolist() == pytest.approx([-3.0, 3.0], abs=1e-3)


@pytest.mark.parametrize("dim", [1, 10, 50, 1000])
def test_more_latents_need_a_smaller_share_of_draws(dim):
    assert 0.5 <= enough_ess(dim) <= 0.95
    assert enough_ess(dim) >= enough_ess(dim + 1)


def test_a_wall_at_the_mode_gets_an_answer():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x > 1.0, torch.zeros_like(x), torch.full_like(x, -math.inf)))

    try:
        diagnosis = pf.fit(model, max_steps=300, **QUICK).diagnose()
    except (ArithmeticError, ValueError) as error:
        assert "wall" in str(error) or "'x'" in str(error)
    else:
        assert diagnosis.verdict != "good" or abs(diagnosis.log_evidence - math.log(0.1587)) < 0.1
