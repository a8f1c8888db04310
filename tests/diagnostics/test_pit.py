"""Probability integral transform: uniform for a right model, left out or discrete; what is wrong is said."""

from __future__ import annotations

import math

import matplotlib
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import pit

matplotlib.use("Agg")


def conjugate(count, scale=1.0, shift=0.0, num_draws=2000):
    """Data of unknown mean, draws of its posterior, their predictions with another scale or shift, and log-likelihoods."""
    y = 3.0 + torch.randn(count, dtype=torch.float64)
    mean = y.mean() + torch.randn(num_draws, 1, dtype=torch.float64) / math.sqrt(count)
    drawn = mean + shift + scale * torch.randn(num_draws, count, dtype=torch.float64)
    return drawn, y, dist.Normal(mean + shift, scale).log_prob(y)


def test_left_out_shares_are_those_of_the_exact_predictive():
    """Flat prior: y given the others is normal about their mean with variance 1 + 1 / (n - 1). Five sds of a share of draws."""
    torch.manual_seed(0)
    drawn, y, log_likelihood = conjugate(12, num_draws=20_000)
    found = pit(drawn, y, log_likelihood=log_likelihood)
    others = (y.sum() - y) / 11
    exact = dist.Normal(others, math.sqrt(1 + 1 / 11)).cdf(y)
    assert float((found.values - exact).abs().max()) < 5 * 0.5 / math.sqrt(5000)
    assert found.leave_one_out and found.num_unreliable == 0


def test_level_and_what_is_wrong():
    """100 right models: 0 to 14 alarms at 5 % but once in 10,000. Wrong ones of 300 observations are seen and named."""
    torch.manual_seed(0)
    alarms = 0
    for _ in range(100):
        drawn, y, log_likelihood = conjugate(60, num_draws=500)
        alarms += pit(drawn, y, log_likelihood=log_likelihood).p_value < 0.05
    assert alarms <= 14
    said = {}
    for name, scale, shift in (("narrow", 0.6, 0.0), ("wide", 1.7, 0.0), ("low", 1.0, -0.6), ("high", 1.0, 0.6)):
        drawn, y, log_likelihood = conjugate(300, scale, shift, 1000)
        said[name] = pit(drawn, y, log_likelihood=log_likelihood).sentence
    assert all(f"too {name}" in sentence for name, sentence in said.items()), said
    assert "helped to predict itself" in pit(drawn, y).sentence


def test_discrete_data_are_randomised():
    """Poisson data under their own distribution: uniform, though the counts are few."""
    torch.manual_seed(0)
    y = dist.Poisson(torch.full((2000,), 0.7)).sample()
    found = pit(dist.Poisson(torch.full((500, 2000), 0.7)).sample(), y)
    assert found.p_value > 0.01
    assert pit(dist.Poisson(torch.full((500, 2000), 1.2)).sample(), y).p_value < 0.001


def test_weights_correct_draws_of_another_distribution():
    torch.manual_seed(0)
    y = torch.randn(200, dtype=torch.float64)
    scale = 1.5
    drawn = scale * torch.randn(4000, 1, dtype=torch.float64) / math.sqrt(200) + y.mean()
    log_weights = dist.Normal(y.mean(), 1 / math.sqrt(200)).log_prob(drawn) - dist.Normal(
        y.mean(), scale / math.sqrt(200)
    ).log_prob(drawn)
    predicted = drawn + torch.randn(4000, 200, dtype=torch.float64)
    assert pit(predicted, y, log_weights=log_weights[:, 0]).p_value > 0.01


def test_a_fit_is_asked(tmp_path):
    torch.manual_seed(0)

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x = torch.randn(150)
    fit = pf.fit(model, x, 2 * x + torch.randn(150), guide="affine", seed=0, progress=False)
    found = fit.pit()
    assert found.values.shape == (150,) and found.p_value > 0.01 and "Nothing" in str(found)
    found.plot(tmp_path / "pit.png")
    assert (tmp_path / "pit.png").stat().st_size > 1000
    assert pf.fit(model, x, 2 * x + 3 + torch.randn(150), guide="affine", seed=0, progress=False).pit().p_value < 0.01
    with pytest.raises(ValueError, match=r"observed site of the model, one of \['y'\]"):
        fit.pit(site="slope")


def test_vectors_are_looked_at_component_by_component():
    torch.manual_seed(0)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    fit = pf.fit(model, torch.randn(30, 2), guide="affine", seed=0, progress=False)
    assert fit.pit(1000).values.shape == (60,)


def test_too_few_and_bad_input():
    few = pit(torch.randn(100, 8), torch.randn(8))
    assert math.isnan(few.p_value) and "at least 10" in few.sentence
    with pytest.raises(ValueError, match="at least 10"):
        few.plot()
    with pytest.raises(ValueError, match="one column for each"):
        pit(torch.randn(100, 8), torch.randn(9))
    with pytest.raises(ValueError, match="NaN"):
        pit(torch.randn(100, 1), torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="one entry for each of the 100 draws"):
        pit(torch.randn(100, 1), torch.zeros(1), log_weights=torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(100, 1\)"):
        pit(torch.randn(100, 1), torch.zeros(1), log_likelihood=torch.zeros(100))
