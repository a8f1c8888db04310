"""What guide ``fit`` chooses, and that it says when it missed a mode."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.infer.gaussian import Density
from pyro_flows.infer.ladder import enough_ess
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
    assert "rungs" not in fit.record


def test_a_posterior_without_a_missed_mode_has_none_on_record():
    assert pf.fit(skewed, max_steps=300, num_particles=64, **QUICK).record["missed_modes"] == []


def test_a_missed_mode_makes_the_verdict_poor():
    fit = pf.fit(two_modes, init={"x": torch.tensor([6.0, 2.0])}, max_steps=300, num_particles=64, **QUICK)
    weights = fit.diagnose()
    found = fit.record["missed_modes"]
    if float(fit.sample(2000, seed=0)["x"][:, 0].lt(0).float().mean()) < 0.01:
        assert len(found) == 1
        assert found[0]["at"] == pytest.approx([-6.0, 0.0], abs=0.05)
        assert found[0]["log_evidence"] == pytest.approx(math.log(0.3), abs=0.1)
        assert weights.verdict == "poor"
        assert "misses a mode" in weights.advice
    else:
        assert found == []


def test_a_guide_known_to_sit_in_one_mode_is_found_out():
    fit = pf.fit(two_modes, guide="affine", init={"x": torch.tensor([6.0, 2.0])}, max_steps=300, num_particles=64, **QUICK)
    shares = fit.sample(2000, seed=0)["x"][:, 0].lt(0).float().mean()
    assert float(shares) < 0.05 or fit.diagnose().verdict != "good"
    if float(shares) < 0.01:
        assert fit.diagnose().verdict == "poor"


def test_the_upper_bound_sees_what_own_draws_do_not():
    fit = pf.fit(gaussian, **QUICK)
    truth = dist.MultivariateNormal(torch.ones(3), torch.eye(3) + 0.8).sample((4000,))
    inside = fit.diagnose(posterior={"x": truth})
    assert abs(inside.eubo) < 0.02
    assert inside.verdict == "good"
    outside = fit.diagnose(posterior={"x": truth + torch.tensor([6.0, 0.0, 0.0])})
    assert outside.eubo < 0.5 or outside.verdict == "poor"
    with pytest.raises(ValueError, match="posterior"):
        fit.diagnose(posterior={"y": truth})
    with pytest.raises(ValueError, match="posterior must hold draws"):
        fit.diagnose(posterior={"x": truth[0]})


def test_points_climb_to_the_modes_next_to_them_and_broken_ones_are_left_out():
    density = Density(lambda z: (-0.5 * (z.abs() - 3).square() + torch.where(z > 50, torch.nan, 0.0)).sum(-1), torch.zeros(1))
    ends = climb_together(density, torch.tensor([[-1.0], [2.0], [60.0]]).double())
    assert ends.flatten().tolist() == pytest.approx([-3.0, 3.0], abs=1e-3)


@pytest.mark.parametrize("dim", [1, 10, 50, 1000])
def test_more_latents_need_a_smaller_share_of_draws(dim):
    assert 0.5 <= enough_ess(dim) <= 0.95
    assert enough_ess(dim) >= enough_ess(dim + 1)
