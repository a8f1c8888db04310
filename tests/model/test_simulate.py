"""Simulations of models: all at once only where that is right, by processes with the same result, failures counted."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.model.prior_draws import prior_draws


def by_vmap(x=None):
    th = pyro.sample("th", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("n", 3):
        pyro.sample("x", dist.Normal(th - th.mean(), 1.0), obs=x)


def by_plate(x=None):
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", 3):
        pyro.sample("x", dist.Normal(pyro.sample("b", dist.Beta(a, 1.0)), 1.0), obs=x)


def wrong_in_a_plate(x=None):
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", 3):
        b = pyro.sample("b", dist.Beta(a, 1.0))
        pyro.sample("x", dist.Normal(10 * (b - b.mean()), 0.1), obs=x)


def hidden_noise(x=None):
    pyro.sample("x", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)) + np.random.randn(), 0.1), obs=x)


def branches(x=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(5.0 if a > 0 else -5.0, 0.1), obs=x)


@pytest.mark.parametrize(
    ("model", "path"),
    [(by_vmap, "vmap"), (by_plate, "plate"), (wrong_in_a_plate, "loop"), (hidden_noise, "loop"), (branches, "loop")],
)
def test_a_model_runs_for_all_draws_at_once_only_where_that_is_right(model, path):
    found = pf.simulate(model, num_simulations=300, observed=["x"], seed=0, progress=False)
    assert found.path == path, found.reasons
    assert len(found) == 300


def test_wrong_in_a_plate_is_right_in_the_end():
    # Deviations from the mean sum to zero in each draw, but for noise of sd 0.1 * sqrt(3).
    x = pf.simulate(wrong_in_a_plate, num_simulations=200, observed=["x"], seed=0, progress=False).observations["x"]
    assert float(x.sum(-1).std()) == pytest.approx(0.1 * 3**0.5, rel=0.3)


def test_hidden_noise_is_drawn_anew_each_time():
    found = pf.simulate(hidden_noise, num_simulations=400, observed=["x"], seed=0, progress=False)
    residual = found.observations["x"] - found.latents["a"]
    assert 0.8 < float(residual.std()) < 1.2


def test_all_at_once_has_the_distribution_of_single_runs():
    # Means and second moments of 4,000 and of 1,000 draws; the largest of 18 differences in standard errors exceeds 4.5 in
    # one of 8,000 seeds.
    shapes = {"a": torch.Size(()), "b": torch.Size((3,)), "x": torch.Size((3,))}
    at_once = prior_draws(by_plate, (), {}, 4000, shapes, batch_dims={"b": 1, "x": 1})
    torch.manual_seed(1)
    rows = []
    for _ in range(1000):
        trace = pyro.poutine.trace(by_plate).get_trace()
        rows.append(torch.cat([trace.nodes[name]["value"].reshape(-1) for name in shapes]))
    single = torch.stack(rows)
    vector = torch.cat([at_once.values[name].reshape(4000, -1) for name in shapes], -1)
    for power in (1, 2):
        a, b = vector**power, single**power
        error = (a.mean(0) - b.mean(0)).abs() / (a.var(0) / 4000 + b.var(0) / 1000).sqrt()
        assert float(error.max()) < 4.5


def test_latents_can_be_given_on_every_path():
    for model in (by_plate, wrong_in_a_plate):
        given = {"a": torch.full((50,), 3.0), "b": torch.rand(50, 3)}
        found = pf.simulate(model, observed=["x"], latents=given, seed=0, progress=False)
        torch.testing.assert_close(found.latents["b"], given["b"])
        mean = given["b"] if model is by_plate else 10 * (given["b"] - given["b"].mean(-1, keepdim=True))
        assert float((found.observations["x"] - mean).std()) < 1.3
    with pytest.raises(ValueError, match="latents must hold a value"):
        pf.simulate(by_plate, observed=["x"], latents={"a": torch.ones(5)}, progress=False)


# Simulators


def prior():
    pyro.sample("a", dist.Uniform(-torch.ones(2), 1.0).to_event(1))


def noisy(latents):
    return latents["a"].sum().item() + np.random.randn(3) + random.random() + torch.randn(3).numpy()


def failing(latents):
    if latents["a"][0] < -0.9:
        raise RuntimeError("the solver did not converge")
    return [float("nan"), 1.0] if latents["a"][0] > 0.9 else latents["a"]


def test_simulator_gives_the_same_in_any_number_of_processes():
    model = pf.SimulatorModel(prior, noisy)
    one, two = (pf.simulate(model, num_simulations=60, seed=3, num_workers=workers, progress=False) for workers in (1, 2))
    assert torch.equal(one.observations["x"], two.observations["x"])
    assert torch.equal(one.latents["a"], two.latents["a"])
    noise = one.observations["x"] - one.latents["a"].sum(-1, keepdim=True)
    assert float(noise.std(0).min()) > 0.5  # and not one noise for all
    other = pf.simulate(model, num_simulations=60, seed=4, progress=False)
    assert not torch.equal(one.observations["x"], other.observations["x"])


def test_generators_are_left_as_they_were():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    pf.simulate(pf.SimulatorModel(prior, noisy), num_simulations=5, seed=3, progress=False)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_failed_simulations_are_counted_reported_and_left_out():
    model = pf.SimulatorModel(prior, failing)
    with pytest.warns(UserWarning, match="of 400 simulations failed and are left out.*given success"):
        found = pf.simulate(model, num_simulations=400, seed=0, progress=False)
    assert set(found.failures) == {"RuntimeError: the solver did not converge", "data that are NaN or infinite"}
    assert found.num_failed == sum(found.failures.values()) == 400 - len(found)
    assert float(found.latents["a"][:, 0].abs().max()) <= 0.9  # the latents of those that failed are left out with them
    with pytest.raises(ValueError, match=r"more than the share max_failed=0.01 that may: .*NaN or infinite"):
        pf.simulate(model, num_simulations=400, seed=0, max_failed=0.01, progress=False)


def test_pyro_model_that_raises_for_some_draws_is_counted_too():
    def model(x=None):
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        if a > 0.95:
            raise RuntimeError("too large")
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    with pytest.warns(UserWarning, match=r"RuntimeError: too large"):
        found = pf.simulate(model, num_simulations=200, observed=["x"], seed=0, progress=False)
    assert found.num_failed > 0
    assert len(found) + found.num_failed == 200


def test_simulator_that_always_fails_is_an_error_that_says_why():
    def never(latents):
        raise RuntimeError("no licence")

    with pytest.raises(ValueError, match="no licence"):
        pf.simulate(pf.SimulatorModel(prior, never), num_simulations=5, progress=False)


def test_simulator_has_no_elbo():
    model = pf.SimulatorModel(prior, noisy)
    guide = pf.AmortizedFlow(model, flow="affine").setup()
    with pytest.raises(ValueError, match="a simulator has no density"):
        pyro.infer.Trace_ELBO().loss(model, guide, torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_simulations": 0}, "num_simulations must be"),
        ({"max_failed": 1.0}, "max_failed must be"),
        ({"seed": -1}, "seed must be"),
        ({"num_workers": 0}, "num_workers must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        pf.simulate(by_vmap, observed=["x"], **options)
    with pytest.raises(ValueError, match="prior must be a Pyro model"):
        pf.SimulatorModel(3, noisy)
    with pytest.raises(ValueError, match="simulator must be callable"):
        pf.SimulatorModel(prior, 3)
