"""Posteriors of several modes: surveyed, listed or annealed, and undone where that is no better."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import diagnose
from pyro_flows.distributions import FlowDistribution
from pyro_flows.infer import multimodal
from pyro_flows.infer.annealing import anneal
from pyro_flows.infer.descent import Training
from pyro_flows.infer.gaussian import Density
from pyro_flows.infer.modes import are_separate, survey
from pyro_flows.transforms import Compose, LowerCholeskyAffine

QUICK = {"progress": False, "seed": 0}
LOCS = torch.tensor([[-6.0, 0.0], [6.0, 2.0], [0.0, 9.0]])
WEIGHTS = torch.tensor([0.2, 0.5, 0.3])


def three_modes():
    components = dist.Normal(LOCS, torch.tensor([[0.7, 0.7], [0.5, 1.0], [1.0, 0.3]])).to_event(1)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(WEIGHTS), components))


def banana_pair():
    """Two bananas: modes that no Gaussian fits."""
    side = pyro.sample("side", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(LOCS[:2, 0], 0.5)))
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a**2 + 0 * side, 0.5))


def wells(z):
    """Eight double wells, a ninth of the mass on the left of each."""
    return (-(z**4) + 6 * z**2 + 0.6 * z).sum(-1)


def test_a_mixture_of_gaussians_is_kept_as_one():
    fit = pf.fit(three_modes, **QUICK)
    assert fit.record["flow"] == "gaussian mixture" and fit.record["steps"] == 0
    diagnosis = fit.diagnose()
    assert diagnosis.verdict == "good" and abs(diagnosis.log_evidence) < 0.01
    x = fit.sample(20_000, seed=1)["x"]
    shares = torch.cdist(x, LOCS).argmin(-1).bincount(minlength=3) / len(x)
    assert torch.allclose(shares, WEIGHTS, atol=0.02)  # of the draws 4.6 standard errors are 0.016
    assert fit.record["missed_modes"] == []


def test_a_flow_shapes_modes_that_are_no_gaussians():
    fit = pf.fit(banana_pair, max_steps=1000, num_particles=128, **QUICK)
    assert fit.record["flow"] == "real_nvp over 2 modes"
    diagnosis = fit.diagnose()
    assert diagnosis.ess_fraction > 0.8
    assert abs(diagnosis.log_evidence) < 0.05
    assert float((fit.sample(20_000, seed=1)["side"] < 0).float().mean()) == pytest.approx(0.3, abs=0.03)


def test_a_survey_lists_the_modes_or_says_that_it_cannot():
    torch.manual_seed(0)
    density = Density(wells, torch.zeros(2))
    found = survey(density, 3 * torch.randn(200, 2).double())
    assert found.complete and len(found.modes) == 4
    assert are_separate(density, found.modes)
    many = survey(Density(wells, torch.zeros(10)), 3 * torch.randn(200, 10).double(), most=16)
    assert not many.complete and len(many.modes) <= 16


def test_a_ridge_is_no_set_of_modes():
    torch.manual_seed(0)
    density = Density(lambda z: -0.5 * (z[:, 0] / 10).square() - 0.5 * (z[:, 1] - z[:, 0] ** 2 / 30).square(), torch.zeros(2))
    assert not are_separate(density, survey(density, 10 * torch.randn(100, 2).double()).modes)
    assert not are_separate(density, [])


@pytest.mark.slow
def test_annealing_keeps_the_modes_that_training_loses():
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    evidence = 8 * float(wells(grid[:, None]).logsumexp(0) + math.log(float(grid[1] - grid[0])))
    wide = torch.distributions.Normal(torch.zeros(8), 2.0)
    shares = []
    for seed in range(3):  # which modes thin out differs between seeds, 5 to 8 of 8 kept a hundredth
        torch.manual_seed(seed)
        flow = pf.flows.nsf_coupling(8, num_layers=4, hidden_dims=(32, 32))
        q = FlowDistribution(Compose([flow, LowerCholeskyAffine(torch.zeros(8), torch.full((8,), 2.0))]))
        done = anneal(q, wells, lambda z: wide.log_prob(z).sum(-1), num_particles=128, num_steps=600)
        assert done.steps == 600 and done.stop_reason == ""
        z, log_q = q.rsample_and_log_prob((8000,))
        found = diagnose(wells(z).double(), log_q.double()).log_evidence
        assert abs(found - evidence) < 0.7  # all on the right would be 8 * 0.12 = 0.96 nats short, on the left 17
        shares.append(float(((z < 0).float().mean(0) > 0.01).float().mean()))
    assert sum(shares) / 3 > 0.7


def test_an_exact_gaussian_in_one_of_two_modes_is_not_the_end():
    # Its weights are constant, so that only the search for missed modes goes on from there; the guide of the best ELBO stays.
    def model():
        weights = dist.Categorical(torch.tensor([0.5, 0.5]))
        pyro.sample("x", dist.MixtureSameFamily(weights, dist.Normal(torch.tensor([-20.0, 20.0]), 1.0)))

    fit = pf.fit(model, max_steps=400, num_particles=64, **QUICK)
    elbos = [float(rung["elbo"]) for rung in fit.record["rungs"]]
    assert fit.diagnose().elbo > max(elbos) - 0.05
    assert fit.record["missed_modes"] == []


def test_annealing_is_interrupted_without_loss():
    q = FlowDistribution(pf.flows.affine(1))
    calls = 0

    def density(z):
        nonlocal calls
        calls += 1
        if calls > 10:
            raise KeyboardInterrupt
        return -z.square().sum(-1)

    done = anneal(q, density, density, num_particles=8, num_steps=100)
    assert done.stop_reason == "interrupted" and done.steps < 10
    assert torch.isfinite(q.rsample((3,))).all()
    assert anneal(q, wells, wells, num_particles=8, num_steps=10**6, max_time=0.2).stop_reason == "max_time"


def test_annealing_says_when_nothing_is_finite():
    q = FlowDistribution(pf.flows.affine(1))
    with pytest.raises(ArithmeticError, match="of the annealing were not finite"):
        anneal(q, lambda z: z.sum(-1) * math.nan, lambda z: z.sum(-1), num_particles=8, num_steps=100)


def test_chains_are_refused_between_modes():
    fit = pf.fit(three_modes, **QUICK)
    with pytest.raises(ValueError, match="between which a chain does not move"):
        fit.refine_mcmc(10, progress=False)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 4"):
        fit.refine_mcmc(3, progress=False)
    fit.guide.set_flow("nice", None)
    assert not any("_given_base" in name for name in fit.guide.state_dict())


def test_an_interrupt_while_annealing_ends_the_fit(monkeypatch):
    def interrupted(*args, **kwargs):
        return Training(stop_reason="interrupted")

    monkeypatch.setattr(multimodal, "anneal", interrupted)
    many = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-4.0, 4.0]), 0.3))
    fit = pf.fit(lambda: pyro.sample("x", many.expand((7,)).to_event(1)), **QUICK)
    assert fit.stop_reason == "interrupted"
    diagnosis = fit.diagnose()
    assert diagnosis.verdict == "poor" or "not looked for" in diagnosis.advice


def test_a_failed_annealing_leaves_the_guide_as_it_was(monkeypatch):
    def failing(*args, **kwargs):
        raise ArithmeticError("no step was finite")

    monkeypatch.setattr(multimodal, "anneal", failing)
    many = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-4.0, 4.0]), 0.3))
    fit = pf.fit(lambda: pyro.sample("x", many.expand((7,)).to_event(1)), max_steps=700, num_particles=64, **QUICK)
    assert any("failed and undone" in rung["reason"] for rung in fit.record["rungs"])
    assert fit.diagnose().verdict == "poor"
    assert torch.isfinite(fit.sample(100)["x"]).all()


def test_a_time_limit_does_not_hide_a_missed_mode():
    fit = pf.fit(three_modes, guide="affine", max_time=0.5, max_steps=10**6, **QUICK)
    assert fit.stop_reason == "max_time"
    assert fit.record["missed_modes"] or fit.diagnose().verdict != "good"


def test_surveys_make_no_tensor_on_the_default_device():
    torch.manual_seed(0)
    density = Density(lambda z: wells(z) - 300_000_013, torch.zeros(2, dtype=torch.float64))
    starts = 3 * torch.randn(100, 2).double()
    with torch.device("meta"):
        found = survey(density, starts)
        assert are_separate(density, found.modes)
    assert len(found.modes) == 4
