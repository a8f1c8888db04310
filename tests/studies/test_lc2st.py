"""The local classifier test: its level, and power where calibration over the prior sees nothing."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.studies import lc2st, lc2st_of, ranks_of

AT = torch.tensor([[-2.0], [2.0]])


def posterior(y, *size, lean=0.0):
    """Normal with mean y / 2 and variance 1 / 2; with ``lean`` it is too high for positive data and too low for negative ones."""
    return y / 2 + 0.5**0.5 * (torch.randn(*size, 1) + lean * y.sign())


def simulated(count, lean=0.0, **options):
    x = torch.randn(count, 1)
    y = x + torch.randn(count, 1)
    at = posterior(AT[:, None], 2, 500, lean=lean)
    return lc2st_of(x, posterior(y, count, lean=lean), y, at, AT, num_null=19, progress=False, **options)


def test_an_exact_posterior_passes():
    """10 studies at 5 % (the largest of 20): at most 3 alarms, more fall once in 1,000."""
    torch.manual_seed(0)
    assert sum(float(simulated(300).p_value[0]) <= 0.05 for _ in range(10)) <= 3


def test_errors_that_average_out_are_seen_where_they_are():
    """Half an sd too high at some data and too low at others: ranks over the prior are right but for little."""
    torch.manual_seed(0)
    found = simulated(2000, lean=0.5)
    assert bool((found.p_value <= 0.05).all()) and "2 of 2 data sets are not right" in str(found)
    x = torch.randn(300)
    y = x + torch.randn(300)
    shifted = y[:, None] / 2 + 0.5**0.5 * (torch.randn(300, 99) + 0.3 * y.sign()[:, None])
    assert ranks_of({"x": x}, {"x": shifted}).test("x").p_value > 0.01


def test_of_an_amortised_guide():
    def model(y=None):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    guide = pf.AmortizedFlow(model, observed=["y"])
    pf.fit_amortized(guide, num_simulations=2000, max_epochs=10, seed=0, progress=False)
    fresh = pf.simulate(model, num_simulations=1000, observed=["y"], seed=1, progress=False)
    found = lc2st(guide, fresh, torch.zeros(2), num_null=19, progress=False)
    assert float(found.statistic) < 0.02 and "posterior of this data set is" in found.sentence
    same = pf.simulate(model, num_simulations=1000, observed=["y"], seed=0, progress=False)  # the seed of the test itself
    assert float(lc2st(guide, same, torch.zeros(2), num_null=19, progress=False, seed=0).statistic) < 0.02
    assert lc2st(guide, fresh, torch.zeros(3, 2), num_null=19, num_draws=50, progress=False).p_value.shape == (3,)
    with pytest.raises(ValueError, match="one data set or M of them"):
        lc2st(guide, fresh, torch.zeros(2, 3, 2), progress=False)
    with pytest.raises(ValueError, match="AmortizedFlow, got str"):
        lc2st("guide", fresh, torch.zeros(2))
    with pytest.raises(ValueError, match="pf.simulate"):
        lc2st(guide, None, torch.zeros(2))


def test_bad_input():
    x = torch.randn(300, 1)
    at = torch.zeros(1, 100, 1), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="at least 200 are needed"):
        lc2st_of(x[:50], x[:50], x[:50], *at)
    with pytest.raises(ValueError, match=r"\(N, D\), \(N, D\), \(N, P\)"):
        lc2st_of(x, x[1:], x, *at)
    with pytest.raises(ValueError, match="at least 19"):
        lc2st_of(x, x, x, *at, num_null=5)
    with pytest.raises(ValueError, match="drawn must be finite"):
        lc2st_of(x, x * torch.nan, x, *at)
    with pytest.raises(ValueError, match="at_draws must be a tensor of 3"):
        lc2st_of(x, x, x, at[0][0], at[1])
