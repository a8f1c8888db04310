"""Steps as graphs of tensor operations: the numbers of model and guide themselves, and when there is no graph."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.infer import traced_gradient
from pyro_flows.infer.path_gradient import OBJECTIVES
from pyro_flows.infer.traced_gradient import TracedGradient
from pyro_flows.model import LogJoint

Y = torch.tensor([28.0, 8.0, -3.0, 7.0])
FLOWS = [name for name in pf.flows.names() if pf.flows.get(name)(3).inverse_kind == "closed"]


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def schools(y=Y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=y)


def stepper(flow, monkeypatch, model=schools, objective="path", compile=False, hot=0, **options):
    monkeypatch.setattr(traced_gradient, "HOT", hot)
    guide = pf.AutoFlow(model, flow=flow, flow_options=options).setup()
    q = guide.distribution
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return q, TracedGradient(q, LogJoint(model), list(q.parameters()), False, objective, compile)


def check_same(step, q, alpha=0.0, tolerance=1e-5):
    """At other noise than that of the trace, with the parameters as they are now."""
    noise = q.base.sample((32,))
    found, expected = step(noise, alpha), step._directly(noise, alpha)
    torch.testing.assert_close(found.log_weights, expected.log_weights, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.z, expected.z, atol=tolerance, rtol=tolerance)
    for a, b in zip(found.gradients, expected.gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=tolerance * float(1 + b.abs().max()), rtol=100 * tolerance)


@pytest.mark.parametrize("flow", FLOWS)
def test_graph_gives_the_numbers_of_model_and_guide_while_parameters_move(flow, monkeypatch):
    q, step = stepper(flow, monkeypatch)
    step(q.base.sample((32,)), 0.0)
    assert step.record[-1].startswith("traced for 32 draws"), step.record
    before = step._log_density.num_evaluations
    step(q.base.sample((32,)), 0.0)
    assert step._log_density.num_evaluations == before + 32
    check_same(step, q)
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.mul_(1.1)
    check_same(step, q)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weighted_objectives_are_traced_too(objective, monkeypatch):
    q, step = stepper("real_nvp", monkeypatch, objective=objective, num_layers=2)
    step(q.base.sample((32,)), 0.9)
    assert step.record[-1].startswith("traced"), step.record
    check_same(step, q, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["real_nvp", "nsf_coupling"])
def test_compiled_graph_gives_the_same_to_rounding(flow, monkeypatch):
    torch._dynamo.reset()
    q, step = stepper(flow, monkeypatch, compile=True, num_layers=1, hidden_dims=(8,))
    step(q.base.sample((32,)), 0.0)
    assert step.record[-1].startswith("compiled for 32 draws"), step.record
    check_same(step, q, tolerance=1e-4)


def test_a_graph_is_made_for_each_kind_of_step_once_it_is_frequent(monkeypatch):
    q, step = stepper("affine", monkeypatch, hot=2)
    for _ in range(2):
        step(q.base.sample((8,)), 0.0)
    assert not step.record
    step(q.base.sample((8,)), 0.0)
    step(q.base.sample((16,)), 0.0)
    assert len(step.record) == 1


def _subsampled():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=2) as i:
        pyro.sample("y", dist.Normal(z, 1.0), obs=Y[i])


@pytest.mark.parametrize(
    "model, flow, reason",
    [(_subsampled, "affine", "the model draws minibatches"), (schools, "iaf", "the guide solves for its inverse")],
)
def test_what_is_not_traced_is_said(model, flow, reason, monkeypatch):
    q, step = stepper(flow, monkeypatch, model)
    step(q.base.sample((8,)), 0.0)
    assert step.record == [f"not traced: {reason}"]


def test_a_graph_that_gives_other_numbers_is_given_up(monkeypatch):
    """A model that counts its runs is another one in its graph."""
    runs, last = [0], [10**9]

    def counting():
        runs[0] += 1
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(float(runs[0] > last[0])))

    q, step = stepper("affine", monkeypatch, counting)
    last[0] = runs[0] + 1  # what comes after the next run is another model
    step(q.base.sample((8,)), 0.0)
    assert step.record == ["not traced for 8 draws: the graph gives other numbers than the model"]


def test_draws_without_a_cholesky_factor_are_left_out_where_the_graph_raises(monkeypatch):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        covariance = torch.eye(2) * (z[..., 0] + 2.5)[..., None, None]
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=torch.ones(2))

    q, step = stepper("affine", monkeypatch, model)
    noise = 0.1 * q.base.sample((8,))
    step(noise, 0.0)
    assert step.record[-1].startswith("traced"), step.record
    far = noise.clone()
    far[0] = -60.0
    found = step(far, 0.0)
    assert not found.usable[0]
    assert found.usable[1:].all()


def test_fit_says_what_was_traced_and_refuses_another_compile():
    found = pf.fit(schools, guide="real_nvp", seed=0, max_steps=400, progress=False)
    assert any(line.startswith("traced for 256 draws") for line in found.record["traced"])
    with pytest.raises(ValueError, match="compile must be True or False"):
        pf.fit(schools, compile="yes", progress=False)
