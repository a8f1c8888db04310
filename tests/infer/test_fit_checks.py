"""Leave-one-out and predictions of masked, scaled, dependent and vector observations."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_flows as pf

QUICK = {"guide": "affine", "max_steps": 300, "seed": 0, "progress": False}


def masked(y, mask):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def missing(y, mask):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=mask)


@pytest.mark.parametrize("model", [masked, missing])
@pytest.mark.parametrize("filler", [0.0, math.nan])
def test_what_is_masked_is_no_observation(model, filler):
    torch.manual_seed(0)
    y, mask = torch.randn(40) + 3, torch.arange(40) >= 20
    if model is missing and math.isnan(filler):
        pytest.skip("Pyro's obs_mask takes no NaN")
    alone = pf.fit(masked, y[20:], torch.ones(20).bool(), **QUICK)
    fit = pf.fit(model, torch.where(mask, y, filler), mask, **QUICK)
    ours, seen = fit.loo(4000), alone.loo(4000)
    assert len(ours.pointwise) == 20
    assert ours.elpd == pytest.approx(seen.elpd, abs=0.2) and ours.se == pytest.approx(seen.se, abs=0.1)
    assert len(fit.pit(1000).values) == 20 and fit.pit(1000).p_value > 0.01
    assert "Nothing in 20 observations" in str(fit.report(num_samples=500))


def test_an_observation_on_which_another_hangs_stays_as_it_was_seen():
    """y = 3 m + 1 is ten of its sds off; drawn with m anew it would look right."""

    def mediated(m, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 50):
            seen = pyro.sample("m", dist.Normal(a, 1.0), obs=m)
            pyro.sample("y", dist.Normal(3 * seen, 0.1), obs=y)

    torch.manual_seed(0)
    m = torch.randn(50) + 0.3
    right = 3 * m + 0.1 * torch.randn(50)
    assert pf.fit(mediated, m, right + 1, **QUICK).pit(1000, site="y").p_value < 0.001
    assert pf.fit(mediated, m, right, **QUICK).pit(1000, site="y").p_value > 0.01


def test_components_of_vectors_have_no_test():
    covariance = 0.95 * torch.ones(5, 5) + 0.05 * torch.eye(5)

    def vectors(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MultivariateNormal(x * torch.ones(5), covariance), obs=y)

    torch.manual_seed(0)
    y = dist.MultivariateNormal(torch.zeros(5), covariance).sample((8,))
    found = pf.fit(vectors, y, **QUICK).pit(1000)
    assert math.isnan(found.p_value) and "hang together" in found.sentence and len(found.values) == 40


def test_scaled_observations_cannot_be_left_out_but_weigh_in_the_sensitivity():
    def scaled(y, scale):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=scale), pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    torch.manual_seed(0)
    y = torch.randn(5) + 2
    fit, thrice = pf.fit(scaled, y, 3.0, **QUICK), pf.fit(scaled, y.repeat(3), 1.0, **QUICK)
    for ask in (fit.loo, fit.pit):
        with pytest.raises(ValueError, match="are scaled"):
            ask(1000)
    ours, theirs = fit.prior_sensitivity(20_000), thrice.prior_sensitivity(20_000)
    assert ours.likelihood["m"] == pytest.approx(theirs.likelihood["m"], rel=0.15)


def test_observations_that_broadcast_and_single_ones():
    def broadcast(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    def single(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    fit = pf.fit(broadcast, torch.tensor(1.0), **QUICK)
    assert len(fit.pit(500).values) == len(fit.loo(500).pointwise) == 3
    assert "nan" not in str(pf.fit(single, torch.tensor(1.0), **QUICK).loo(500))


def test_draws_of_a_seed_are_the_same_at_every_call():
    def schools(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("schools", 12):
            effect = pyro.sample("effect", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    guide = pf.AutoPlateFlow(schools, {"schools": 3})
    fit = pf.fit(schools, torch.linspace(-1, 1, 12), guide=guide, max_steps=20, seed=0, progress=False)
    first = fit.sample(3, seed=1)
    assert all(torch.equal(fit.sample(3, seed=1)[name], value) for name, value in first.items())


def test_names_with_dollars_and_folders(tmp_path):
    def odd(y):
        x = pyro.sample("a$_$b", dist.Normal(0.0, 1.0))
        z = pyro.sample("$x$", dist.Normal(0.0, 1.0))
        pyro.sample("y$_", dist.Normal(x + z, 1.0), obs=y)

    fit = pf.fit(odd, torch.tensor(1.0), **QUICK)
    fit.report(tmp_path / "report.html", num_samples=300)
    with pytest.raises(ValueError, match="got the folder"):
        fit.report(tmp_path, num_samples=300)


def test_passes_that_are_not_followed_by_gradients_are_forgotten():
    """A node that keeps a view of its own output is never freed: 76 tensors a step of an inverse autoregressive guide."""
    import gc

    guide = pf.AutoFlow(lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1)), flow="iaf").setup()
    elbo = pf.infer.PathELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0)

    def tensors():
        elbo.differentiable_loss(lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1)), guide).backward()
        gc.collect()
        return sum(type(one) is torch.Tensor for one in gc.get_objects())

    for _ in range(3):
        before = tensors()
    for _ in range(5):
        after = tensors()
    assert after <= before


def test_nothing_is_made_on_a_default_device():
    """A tensor made without a device would be one of meta, and its values lost."""

    def model(y, mask, zero, one):  # a model's own numbers would be there as well
        mean = pyro.sample("mean", dist.Normal(zero, 10 * one))
        with pyro.plate("rows", len(y), device="cpu"), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mean, one), obs=y)

    torch.manual_seed(0)
    fit = pf.fit(model, torch.randn(20), torch.arange(20) >= 5, torch.zeros(()), torch.ones(()), **QUICK)
    expected = fit.loo(500).elpd, fit.pit(500).values, fit.prior_sensitivity(500).prior, str(fit.report(num_samples=500))
    with torch.device("meta"):
        found = fit.loo(500).elpd, fit.pit(500).values, fit.prior_sensitivity(500).prior, str(fit.report(num_samples=500))
    assert found[0] == expected[0] and torch.equal(found[1], expected[1]) and found[2:] == expected[2:]
