"""FlowDistribution as a site of Pyro models and guides."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule

from pyro_flows import flows
from pyro_flows.distributions import FlowDistribution, MixtureBase, StudentTBase

sys.path.insert(0, str(Path(__file__).parent))
from toy_transforms import Cubic, Exp, Triangular

D, C, N = 3, 2, 10


def normal_model():
    pyro.sample("z", dist.Normal(torch.arange(float(D)), torch.tensor([0.5, 1.0, 2.0])).to_event(1))


def guide_of(q):
    def guide():
        pyro.module("q", q)
        pyro.sample("z", q)

    return guide


def test_module_makes_svi_train_flow_and_base():
    q = FlowDistribution(Triangular(D), StudentTBase(D))
    before = {name: parameter.detach().clone() for name, parameter in q.named_parameters() if parameter.numel()}
    SVI(normal_model, guide_of(q), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    assert set(pyro.get_param_store()) == {f"q$$${name}" for name, _ in q.named_parameters()}
    for name, parameter in before.items():
        assert not torch.equal(dict(q.named_parameters())[name], parameter), name


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, JitTrace_ELBO])
def test_as_guide_every_elbo_reaches_the_posterior(elbo):
    """The guide's family holds the target, so that the loss goes to 0 and its noise with it."""
    q = FlowDistribution(Triangular(D))
    options = {"jit_options": {"check_trace": False}, "ignore_jit_warnings": True} if elbo is JitTrace_ELBO else {}
    loss = elbo(num_particles=32, vectorize_particles=True, max_plate_nesting=0, **options)

    def model():
        normal_model()
        if elbo is TraceEnum_ELBO:  # it warns when there is nothing to enumerate
            pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})

    svi = SVI(model, guide_of(q), pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        for _ in range(500):
            final = svi.step()
    assert abs(final) < 0.05
    torch.testing.assert_close(q.transform.shift.detach(), torch.arange(float(D)), atol=0.1, rtol=0)
    torch.testing.assert_close(q.transform.matrix.diagonal().detach(), torch.tensor([0.5, 1.0, 2.0]), atol=0.1, rtol=0.1)


def conditional_model(q, context, y=None, subsample_size=None):
    pyro.module("q", q)
    with pyro.plate("n", N, subsample_size=subsample_size) as index:
        return pyro.sample("y", q.condition(context[index]), obs=None if y is None else y[index])


@pytest.mark.parametrize("base", [None, StudentTBase, MixtureBase])
def test_observed_in_a_plate_sums_the_density_of_the_rows(base):
    q = FlowDistribution(Triangular(D, C), base and base(D))
    context, y = torch.randn(N, C), torch.randn(N, D)
    trace = poutine.trace(conditional_model).get_trace(q, context, y)
    rows = torch.stack([q.condition(context[i]).log_prob(y[i]) for i in range(N)])
    torch.testing.assert_close(trace.log_prob_sum(), rows.sum())


def test_subsampled_plate_scales_the_density():
    q = FlowDistribution(Triangular(D, C))
    context, y = torch.randn(N, C), torch.randn(N, D)
    trace = poutine.trace(conditional_model).get_trace(q, context, y, subsample_size=4)
    index = trace.nodes["n"]["value"]
    rows = q.condition(context[index]).log_prob(y[index])
    torch.testing.assert_close(trace.log_prob_sum(), rows.sum() * N / 4)


def test_a_plate_expands_an_unconditional_distribution_with_noise_of_its_own_per_row():
    q = FlowDistribution(Triangular(D))
    with pyro.plate("a", 4, dim=-2), pyro.plate("b", 5, dim=-1):
        value = pyro.sample("y", q)
    assert value.shape == (4, 5, D) and value.reshape(-1, D).unique(dim=0).shape[0] == 20


def test_mask_handler_and_masked_rows():
    q = FlowDistribution(Triangular(D, C))
    context, y = torch.randn(N, C), torch.randn(N, D)
    mask = torch.arange(N) < 4
    with poutine.mask(mask=mask):
        trace = poutine.trace(conditional_model).get_trace(q, context, y)
    rows = q.condition(context).log_prob(y)
    torch.testing.assert_close(trace.log_prob_sum(), rows[:4].sum())


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws(parallel):
    q = FlowDistribution(Triangular(D, C))
    context = torch.randn(N, C)
    draws = Predictive(conditional_model, num_samples=6, parallel=parallel)(q, context)["y"]
    assert draws.shape == (6, N, D) and draws.reshape(-1, D).unique(dim=0).shape[0] == 6 * N


def test_as_prior_under_an_automatic_guide_on_its_support():
    """Log-normal prior, normal likelihood of its logarithm: the posterior of the logarithm is N(0.8, 0.2)."""
    q = FlowDistribution(Exp(1))

    def model():
        scale = pyro.sample("scale", q)
        pyro.sample("y", dist.Normal(scale.log(), 0.5).to_event(1), obs=torch.ones(1))

    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), Trace_ELBO(64, vectorize_particles=True))
    for _ in range(400):
        svi.step()
    assert float(guide.median()["scale"].log()) == pytest.approx(0.8, abs=0.03)
    assert float(guide.scales.scale.detach()) == pytest.approx(math.sqrt(0.2), abs=0.03)


def test_as_prior_under_nuts():
    """Prior only; y + y³ is standard normal, its mean of about 200 effective draws within 5 standard errors of 0."""
    q = FlowDistribution(Cubic(2).double(), MixtureBase(2, 1).double())
    mcmc = MCMC(NUTS(lambda: pyro.sample("y", q)), num_samples=200, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    y = mcmc.get_samples()["y"]
    noise = y + y**3
    assert float(noise.mean(0).abs().max()) < 5 / math.sqrt(50)
    assert 0.4 < float(noise.std(0).min()) and float(noise.std(0).max()) < 1.8


def test_in_a_pyro_module_its_parameters_are_sites():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.q = FlowDistribution(Triangular(D))

        def forward(self):
            return pyro.sample("y", self.q, obs=torch.zeros(D))

    model = Model()
    assert {name for name, _ in model.named_parameters()} == {f"q.transform.{n}" for n in ("shift", "lower", "weight")}
    before = model.q.transform.shift.detach().clone()
    SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    assert not torch.equal(before, model.q.transform.shift)


def bimodal(n):
    """y = ±x with noise 0.2, plus with probability 0.7; the density of y given x, and n draws."""
    x = 0.5 + 1.5 * torch.rand(n, 1)
    sign = torch.where(torch.rand(n, 1) < 0.7, 1.0, -1.0)
    y = sign * x + 0.2 * torch.randn(n, 1)
    log_density = torch.logaddexp(math.log(0.7) + dist.Normal(x, 0.2).log_prob(y), math.log(0.3) + dist.Normal(-x, 0.2).log_prob(y))
    return x, y, log_density.squeeze(-1)


@pytest.mark.parametrize("base", [None, MixtureBase])
def test_svi_learns_a_conditional_density(base):
    """Script (d) of the design: two modes that move with the covariate, within 0.05 nats of the truth on new data.

    The best conditional Gaussian is 1.1 nats away.
    """
    flow = flows.get("nsf_coupling")(input_dim=1, context_dim=1, num_layers=2, hidden_dims=(32,))
    q = FlowDistribution(flow, base and base(1, 2))
    x, y, _ = bimodal(4000)

    def model(x, y):
        pyro.module("q", q)
        with pyro.plate("n", len(x)):
            pyro.sample("y", q.condition(x), obs=y)

    optimizer = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.05 ** (1 / 500)})
    svi = SVI(model, lambda x, y: None, optimizer, Trace_ELBO())
    for _ in range(500):
        rows = torch.randint(len(x), (500,))
        svi.step(x[rows], y[rows])
    x, y, log_density = bimodal(4000)
    with torch.no_grad():
        gap = float((log_density - q.condition(x).log_prob(y)).mean())
        draws = q.condition(torch.tensor([1.5])).sample((4000,))
    assert -0.05 < gap < 0.05
    assert float((draws > 0).float().mean()) == pytest.approx(0.7, abs=0.06)
    assert float(draws[draws > 0].median()) == pytest.approx(1.5, abs=0.1)
