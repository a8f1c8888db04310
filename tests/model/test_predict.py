"""Posterior predictive draws come from the model's likelihood, one for each value of the latents."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.model import predictive

DRAWS = 4000


def regression(x: Tensor, y: Tensor | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        mean = pyro.deterministic("mean", slope * x)
        pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


@pytest.mark.parametrize("given", [True, False])
def test_draws_follow_their_own_latent_and_not_the_data(given: bool) -> None:
    slope = torch.randn(DRAWS)
    x = torch.tensor([1.0, 2.0, 3.0])
    drawn = predictive(regression, {"slope": slope}, (x, torch.full((3,), 100.0) if given else None), seed=0)
    assert set(drawn) == {"y"}
    assert drawn["y"].shape == (DRAWS, 3)
    noise = (drawn["y"] - slope[:, None] * x) / 0.1
    # Means within 5 standard errors of 0, sds within 5 of 1: once in 10^6 each. Rows and columns are independent.
    assert (noise.mean(0).abs() < 5 / DRAWS**0.5).all()
    assert ((noise.std(0) - 1).abs() < 5 / (2 * DRAWS) ** 0.5).all()
    assert torch.corrcoef(noise.T)[0, 1].abs() < 5 / DRAWS**0.5
    assert len(noise[:, 0].unique()) > DRAWS // 2


def test_covariates_of_another_length_are_all_right() -> None:
    assert predictive(regression, {"slope": torch.zeros(7)}, (torch.zeros(11),), seed=0)["y"].shape == (7, 11)


def test_a_seed_reproduces_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (
        predictive(regression, {"slope": torch.zeros(5)}, (torch.zeros(2),), seed=seed)["y"] for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


LIKELIHOODS = {
    "Beta": lambda m: dist.Beta(2.0 * m.exp(), 3.0),
    "Dirichlet": lambda m: dist.Dirichlet(torch.stack([m.exp(), 2 * m.exp(), 3 * m.exp()])),
    "StudentT": lambda m: dist.StudentT(30.0, m, 1.0),
    "MultivariateNormal": lambda m: dist.MultivariateNormal(m.expand(2), covariance_matrix=torch.eye(2)),
    "Exponential": lambda m: dist.Exponential(m.exp()),
    "VonMises": lambda m: dist.VonMises(m, 4.0),
    "Multinomial": lambda m: dist.Multinomial(10, logits=torch.stack([m, 0 * m])),
    "Poisson": lambda m: dist.Poisson(m.exp()),
    "Gamma": lambda m: dist.Gamma(m.exp(), 1.0),
    "Bernoulli": lambda m: dist.Bernoulli(logits=m),
    "Categorical": lambda m: dist.Categorical(logits=torch.stack([m, 0 * m])),
    "Uniform": lambda m: dist.Uniform(m, m + 1.0),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_that_vmap_cannot_sample_are_drawn_too(name: str) -> None:
    def model(y: Tensor | None = None) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", LIKELIHOODS[name](m), obs=y)

    count = 400
    m = torch.tensor([-1.0, 1.0]).repeat_interleave(count)
    drawn = predictive(model, {"m": m}, seed=0)["y"].double()
    event = LIKELIHOODS[name](m[0]).sample()
    assert drawn.shape == (2 * count, *event.shape)
    for half, value in ((drawn[:count], -1.0), (drawn[count:], 1.0)):
        single = LIKELIHOODS[name](torch.tensor(value)).sample((20000,)).double()
        error = (half.mean(0) - single.mean(0)).abs() / (half.std(0) / count**0.5)
        # At most 3 entries, 12 laws, 2 values: 5.5 standard errors by chance once in 10^5.
        assert (error < 5.5).all()
        assert (half.std(0) > 0).all()


def test_missing_data_are_drawn_anew() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor([1.0, torch.nan, 2.0]))

    assert torch.isfinite(predictive(model, {"mu": torch.zeros(4)}, seed=0)["y"]).all()


def test_no_handler_outside_sees_the_draws() -> None:
    with poutine.trace() as outer:
        predictive(regression, {"slope": torch.zeros(3)}, (torch.zeros(2),), seed=0)
    assert "y" not in outer.trace.nodes


def test_numbers_of_draws_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one common number of draws"):
        predictive(regression, {"slope": torch.zeros(3), "other": torch.zeros(4)}, (torch.zeros(2),))
    with pytest.raises(ValueError, match="one common number of draws"):
        predictive(regression, {}, (torch.zeros(2),))


def test_a_model_that_raises_is_reported_with_its_last_site() -> None:
    def model() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        raise KeyError("lost")

    with pytest.raises(ValueError, match="raised KeyError at or after sample site 'mu'"):
        predictive(model, {"mu": torch.zeros(3)})


def test_memory_that_runs_out_is_no_missing_draw():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if float(x) > 0.5:
            raise MemoryError("no more")
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match="MemoryError"):
        predictive(model, {"x": torch.tensor([0.0, 1.0, 0.0])}, seed=0)
