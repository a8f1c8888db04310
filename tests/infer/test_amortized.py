"""Training of amortised guides: splits, stops, fresh draws, rounds of truncated proposals, and what it refuses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.infer import amortized, fit_truncated, maximum_likelihood

QUICK = {"progress": False, "seed": 0}


def model(x=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a, 0.5), obs=x)


def curved(x=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a.abs(), 0.3), obs=x)


def guide_of(which=model, **options):
    return pf.AmortizedFlow(which, observed=["x"], flow_options={"num_layers": 2, "hidden_dims": (16,)}, **options)


def test_best_state_on_the_rows_held_out_is_kept():
    guide = guide_of()
    fit = pf.fit_amortized(guide, num_simulations=400, max_epochs=4, lr=0.5, **QUICK)  # steps this long do harm
    losses = fit.validation_losses[0]
    assert fit.best_epochs == [losses.index(min(losses))] == [0]
    held = pf.simulate(model, num_simulations=2000, observed=["x"], seed=7)
    loss = -guide.log_prob({"a": held.latents["a"]}, held.observations["x"]).mean().item()
    assert abs(loss - losses[0]) < 0.3


def test_flow_learns_what_the_regression_cannot():
    fit = pf.fit_amortized(guide_of(curved), num_simulations=2000, max_epochs=12, lr=1e-2, **QUICK)
    assert min(fit.validation_losses[0]) < fit.validation_losses[0][0] - 0.2
    assert len(fit.losses[0]) == 12
    assert fit.stop_reason == "max_epochs"


def test_no_progress_stops_training():
    fit = pf.fit_amortized(guide_of(), num_simulations=300, max_epochs=50, patience=2, lr=0.5, **QUICK)
    assert fit.stop_reason == "no_progress"
    assert len(fit.losses[0]) == 2


def test_same_seed_same_guide_and_generators_left_alone():
    state = torch.get_rng_state()
    first, second = (guide_of(num_members=2) for _ in range(2))
    for guide in (first, second):
        pf.fit_amortized(guide, num_simulations=200, max_epochs=2, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.linspace(-1, 1, 5)
    assert torch.equal(first.log_prob({"a": x}, x), second.log_prob({"a": x}, x))


def test_ctrl_c_keeps_the_best_state(monkeypatch):
    calls = []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 3:  # the start, the first epoch, the second
            raise KeyboardInterrupt
        return original(*args)

    original = maximum_likelihood._mean_loss
    monkeypatch.setattr(maximum_likelihood, "_mean_loss", interrupt)
    guide = guide_of(num_members=2)
    fit = pf.fit_amortized(guide, num_simulations=200, max_epochs=5, **QUICK)
    assert fit.stop_reason == "interrupted"
    assert len(fit.losses) == 1
    assert torch.isfinite(guide.log_prob({"a": torch.zeros(())}, torch.zeros(())))


def test_fresh_simulations_are_new_in_every_epoch(monkeypatch):
    drawn = []
    original = amortized.draw
    monkeypatch.setattr(amortized, "draw", lambda *args, **kwargs: drawn.append(original(*args, **kwargs)) or drawn[-1])
    pf.fit_amortized(guide_of(), num_simulations=100, max_epochs=3, fresh=True, **QUICK)
    assert len(drawn) == 3
    assert not torch.equal(drawn[1].latents["a"], drawn[2].latents["a"])


def test_rounds_simulate_where_the_posterior_is_and_find_it():
    # a + sin(a) / 2 = 3 at a = 2.86, where the slope is 0.52: the posterior sd is near 0.1 / 0.52 = 0.19.
    def narrow(x=None):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(a + 0.5 * a.sin(), 0.1), obs=x)

    guide, x = guide_of(narrow), torch.tensor(3.0)
    rounds = fit_truncated(guide, x, num_rounds=3, num_simulations=300, max_epochs=10, lr=1e-2, **QUICK)
    latents = rounds[-1].simulations.latents["a"]
    assert [len(fit.simulations) for fit in rounds] == [300, 600, 900]
    assert float((latents[600:] - 3).abs().mean()) < 0.3 * float((latents[:300] - 3).abs().mean())
    draws = guide.sample(x, 4000, seed=0)["a"]
    assert abs(float(draws.mean()) - 2.86) < 0.2
    assert 0.1 < float(draws.std()) < 0.4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"validation_share": 1.0}, "validation_share must lie between 0 and 1"),
        ({"max_time": -1}, "max_time must be a positive number"),
        ({"simulations": {"a": 1}}, "simulations must be what pf.simulate returns"),
        ({"num_simulations": 2}, "too few to train on"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        pf.fit_amortized(guide_of(), **{**QUICK, **options})


def test_guides_and_rounds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="guide must be an AmortizedFlow"):
        pf.fit_amortized(pf.AutoFlow(model), **QUICK)
    with pytest.raises(ValueError, match="simulations does not go with rounds"):
        fit_truncated(guide_of(), torch.tensor(0.0), simulations=None, **QUICK)
    with pytest.raises(ValueError, match="one data set"):
        fit_truncated(guide_of(), torch.zeros(2), num_simulations=50, max_epochs=1, **QUICK)
    other = pf.Simulations({"b": torch.zeros(50)}, {"x": torch.zeros(50)})
    with pytest.raises((ValueError, KeyError)):
        pf.fit_amortized(guide_of(), simulations=other, **QUICK)


def test_verdict_and_resampled_draws_at_one_data_set():
    """The posterior is known; an untrained guide of a curved model is not it, and its weights say so and mend it."""
    fit = pf.fit_amortized(guide_of(), num_simulations=2000, max_epochs=2, **QUICK)
    x = torch.tensor(0.8)
    assert fit.fresh
    assert fit.diagnose(x).verdict == "good"
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(x).item()
    assert abs(fit.diagnose(x).log_evidence - exact) < 0.02

    class Scaled(torch.nn.Module):
        def forward(self, x):
            return 0 * x  # a guide that cannot see the data: it stays at the prior

    blind = pf.fit_amortized(guide_of(encoder=Scaled()), num_simulations=2000, max_epochs=1, **QUICK)
    found = blind.diagnose(x)
    assert found.verdict == "reweight"
    assert "fit.resample" in found.advice
    draws = blind.resample(x, 4000, seed=0)["a"]
    # The posterior N(0.64, 0.447): about 1,000 effective draws, so five standard errors.
    assert abs(draws.mean() - 0.64) < 5 * 0.447 / 1000**0.5
    assert abs(draws.std() / 0.447 - 1) < 0.15


def test_verdict_of_an_amortised_guide_refuses_what_has_no_weights():
    fit = pf.fit_amortized(guide_of(), num_simulations=200, max_epochs=1, **QUICK)
    with pytest.raises(ValueError, match="one data set"):
        fit.diagnose(torch.zeros(3))
    with pytest.raises(ValueError, match="num_samples"):
        fit.resample(torch.zeros(()), 0)
    simulator = pf.SimulatorModel(
        lambda: pyro.sample("a", dist.Normal(0.0, 1.0)), lambda latents: latents["a"] + 0.1 * torch.randn(())
    )
    guide = pf.AmortizedFlow(simulator)
    fit = pf.fit_amortized(guide, num_simulations=100, max_epochs=1, **QUICK)
    assert not fit.fresh
    with pytest.raises(ValueError, match="simulator has no density"):
        fit.diagnose(torch.zeros(()))


def test_flow_matching_trains_a_continuous_posterior():
    """Two modes; divergences from the exact posterior, by quadrature, of data that are typical."""
    guide = pf.AmortizedFlow(curved, flow="cnf", observed=["x"], flow_options={"hidden_dims": (32, 32)})
    fit = pf.fit_amortized(guide, objective="flow_matching", num_simulations=4000, max_epochs=60, **QUICK)
    assert fit.validation_losses[0][fit.best_epochs[0]] < fit.validation_losses[0][0] - 0.2
    a = torch.linspace(-4, 4, 801)[:, None]
    x = torch.tensor([0.3, 0.8, 1.5])
    joint = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a.abs(), 0.3).log_prob(x)
    exact = (joint - joint.logsumexp(0)).exp()
    with torch.no_grad():
        found = guide.log_prob({"a": a.expand(801, 3)}, x)
    assert float((found.exp().sum(0) * 0.01 - 1).abs().max()) < 0.01
    divergence = (exact * (exact.log() - found - torch.tensor(0.01).log())).nansum(0)
    assert float(divergence.max()) < 0.15, divergence
    with pytest.raises(ValueError, match="innermost layer"):
        pf.fit_amortized(guide_of(), objective="flow_matching", num_simulations=100, **QUICK)
    with pytest.raises(ValueError, match="objective must be"):
        pf.fit_amortized(guide_of(), objective="elbo", num_simulations=100, **QUICK)
