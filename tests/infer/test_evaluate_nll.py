"""Importance-weighted likelihoods against closed forms.

Estimates are compared within 4.5 of their standard errors, a false alarm in 150,000 per figure; seeds are fixed.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_flows as pf
from pyro_flows.guides.site_delta import SiteDelta
from pyro_flows.infer.importance import ElementWeights

N, D, K = 30, 5, 2


class FactorAnalysis:
    """x = W z + noise: a linear Gaussian autoencoder, whose likelihood and posterior are closed forms."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(D, K, generator=generator, dtype=dtype)
        self.noise = torch.linspace(0.5, 1.0, D, dtype=dtype)
        self.x = self.marginal().sample((N,))
        precision = torch.eye(K, dtype=dtype) + (self.weight.T / self.noise**2) @ self.weight
        self.cov = torch.linalg.inv(precision)
        self.gain = self.cov @ (self.weight.T / self.noise**2)
        self.width, self.shift, self.calls = 1.2, 0.2, 0

    def marginal(self):
        return dist.MultivariateNormal(torch.zeros_like(self.noise), self.weight @ self.weight.T + self.noise.square().diag())

    def prior(self):
        return dist.Normal(self.weight.new_zeros(K), 1.0).to_event(1)

    def posterior(self, x):
        return dist.MultivariateNormal(x @ self.gain.T + self.shift, self.width**2 * self.cov)

    def model(self, x, size=None, index=None):
        with pyro.plate("data", size or len(x), subsample_size=len(x) if index is None else None, subsample=index):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise).to_event(1), obs=x)

    def guide(self, x, size=None, index=None):
        with pyro.plate("data", size or len(x), subsample_size=len(x) if index is None else None, subsample=index):
            pyro.sample("z", self.posterior(x))


def within(found, expected, error, factor=4.5):
    return bool(((torch.as_tensor(found) - torch.as_tensor(expected)).abs() < factor * torch.as_tensor(error) + 1e-5).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factor_analysis_with_an_imperfect_guide(dtype):
    fa = FactorAnalysis(dtype)
    result = pf.evaluate_nll(fa.model, fa.guide, fa.x, num_samples=4000, chunk_size=300, plate="data")
    exact = -fa.marginal().log_prob(fa.x).double()
    errors = (1 / result.ess - 1 / 4000).sqrt()
    assert result.values.dtype is torch.float64
    assert within(result.values, exact, errors)
    assert within(result.mean, exact.mean(), result.mcse)
    assert 0 < result.mcse < 0.01
    assert result.num_samples == 4000
    assert result.vectorized
    assert result.warning is None
    assert result.indices is None
    # The bound from the same draws is the likelihood less the divergence from the posterior, which is the same for all.
    exact_posterior = dist.MultivariateNormal(fa.x @ fa.gain.T, fa.cov)
    gap = torch.distributions.kl_divergence(fa.posterior(fa.x), exact_posterior).double()
    assert within(result.elbos, -exact - gap, (gap * 4 / 4000).sqrt() + 0.01)


def test_the_standard_error_is_the_spread_of_repetitions():
    fa = FactorAnalysis()
    results = [pf.evaluate_nll(fa.model, fa.guide, fa.x, num_samples=100, chunk_size=50, plate="data") for _ in range(40)]
    spread = float(torch.tensor([result.mean for result in results]).std())
    # The spread of 40 has an error of 11 per cent.
    assert 0.6 < spread / (sum(result.mcse for result in results) / 40) < 1.5


def test_the_exact_posterior_has_equal_weights():
    fa = FactorAnalysis(torch.float64)
    fa.width, fa.shift = 1.0, 0.0
    result = pf.evaluate_nll(fa.model, fa.guide, fa.x, num_samples=10, plate="data")
    torch.testing.assert_close(result.values, -fa.marginal().log_prob(fa.x))
    torch.testing.assert_close(result.ess, torch.full((N,), 10.0, dtype=torch.float64))
    assert result.mcse < 1e-6
    assert result.elbo == pytest.approx(-result.mean)


def test_a_poor_guide_is_reported():
    fa = FactorAnalysis()
    fa.width, fa.shift = 0.1, 3.0
    result = pf.evaluate_nll(fa.model, fa.guide, fa.x, num_samples=100, plate="data")
    assert int(result.unreliable.sum()) > N / 2
    assert "elements have fewer than 10 effective draws" in result.warning
    assert result.warning in str(result)
    assert float(result.ess_fraction.max()) <= 1.0


@pytest.mark.parametrize("given", [True, False])
def test_elements_of_a_subsampled_plate_are_not_scaled_and_keep_their_indices(given):
    fa = FactorAnalysis()
    exact = -fa.marginal().log_prob(fa.x).double()

    def indexed(own):
        def run(stochastic):
            def inner(x):
                index = torch.tensor([7, 3, 20]) if own else None
                with pyro.plate("data", len(x), subsample_size=None if own else 3, subsample=index) as chosen:
                    stochastic(x[chosen])

            return inner

        return run

    def latents(x):
        z = pyro.sample("z", fa.prior())
        pyro.sample("x", dist.Normal(z @ fa.weight.T, fa.noise).to_event(1), obs=x)

    # Where the model has indices, the guide's own draw of them must not take their place.
    model = indexed(given)(latents)
    guide = indexed(False)(lambda x: pyro.sample("z", fa.posterior(x)))
    result = pf.evaluate_nll(model, guide, fa.x, num_samples=2000, chunk_size=200, plate="data")
    assert result.indices.shape == (3,)
    if given:
        assert result.indices.tolist() == [7, 3, 20]
    assert within(result.values, exact[result.indices], (1 / result.ess - 1 / 2000).sqrt())


def test_masked_elements_and_inner_plates():
    x = torch.randn(4, 3)
    seen = torch.tensor([[True, True, False]]).expand(4, 3)

    def model():
        with pyro.plate("data", 4, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("feature", 3, dim=-1), poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 4, dim=-2):
            pyro.sample("z", dist.Normal(x[:, :2].sum(-1, keepdim=True) / 3, 0.7))

    exact = -dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1).log_prob(x[:, :2]).double()
    result = pf.evaluate_nll(model, guide, num_samples=2000, chunk_size=500, plate="data")
    assert result.vectorized
    assert within(result.values, exact, (1 / result.ess - 1 / 2000).sqrt())


def test_values_handed_on_with_their_jacobian():
    x = torch.tensor([0.5, -1.0, 2.0])

    def model():
        with pyro.plate("data", 3):
            s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(s.log(), 1.0), obs=x)

    def guide():
        with pyro.plate("data", 3):
            u = pyro.sample("u", dist.Normal(x / 2, 0.8), infer={"is_auxiliary": True})
            pyro.sample("s", SiteDelta(u.exp(), log_density=-u))

    result = pf.evaluate_nll(model, guide, num_samples=2000, chunk_size=500, plate="data")
    assert result.vectorized
    assert within(result.values, -dist.Normal(0.0, 2**0.5).log_prob(x).double(), (1 / result.ess - 1 / 2000).sqrt())


def shared_mean(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_latents_that_all_share_are_one_element_or_refused():
    y = torch.tensor([0.3, 1.1, 0.7])
    guide = pf.AutoFlow(shared_mean, flow="affine", init_scale=0.6).setup(y)
    exact = -dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 4).log_prob(y).double()
    result = pf.evaluate_nll(shared_mean, guide, y, num_samples=4000, chunk_size=500)
    assert result.values.shape == (1,)
    assert within(result.mean, exact, result.mcse)
    with pytest.raises(ValueError, match="latent site 'mean' is outside of plate 'data'"):
        pf.evaluate_nll(shared_mean, guide, y, plate="data")


@pytest.mark.parametrize("fault", ["raises", "is silently wrong"])
def test_models_that_take_one_draw_at_a_time_get_one(fault):
    fa = FactorAnalysis()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", fa.prior())
            scale = fa.noise * len(z) / N if fault == "is silently wrong" else fa.noise.expand(z.shape[0], D)
            mean = z @ fa.weight.T if fault == "is silently wrong" else torch.einsum("nk,dk->nd", z, fa.weight)
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    result = pf.evaluate_nll(model, fa.guide, fa.x, num_samples=300, plate="data")
    assert not result.vectorized
    assert within(result.values, -fa.marginal().log_prob(fa.x).double(), (1 / result.ess - 1 / 300).sqrt() + 1e-3)


def test_a_guide_without_inverse_is_scored_where_it_drew():
    # Pyro's Sylvester has no inverse, and remembers its last draw alone.
    fa = FactorAnalysis()
    flow = dist.transforms.Sylvester(K, count_transforms=2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.1)

    def guide(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal((x @ fa.gain.T), 1.2 * fa.cov.diag().sqrt()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    result = pf.evaluate_nll(fa.model, guide, fa.x, num_samples=300, plate="data")
    assert within(result.values, -fa.marginal().log_prob(fa.x).double(), (1 / result.ess - 1 / 300).sqrt() + 1e-3)


def test_an_interrupt_gives_what_is_there():
    fa = FactorAnalysis()
    calls = []

    def model(x):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        fa.model(x)

    result = pf.evaluate_nll(model, fa.guide, fa.x, num_samples=1000, chunk_size=10, plate="data")
    assert 0 < result.num_samples < 100
    assert bool(torch.isfinite(result.values).all())


def test_the_parameters_and_their_gradients_are_left_alone():
    fa = FactorAnalysis()
    fa.weight = fa.weight.clone().requires_grad_()
    result = pf.evaluate_nll(fa.model, fa.guide, fa.x, num_samples=10, plate="data")
    assert not result.values.requires_grad
    assert fa.weight.grad is None


def test_what_has_no_likelihood_by_element_is_refused():
    fa = FactorAnalysis()

    def check(model, guide, message, *args, plate="data", **options):
        with pytest.raises(ValueError, match=message):
            pf.evaluate_nll(model, guide, *(args or (fa.x,)), plate=plate, **options)

    check(fa.model, fa.guide, "plate must be one of the plates of the model, \\['data'\\], got 'rows'", plate="rows")
    check(fa.model, fa.guide, "plate must be the name of a plate", plate=3)
    check(fa.model, lambda x: None, "does not draw the latent site 'z'")
    check(fa.model, 3, "guide must be callable")
    check(fa.model, fa.guide, "num_samples must be an integer of at least 2", num_samples=1)
    check(fa.model, fa.guide, "chunk_size must be an integer of at least 1", chunk_size=0)
    check(fa.model, fa.guide, "kwargs must be a mapping", kwargs=[1])
    check(fa.model, fa.guide, "plate 'data' is subsampled", plate=None, kwargs={"size": 100})

    def more(x):
        fa.guide(x)
        pyro.sample("w", dist.Normal(0.0, 1.0))

    check(fa.model, more, "its site 'w' is not in the model")

    def factor(x):
        fa.model(x)
        pyro.factor("penalty", torch.tensor(1.0))

    check(factor, fa.guide, "observed site 'penalty' is outside of plate 'data'")

    def loop(x):
        for i in pyro.plate("data", 2):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    check(loop, loop, "plate 'data' is a loop")


def test_weights_that_are_no_numbers_are_named():
    fa = FactorAnalysis()
    x = fa.x.clone()
    x[3, 2] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ArithmeticError, match=r"for 1 of 30 elements, from sites \['x'\]"):
        pf.evaluate_nll(fa.model, lambda _: fa.guide(fa.x), x, num_samples=10, plate="data")


def test_nothing_is_made_on_the_default_device():
    fa = FactorAnalysis()
    weights = ElementWeights(fa.model, fa.guide, (fa.x,), {}, "data")
    trace = weights._run(3)[1]
    with torch.device("meta"):  # a tensor made without a device would be one, and its values would be lost
        total = weights._log_prob(trace)
    assert total.shape == (3, N)
    assert total.device.type == "cpu"
