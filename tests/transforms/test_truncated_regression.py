"""Truncated regression against closed forms, in the tails too, and what starts training."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import truncnorm

from pyro_flows import flows
from pyro_flows.distributions import FlowDistribution
from pyro_flows.transforms import RegressionFlow, TruncatedRegression

INF = torch.inf


@pytest.mark.parametrize("location", [-12.0, -1.0, 0.3, 1.0, 8.0])
@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (0.0, INF), (-INF, 1.0)])
def test_density_is_that_of_a_truncated_normal(location, lower, upper):
    t = TruncatedRegression(torch.tensor([lower]), torch.tensor([upper])).double()
    with torch.no_grad():
        t.bias.fill_(location)
        t.log_scale.fill_(-0.7)
    scale = t.log_scale.exp().item()
    y = torch.linspace(max(lower, -2.0) + 1e-3, min(upper, 3.0) - 1e-3, 40, dtype=torch.float64)[:, None]
    a, b = (lower - location) / scale, (upper - location) / scale
    expected = torch.as_tensor(truncnorm.logpdf(y[:, 0].numpy(), a, b, location, scale))
    torch.testing.assert_close(FlowDistribution(t).log_prob(y).detach(), expected, rtol=1e-6, atol=1e-6)


def test_both_directions_agree_and_draws_stay_inside():
    torch.manual_seed(0)
    t = TruncatedRegression(torch.tensor([-1.0, 0.0, -INF, -INF]), torch.tensor([1.0, INF, 2.0, INF]), 2)
    with torch.no_grad():
        t.weight.normal_()
    c, x = 5 * torch.randn(2000, 2), torch.randn(2000, 4)
    y, log_det = t.forward_and_log_det(x, c)
    assert bool((y >= t.lower).all() and (y <= t.upper).all())
    doubled = t.double()
    y, log_det = doubled.forward_and_log_det(x.double(), c.double())
    back, log_det_back = doubled.inverse_and_log_det(y, c.double())
    assert bool((back - x).abs().max() < 1e-8)
    assert bool((log_det + log_det_back).abs().max() < 1e-8)


def test_gradients_are_finite_far_outside():
    t = TruncatedRegression(torch.zeros(1), torch.ones(1), 1)
    c = torch.tensor([[-1e4], [0.0], [1e4]])
    with torch.no_grad():
        t.weight.fill_(1.0)
    loss = FlowDistribution(t).condition(c).log_prob(torch.tensor([[0.01], [0.5], [0.99]])).sum()
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in t.parameters())


def test_likelihood_is_climbed_despite_truncation():
    # theta uniform on (-1, 1), x = theta + 0.4 noise: the posterior is N(x, 0.4^2) truncated. A regression that does not know of
    # the truncation has a slope of about 0.68 in x. Standard error of the slope, measured over seeds: 0.02.
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(4000, 1, generator=generator) - 1
    x = theta + 0.4 * torch.randn(4000, 1, generator=generator)
    t = TruncatedRegression(-torch.ones(1), torch.ones(1), 1)
    t.initialize(theta, x)
    assert abs(t.weight.item() - 1.0) < 0.1
    assert abs(t.log_scale.exp().item() - 0.4) < 0.03


def test_regression_flow_starts_at_the_best_linear_gaussian():
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(5000, 3, generator=generator)
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    y = c[:, :2] - 1 + torch.randn(5000, 2, generator=generator) @ mixing.T
    free = torch.full((2,), INF)
    flow = RegressionFlow(flows.nsf_coupling(2, 3), TruncatedRegression(-free, free, 3))
    flow.initialize(y, c)
    exact = torch.distributions.MultivariateNormal(c[:, :2] - 1, scale_tril=mixing)
    assert abs(float((exact.log_prob(y) - FlowDistribution(flow).condition(c).log_prob(y).detach()).mean())) < 0.005


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        TruncatedRegression(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match="must be below its upper"):
        TruncatedRegression(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="needs more than"):
        TruncatedRegression(torch.zeros(1), torch.ones(1), 2).initialize(torch.rand(3, 1), torch.rand(3, 2))
    with pytest.raises(ValueError, match="context_dim=3, expected 5"):
        RegressionFlow(flows.nsf_coupling(1, 3), TruncatedRegression(torch.zeros(1), torch.ones(1), 3))
