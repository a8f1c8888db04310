"""Continuous flows are trained on grids, and judged by the solver that adapts."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.distributions import FlowDistribution
from pyro_flows.flows import get
from pyro_flows.infer import traced_gradient
from pyro_flows.infer.descent import Training
from pyro_flows.infer.grid_training import grid_error, train_on_grids
from pyro_flows.infer.traced_gradient import TracedGradient
from pyro_flows.model import LogJoint, read_model
from pyro_flows.nn import VelocityMLP
from pyro_flows.transforms import CNF, Compose, on_grid
from pyro_flows.transforms.on_grid import adaptive_flows


def stiff(scale):
    torch.manual_seed(0)
    flow = get("cnf")(2, hidden_dims=(16, 16)).double()
    with torch.no_grad():
        flow.velocity.last.weight.normal_(0, scale)
    return flow


def normal(z):
    return -0.5 * z.square().sum(-1)


def test_a_grid_is_for_a_block_alone():
    flow, fixed = stiff(0.5), get("cnf")(2, solver="euler", num_steps=2).double()
    both = Compose([flow, get("real_nvp")(2).double(), Compose([fixed]).inv])
    x = torch.randn(3, 2, dtype=torch.float64)
    exact = both(x)
    assert both.eager_only and both.inv.eager_only and not fixed.eager_only
    with on_grid(both, 3):
        assert (flow.solver, flow.num_steps, fixed.solver, fixed.num_steps) == ("rk4", 3, "euler", 2)
        assert not both.eager_only
        rough = both(x)  # not the pass that is remembered
        assert 0 < float((rough - exact).detach().abs().max()) < 0.1
    assert (flow.solver, flow.num_steps) == ("dopri5", None)
    torch.testing.assert_close(both(x), exact, atol=1e-12, rtol=0)
    flow.gradient = "adjoint"
    with pytest.raises(RuntimeError, match="away"), on_grid(both, 3):
        assert flow.gradient == "steps"
        raise RuntimeError("away")
    assert (flow.solver, flow.num_steps, flow.gradient) == ("dopri5", None, "adjoint")
    for wrong in (0, 2.0, True):
        with pytest.raises(ValueError, match="num_steps must be a positive integer"), on_grid(both, wrong):
            pass


@pytest.mark.parametrize(("scale", "rounds"), [(0.01, 1), (4.0, 3), (16.0, 5)])
def test_grids_are_refined_until_they_agree_with_the_solver(scale, rounds):
    q, seen, record = FlowDistribution(stiff(scale)), [], {}

    def train(steps, share):
        flow = q.transform
        seen.append((steps, share, flow.num_steps))
        return Training(losses=[0.0] * 10, stop_reason="converged")

    done = train_on_grids(q, normal, train, 1000, record)
    grids = [entry[2] for entry in seen]
    assert done.steps == 10 * len(seen) and [entry[0] for entry in seen] == [1000 - 10 * i for i in range(len(seen))]
    assert grids == [4, 8, 16, 32, None][: len(grids)] and len(record["grids"]) == len(grids)
    assert len(grids) == rounds
    if grids[-1]:
        assert grid_error(q, normal, grids[-1]) < 0.03 and (len(grids) == 1 or grid_error(q, normal, grids[-2]) > 0.015)
    assert adaptive_flows(q)


def test_refining_ends_with_the_steps_the_time_or_by_hand():
    for reason, left in (("max_time", 1000), ("interrupted", 1000), ("max_steps", 10)):
        seen = []

        def train(steps, share, reason=reason, seen=seen):
            seen.append(steps)
            return Training(losses=[0.0] * 10, stop_reason=reason)

        assert train_on_grids(FlowDistribution(stiff(16.0)), normal, train, left, {}).stop_reason == reason
        assert seen == [left]


def test_a_guide_that_solves_nothing_is_trained_as_it_is():
    record, asked = {}, []
    train_on_grids(FlowDistribution(get("affine")(2)), normal, lambda *given: asked.append(given) or Training(), 7, record)
    assert asked == [(7, 1.0)] and record == {}


def bent():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.5 * x**2, 0.5))


def test_steps_on_a_grid_are_traced(monkeypatch):
    monkeypatch.setattr(traced_gradient, "HOT", 0)
    guide = pf.AutoFlow(bent, flow=lambda d, c=0: get("cnf")(d, c, hidden_dims=(8,))).setup()
    log_joint = LogJoint(bent, (), {}, read_model(bent, (), {}))
    q, noise = guide.distribution, torch.randn(16, 2)
    refused = TracedGradient(q, log_joint, list(q.parameters()))
    refused(noise, 0.0)
    assert refused.record == ["not traced: the guide solves an equation by steps that adapt to values"]
    with on_grid(q, 2):
        step = TracedGradient(q, log_joint, list(q.parameters()))
        direct, traced = step(noise, 0.0), step(noise, 0.0)
    assert step.record[0].startswith("traced for 16 draws")
    torch.testing.assert_close(traced.log_weights, direct.log_weights, atol=1e-5, rtol=1e-5)
    for a, b in zip(traced.gradients, direct.gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_banana():
    """The bound is that of the issue; its exact evidence is one."""

    def banana():
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(0.5 * x**2, 0.5))

    fit = pf.fit(banana, guide="cnf", seed=0, progress=False)
    assert fit.record["grids"][0].startswith("4 steps") and adaptive_flows(fit.guide)
    found = fit.diagnose()
    assert found.ess_fraction > 0.8 and abs(found.log_evidence) < 0.02


def test_a_step_that_cannot_be_solved_is_skipped(monkeypatch):
    """Some of them, and training goes on; all, and it ends with the solver's words."""
    count = [0]

    class Balks(VelocityMLP):
        every = 7

        def at(self, context):
            count[0] += torch.is_grad_enabled()  # in steps of training alone
            if torch.is_grad_enabled() and count[0] % self.every == 0:
                raise ArithmeticError("too stiff")
            return super().at(context)

    def made(dim, context_dim=0):
        return CNF(Balks(dim, context_dim, (8,)), solver="rk4", num_steps=2)

    fit = pf.fit(bent, guide=made, max_steps=30, seed=0, progress=False, init={"x": torch.tensor(0.0), "y": torch.tensor(0.0)})
    assert 0 < fit.record["skipped"] < 10
    Balks.every = 1
    with pytest.raises(ArithmeticError, match="too stiff"):
        pf.fit(bent, guide=made, max_steps=30, seed=0, progress=False)
