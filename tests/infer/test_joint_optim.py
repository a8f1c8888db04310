"""One optimiser for all parameters does what Pyro's many do."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import pyro_flows as pf
from pyro_flows.infer import JointOptim


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()


def model():
    pyro.sample("x", dist.Normal(torch.ones(3), 2.0).to_event(1))


def train(optim, steps, guide=None):
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = pf.AutoFlow(model, flow="real_nvp", flow_options={"num_layers": 2}).setup() if guide is None else guide
    svi = SVI(model, guide, optim, Trace_ELBO(num_particles=8, vectorize_particles=True))
    losses = [svi.step() for _ in range(steps)]
    return guide, losses


@pytest.mark.parametrize("fused", [False, True])
def test_steps_are_those_of_one_optimiser_for_each_parameter(fused):
    joint, first = train(JointOptim(torch.optim.Adam, {"lr": 1e-2, "fused": fused}), 20)
    each, second = train(pyro.optim.Adam({"lr": 1e-2}), 20)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    for a, b in zip(joint.parameters(), each.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_state_is_given_on_by_name():
    first = JointOptim(torch.optim.Adam, {"lr": 1e-2})
    guide = pf.AutoFlow(model, flow="affine").setup()
    torch.manual_seed(0)
    svi = SVI(model, guide, first, Trace_ELBO())
    svi.step()
    state = first.get_state()
    assert set(state) == set(pyro.get_param_store())
    second = JointOptim(torch.optim.Adam, {"lr": 1e-2})
    second.set_state(state)
    torch.manual_seed(1)
    SVI(model, guide, second, Trace_ELBO()).step()
    assert all(float(kept["step"]) == 2 for kept in second.get_state().values())
    assert all(float(kept["step"]) == 1 for kept in state.values())


def test_a_parameter_that_is_not_in_a_step_stays():
    a, b = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))
    pyro.param("a", a)
    pyro.param("b", b)
    optim = JointOptim(torch.optim.Adam, {"lr": 0.1})
    (a + b).backward()
    optim([a, b])
    before = b.item()
    a.backward()
    optim([a])
    assert b.item() == before
    assert a.grad is None


def test_gradients_are_clipped_together():
    a, b = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))
    pyro.param("a", a)
    pyro.param("b", b)
    optim = JointOptim(torch.optim.SGD, {"lr": 1.0}, clip_norm=5.0)
    (30 * a + 40 * b).backward()
    optim([a, b])
    torch.testing.assert_close(torch.stack([a, b]).detach(), torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((3, {}), "constructor"), ((torch.optim.Adam, 0.1), "options")],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        JointOptim(*arguments)
    with pytest.raises(ValueError, match="clip_norm"):
        JointOptim(torch.optim.Adam, {}, clip_norm=0.0)
