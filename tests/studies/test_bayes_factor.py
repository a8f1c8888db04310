"""Bayes factors against exact ones of nested linear models, conjugate counts and hierarchical priors."""

from __future__ import annotations

import importlib
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.studies import BayesFactor, bayes_factor, savage_dickey

QUICK = {"guide": "affine", "progress": False, "seed": 0}


def linear(x, y, extra):
    """Two coefficients, and some more that the nested model holds at zero."""
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    mean = x[:, :2] @ beta
    if extra:
        more = pyro.sample("more", dist.Normal(x.new_zeros(extra), 2.0).to_event(1))
        mean = mean + x[:, 2 : 2 + extra] @ more
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 0.7), obs=y)


def evidence(x, y):
    """Of coefficients with sd 2 and noise of sd 0.7."""
    covariance = 4 * x @ x.T + 0.49 * torch.eye(len(y), dtype=torch.float64)
    return float(dist.MultivariateNormal(torch.zeros(len(y), dtype=torch.float64), covariance).log_prob(y))


@pytest.mark.parametrize("extra", [1, 8])
def test_nested_linear_models(extra):
    """Within .05 nats of the exact factor, by both ways, the point far in the tail of the posterior."""
    torch.manual_seed(0)
    x = torch.randn(60, 10, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -1.0, *[0.4] * 8], dtype=torch.float64) + 0.7 * torch.randn(60, dtype=torch.float64)
    exact = evidence(x[:, :2], y) - evidence(x[:, : 2 + extra], y)
    large = pf.fit(linear, x, y, extra, **QUICK)
    ratio = savage_dickey(large, {"more": 0.0}, **{k: v for k, v in QUICK.items() if k != "seed"})
    small = pf.fit(linear, x, y, 0, **QUICK)
    factor = bayes_factor(small, large)
    for found in (ratio, factor):
        assert abs(found.log_value - exact) < 0.05, (found, exact)
        assert found.mcse < 0.02 and "poor" not in found.verdicts
    assert exact < -5 and "second model" in str(ratio)


@pytest.mark.slow
def test_a_prior_that_hangs_on_other_latents_is_integrated():
    """theta ~ N(0, tau), tau ~ HalfNormal: the prior density at 0.5 by quadrature."""

    def model(y):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    y = torch.tensor(1.0, dtype=torch.float64)
    tau = torch.linspace(1e-3, 8.0, 20_000, dtype=torch.float64)
    weight = dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64)).log_prob(tau).exp() * (tau[1] - tau[0])
    evidence = float((weight * dist.Normal(0.0, (tau**2 + 1).sqrt()).log_prob(y).exp()).sum())
    exact = float(dist.Normal(0.5, 1.0).log_prob(y)) - math.log(evidence)
    fit = pf.fit(model, y, guide="nsf_autoregressive", max_steps=800, progress=False, seed=0)
    found = savage_dickey(fit, {"theta": 0.5}, guide="affine", progress=False)
    assert abs(found.log_value - exact) < 5 * found.mcse + 0.02 and 0 < found.mcse < 0.1


def test_all_latents_at_a_point():
    def model(k):
        rate = pyro.sample("rate", dist.Beta(2.0, 3.0))
        pyro.sample("k", dist.Binomial(10, rate), obs=k)

    k = torch.tensor(7.0)
    fit = pf.fit(model, k, **QUICK)
    found = savage_dickey(fit, {"rate": 0.5}, progress=False)
    posterior, prior = dist.Beta(9.0, 6.0), dist.Beta(2.0, 3.0)
    half = torch.tensor(0.5)
    assert abs(found.log_value - float(posterior.log_prob(half) - prior.log_prob(half))) < 0.02
    with pytest.raises(ValueError, match="support"):
        savage_dickey(fit, {"rate": 1.5}, progress=False)
    with pytest.raises(ValueError, match=r"\['rate'\], got \['p'\]"):
        savage_dickey(fit, {"p": 0.5}, progress=False)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        savage_dickey(fit, {"rate": [0.5, 0.5]}, progress=False)


def test_other_data_are_refused_and_words():
    torch.manual_seed(0)
    x, y = torch.randn(20, 10), torch.randn(20)
    fits = [pf.fit(linear, x, data, 0, max_steps=50, **QUICK) for data in (y, y + 1)]
    with pytest.raises(ValueError, match="with other values"):
        bayes_factor(*fits)
    assert "cannot be relied on" in str(BayesFactor(1.0, 0.1, ("poor", "good")))
    assert "10^" in str(BayesFactor(100.0, 0.1, ("good", "good")))


def spike_and_slab(y):
    z = pyro.sample("z", dist.Bernoulli(0.01), infer={"enumerate": "parallel"})
    x = pyro.sample("x", dist.Normal(0.0, 1.0 + 99.0 * z))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_a_rare_branch_of_the_prior_counts():
    """One prior run of a hundred takes it; at 25 it holds all the density."""
    fit = pf.fit(spike_and_slab, torch.tensor(30.0), guide="affine", max_steps=1000, seed=0, progress=False)
    found = savage_dickey(fit, {"x": 25.0}, progress=False)
    normal = lambda mean, sd, at: float(dist.Normal(mean, sd).log_prob(torch.tensor(at)).exp())  # noqa: E731
    evidence = 0.99 * normal(0.0, 2**0.5, 30.0) + 0.01 * normal(0.0, 10001**0.5, 30.0)
    exact = float(dist.Normal(25.0, 1.0).log_prob(torch.tensor(30.0))) - math.log(evidence)
    assert abs(found.log_value - exact) < 0.05 + 5 * found.mcse


@pytest.mark.slow
def test_a_prior_density_that_few_draws_of_the_prior_see():
    """30 effects close together: nearly no tau of the prior is small enough; by quadrature over tau, mean integrated out."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 100.0))
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("groups", 30):
            effect = pyro.sample("effect", dist.Normal(mean, tau))
            pyro.sample("y", dist.Normal(effect, 0.1), obs=y)

    torch.manual_seed(1)
    at = (0.1 * torch.randn(30)).double()

    def log_marginal(points, extra):
        """Of points normal about the mean with variance tau^2 + extra."""
        grid = torch.logspace(-4, 3, 20_001, dtype=torch.float64)
        variance = grid**2 + extra
        precision = 30 / variance + 1e-4
        squares = (points.square().sum() - (points.sum() ** 2) / variance / precision) / variance
        log_p = -15 * (2 * math.pi * variance).log() - 0.5 * squares - 0.5 * (precision * 1e4).log()
        return float(torch.logsumexp(log_p + dist.HalfCauchy(torch.ones(())).log_prob(grid) + torch.gradient(grid)[0].log(), 0))

    y = at + 0.1 * torch.randn(30).double()
    exact = float(dist.Normal(at, 0.1).log_prob(y).sum()) - log_marginal(y, 0.01)
    fit = pf.fit(model, y.float(), seed=0, progress=False, max_steps=2000)
    found = savage_dickey(fit, {"effect": at.float()}, progress=False, max_steps=2000)
    assert abs(found.log_value - exact) < 0.1 + 5 * found.mcse, (found, exact)


def test_what_makes_no_bayes_factor_is_refused():
    def parameterised(y):
        sd = pyro.param("sd", torch.tensor(1.0), constraint=dist.constraints.positive)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, sd), obs=y)

    def scaled(y):
        with pyro.poutine.scale(scale=2.0):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def factored(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("more", -(x**2))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def masked(y, mask):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)), pyro.poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def edge(y):
        x = pyro.sample("x", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    y, quick = torch.tensor(1.0), {"max_steps": 20, **QUICK}
    with pytest.raises(ValueError, match="fitted by maximum likelihood"):
        savage_dickey(pf.fit(parameterised, y, **quick), {"x": 0.0})
    for model in (scaled, factored):
        with pytest.raises(ValueError, match="no distribution"):
            savage_dickey(pf.fit(model, y, **quick), {"x": 0.0})
    rows = torch.randn(6)
    fits = [pf.fit(masked, rows, mask, **quick) for mask in (torch.ones(6).bool(), torch.arange(6) < 3)]
    with pytest.raises(ValueError, match="masks or scales"):
        bayes_factor(*fits)
    empty = torch.where(torch.arange(6) < 3, rows, torch.nan)
    again = [pf.fit(masked, values, torch.arange(6) < 3, **quick) for values in (empty, rows)]
    assert abs(bayes_factor(*again).log_value) < 0.1  # what is masked may be anything
    with pytest.raises(ValueError, match="must be a Fit"):
        bayes_factor(fits[0], fits[0].guide)
    at_edge = savage_dickey(
        pf.fit(edge, y, guide="nsf_coupling", seed=0, max_steps=500, progress=False), {"x": 0.0}, progress=False
    )
    evidence = 2 * dist.Normal(0.0, 2**0.5).log_prob(y).exp() * dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5**0.5))
    assert abs(at_edge.log_value - float(dist.Normal(0.0, 1.0).log_prob(y) - evidence.log())) < 0.03


def test_a_prior_whose_parents_cannot_be_read_is_not_taken_for_unconditional(monkeypatch):
    def model(y):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    fit = pf.fit(model, torch.tensor(1.0), guide="affine", max_steps=100, seed=0, progress=False)
    point = {"tau": 0.5, "theta": 0.2}
    expected = savage_dickey(fit, point, progress=False)

    def unreadable(*_):
        warnings.warn("which latents depend on which could not be read from the model", stacklevel=2)
        return {"tau": (), "theta": ()}

    asked = []
    module = importlib.import_module("pyro_flows.studies.bayes_factor")
    monkeypatch.setattr(module, "prior_parents", unreadable)
    monkeypatch.setattr(module, "_log_prob_of", lambda *_: asked.append(1) or 0.0)
    assert savage_dickey(fit, point, progress=False).log_value == pytest.approx(expected.log_value, abs=1e-4) and not asked
