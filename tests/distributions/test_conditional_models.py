"""Flows as conditional likelihoods and as learned priors, with Bayesian weights on top of them or inside them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

import pyro_flows as pf
from pyro_flows.distributions import random_module
from pyro_flows.infer import PathELBO
from pyro_flows.transforms import AffineTril, Elementwise
from pyro_flows.transforms.univariate import Shift


def no_latents(*args):
    """The guide of a model without latents."""


def decaying_adam(lr, steps):
    return pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)})


# Conditional likelihoods


def skewed(x):
    """Gumbel noise whose location and scale depend on x."""
    return dist.Gumbel(torch.sin(2 * x), (0.6 * x - 0.5).exp())


def test_subsampled_likelihood_recovers_a_skewed_heteroscedastic_density():
    """KL from the truth below 0.03 nats on 20,000 new points, with a standard error below 0.004; the best conditional Gaussian
    is 0.09 away, and seeds range from 0.007 to 0.014.
    """
    flow = pf.flows.get("nsf_coupling")(1, context_dim=1, num_layers=2, hidden_dims=(32,))
    size = 20_000
    x = 4 * torch.rand(size, 1) - 2
    y = skewed(x).sample()

    def model():
        pyro.module("flow", flow)
        with pyro.plate("n", size, subsample_size=500) as rows:
            pyro.sample("y", pf.FlowDistribution(flow).condition(x[rows]), obs=y[rows])

    steps = 1000
    svi = SVI(model, no_latents, decaying_adam(0.01, steps), Trace_ELBO())
    for _ in range(steps):
        svi.step()
    x = 4 * torch.rand(20_000, 1) - 2
    y = skewed(x).sample()
    with torch.no_grad():
        gap = skewed(x).log_prob(y)[:, 0] - pf.FlowDistribution(flow).condition(x).log_prob(y)
    assert float(gap.std()) / math.sqrt(len(gap)) < 0.004
    assert -0.01 < float(gap.mean()) < 0.03


SIZE, DIM, PRIOR_SD, NOISE_SD = 60, 3, 2.0, 0.7


def regression():
    """Correlated covariates with a column of ones, responses, and the exact posterior of the weights."""
    x = torch.randn(SIZE, DIM)
    x = torch.cat([x[:, :1], 0.8 * x[:, :1] + 0.6 * x[:, 1:2], torch.ones(SIZE, 1)], 1)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + NOISE_SD * torch.randn(SIZE)
    X = x.double()
    precision = X.T @ X / NOISE_SD**2 + torch.eye(DIM, dtype=torch.float64) / PRIOR_SD**2
    mean = torch.linalg.solve(precision, X.T @ y.double() / NOISE_SD**2)
    return x, y, mean, precision.inverse()


def check_posterior(draws, mean, covariance):
    """Means within 0.05 sd, sds within 3 %, correlations within 0.03; 20,000 draws have errors of 0.007, 0.5 % and 0.007."""
    draws, sd = draws.double(), covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean) / sd).abs().max()) < 0.05
    assert float((draws.std(0) / sd - 1).abs().max()) < 0.03
    torch.testing.assert_close(draws.T.corrcoef(), covariance / sd.outer(sd), atol=0.03, rtol=0)


def test_random_weights_of_an_affine_flow_have_the_conjugate_posterior():
    x, y, mean, covariance = regression()
    flow = pf.transforms.Compose([AffineTril(1), Elementwise(1, Shift(), context_dim=DIM - 1, hidden_dims=())])
    with torch.no_grad():
        flow.parts[0].params.log_diagonal.fill_(math.log(NOISE_SD))
    flow.requires_grad_(False)
    weight, bias = (f"parts.1.conditioner.network.layers.0.{name}" for name in ("weight", "bias"))
    prior = {weight: dist.Normal(0.0, PRIOR_SD), bias: dist.Normal(torch.zeros(1), PRIOR_SD)}

    def model(x, y):
        drawn = random_module("flow", flow, prior)
        with pyro.plate("n", SIZE):
            pyro.sample("y", pf.FlowDistribution(drawn).condition(x), obs=y)

    fit = pf.fit(model, x[:, :2], y[:, None], seed=0, progress=False)
    draws = fit.sample(20_000, seed=0)
    check_posterior(torch.cat([draws[f"flow.{weight}"].flatten(1), draws[f"flow.{bias}"]], 1), mean, covariance)


def test_random_predictor_as_context_has_the_conjugate_posterior():
    """Plain SVI with minibatches of a third of the rows, whose scale the plate keeps: means within 0.2 sd, sds within 10 %."""
    x, y, mean, covariance = regression()
    flow = pf.flows.affine(1, context_dim=1, hidden_dims=())
    with torch.no_grad():  # the location is the context, the scale that of the noise
        flow.params.log_diagonal.fill_(math.log(NOISE_SD))
        flow.params.network.layers[0].weight[0] = 1.0
    flow.requires_grad_(False)

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(DIM), PRIOR_SD).to_event(1))
        with pyro.plate("n", SIZE, subsample_size=SIZE // 3) as rows:
            pyro.sample("y", pf.FlowDistribution(flow).condition((x[rows] * w).sum(-1, keepdim=True)), obs=y[rows, None])

    guide = pf.AutoFlow(model, flow="affine", init_scale=1.0)
    steps = 700
    elbo = Trace_ELBO(16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, decaying_adam(0.05, steps), elbo)
    for _ in range(steps):
        svi.step()
    draws = guide.distribution.sample((20_000,)).double()
    sd = covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean) / sd).abs().max()) < 0.2
    assert float((draws.std(0) / sd - 1).abs().max()) < 0.1


# Random weights


def linear_flow():
    return Elementwise(1, Shift(), context_dim=2, hidden_dims=())


PRIOR = {"conditioner.network.layers.0.weight": dist.Normal(0.0, 1.0)}


def test_random_module_draws_what_has_a_prior_and_trains_the_rest():
    flow = pf.flows.get("nsf_coupling")(1, context_dim=2, hidden_dims=(4,))
    names = dict(flow.named_parameters())
    chosen = next(name for name in names if name.endswith("layers.0.weight"))
    start = {name: parameter.detach().clone() for name, parameter in names.items()}
    x, y = torch.randn(20, 2), torch.randn(20, 1)

    def model():
        drawn = random_module("flow", flow, lambda name, _: dist.Normal(0.0, 1.0) if name == chosen else None)
        assert type(drawn) is type(flow)
        with pyro.plate("n", len(x)):
            pyro.sample("y", pf.FlowDistribution(drawn).condition(x), obs=y)

    trace = poutine.trace(model).get_trace()
    assert set(trace.stochastic_nodes) - {"n"} == {f"flow.{chosen}"}
    assert set(trace.param_nodes) == {f"flow$$${name}" for name in names if name != chosen}
    svi = SVI(model, pf.AutoFlow(model, flow="affine"), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):  # what follows a layer that starts at zero moves from the second step on
        svi.step()
    moved = {name for name, parameter in names.items() if not torch.equal(start[name], parameter)}
    assert moved == {name for name in names if name != chosen and names[name].numel()}


def test_density_is_that_of_the_drawn_weights_whenever_it_is_computed():
    """After the run, in both directions, twice with other weights on the same tensors, through the inverse of the flow too."""
    flow, x, y = linear_flow(), torch.randn(5, 2), torch.randn(5, 1)
    inverse = flow.inv  # which the flow keeps, and what is drawn from it must not
    for _ in range(2):
        trace = poutine.trace(lambda: random_module("flow", flow, PRIOR)).get_trace()
        drawn = trace.nodes["_RETURN"]["value"]
        weight = trace.nodes["flow.conditioner.network.layers.0.weight"]["value"]
        expected = dist.Normal(x @ weight.T, 1.0).log_prob(y)[:, 0]
        torch.testing.assert_close(pf.FlowDistribution(drawn).condition(x).log_prob(y), expected)
        back, _ = drawn.inv.forward_and_log_det(y, x)
        torch.testing.assert_close(back, y - x @ weight.T)
    assert inverse.transform is flow and not flow.conditioner.network.layers[0].weight.any()


def test_random_module_takes_any_module():
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    drawn = random_module("network", network, lambda name, parameter: dist.Normal(torch.zeros_like(parameter), 1.0))
    assert drawn(torch.zeros(4, 2)).shape == (4, 1)
    assert not torch.equal(drawn[0].weight, network[0].weight)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"weight": dist.Normal(0.0, 1.0)}, "'weight' is no parameter of the module, which has"),
        (dist.Normal, "must be a Pyro distribution"),
        ({next(iter(PRIOR)): dist.Normal(torch.zeros(3), 1.0)}, r"has shape \(3,\) and the parameter \(1, 2\)"),
        ({next(iter(PRIOR)): 0.5}, "must be a Pyro distribution, got float"),
        (None, "prior must be a dictionary or a callable, got NoneType"),
    ],
)
def test_prior_that_does_not_suit_is_refused(prior, message):
    if prior is dist.Normal:

        def prior(name, parameter):
            return torch.distributions.Normal(0.0, 1.0)

    with pytest.raises(ValueError, match=message):
        random_module("flow", linear_flow(), prior)


def test_weights_drawn_inside_a_plate_are_refused():
    with (
        pytest.raises(ValueError, match=r"has shape \(7, 1, 2\) and the parameter \(1, 2\); draw the weights outside"),
        pyro.plate("n", 7),
    ):
        random_module("flow", linear_flow(), PRIOR)


def test_pyro_sample_in_a_flow_is_refused():
    """Its weights would be drawn anew by every density, outside of the model."""

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.flow = linear_flow()
            to_pyro_module_(self.flow.conditioner.network)
            layer = self.flow.conditioner.network.layers[0]
            layer.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))

        def forward(self, x, y):
            with pyro.plate("n", len(x)):
                pyro.sample("y", pf.FlowDistribution(self.flow).condition(x), obs=y)

    with pytest.raises(ValueError, match=r"random weights \(PyroSample\).*random_module"):
        poutine.trace(Model()).get_trace(torch.zeros(5, 2), torch.zeros(5, 1)).log_prob_sum()


def test_pyro_sample_in_the_network_of_the_context_is_taken():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.flow = linear_flow()
            self.network = PyroModule[nn.Linear](3, 2)
            self.network.weight = PyroSample(dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))

        def forward(self, x, y):
            context = self.network(x)
            with pyro.plate("n", len(x)):
                pyro.sample("y", pf.FlowDistribution(self.flow).condition(context), obs=y)

    model = Model()
    x, y = torch.randn(5, 3), torch.randn(5, 1)
    with torch.no_grad():
        model.flow.conditioner.network.layers[0].weight.fill_(1.0)
    trace = poutine.trace(model).get_trace(x, y)
    predictor = x @ trace.nodes["network.weight"]["value"].T + model.network.bias
    expected = dist.Normal(predictor.sum(-1), 1.0).log_prob(y[:, 0]).sum() + trace.nodes["network.weight"]["fn"].log_prob(
        trace.nodes["network.weight"]["value"]
    )
    torch.testing.assert_close(trace.log_prob_sum(), expected)


# Learned priors


@pytest.mark.slow
def test_flow_as_learned_prior_of_local_latents():
    """Empirical Bayes: effects of 4,000 groups from a mixture, each seen once with known noise, in minibatches.

    The learned prior's marginal density of new observations is within 0.02 nats of the truth, where the best Gaussian prior is
    0.19 away; the guide's means are within 0.1 sd of the effects, in root mean square, of those under the true prior.
    """
    size, noise = 4000, torch.tensor(0.6)
    weights, centres, sd = torch.tensor([0.7, 0.3]), torch.tensor([-1.0, 2.0]), 0.4

    def draw(size):
        z = centres[torch.multinomial(weights, size, replacement=True)] + sd * torch.randn(size)
        return z, z + noise * torch.randn(size)

    def log_marginal(y):
        return torch.logsumexp(weights.log() + dist.Normal(centres, math.hypot(sd, noise)).log_prob(y[:, None]), 1)

    prior_flow = pf.flows.get("nsf_coupling")(1, num_layers=2, hidden_dims=(16,))
    guide_flow = pf.flows.get("nsf_coupling")(1, context_dim=1, num_layers=2, hidden_dims=(32,))
    _, y = draw(size)

    def model():
        pyro.module("prior", prior_flow)
        with pyro.plate("groups", size, subsample_size=200) as rows:
            z = pyro.sample("z", pf.FlowDistribution(prior_flow))
            pyro.sample("y", dist.Normal(z, noise).to_event(1), obs=y[rows, None])

    def guide():
        pyro.module("posterior", guide_flow)
        with pyro.plate("groups", size, subsample_size=200) as rows:
            pyro.sample("z", pf.FlowDistribution(guide_flow).condition(y[rows, None]))

    steps = 500
    svi = SVI(model, guide, decaying_adam(0.01, steps), PathELBO())
    for _ in range(steps):
        svi.step()

    z, y_new = draw(10_000)
    grid = torch.linspace(-6, 7, 1301)
    with torch.no_grad():
        log_prior = pf.FlowDistribution(prior_flow).log_prob(grid[:, None])
        found = torch.logsumexp(log_prior + dist.Normal(grid, noise).log_prob(y_new[:, None]), 1) + math.log(
            float(grid[1] - grid[0])
        )
        means = pf.FlowDistribution(guide_flow).condition(y_new[:, None]).sample((200,)).mean(0)[:, 0]
    gap = float((log_marginal(y_new) - found).mean())
    assert -0.005 < gap < 0.02
    precision = 1 / sd**2 + 1 / noise**2
    share = (weights.log() + dist.Normal(centres, math.hypot(sd, noise)).log_prob(y_new[:, None])).softmax(1)
    exact = (share * (centres / sd**2 + (y_new / noise**2)[:, None]) / precision).sum(1)
    assert float((means - exact).square().mean().sqrt()) < 0.1 * float(z.std())
