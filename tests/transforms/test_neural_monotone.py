"""NAF, UMNN and BNAF: what their peers get wrong."""

from __future__ import annotations

import pytest
import torch

from pyro_flows import flows
from pyro_flows.transforms import BlockAutoregressive

NAMES = ("naf", "umnn", "bnaf", "sospf", "bernstein", "gaussianization")


def randomised(name, dim=3, context_dim=2):
    torch.manual_seed(0)
    flow = flows.get(name)(dim, context_dim).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return flow


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same_in_training_and_in_evaluation(name):
    flow = randomised(name)
    x, context = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    found = []
    for training in (True, False):
        flow.train(training)
        y, log_det = (
            flow.condition(context).inv(x),
            -flow.condition(context).inv.log_abs_det_jacobian(x, flow.condition(context).inv(x)),
        )
        found.append(torch.autograd.grad((y.square().sum(-1) + log_det).sum(), list(flow.parameters()), allow_unused=True))
    for first, second in zip(*found, strict=True):
        assert (first is None) == (second is None) and (first is None or torch.equal(first, second))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_inverses_are_right_near_and_far(name, size):
    flow = randomised(name)
    x, context = size * torch.randn(50, 3).double(), torch.randn(50, 2).double()
    transform = flow.condition(context)
    for there, back in ((transform, transform.inv), (transform.inv, transform)):
        y = there(x)
        assert torch.isfinite(y).all()
        found = back(y.clone())
        torch.testing.assert_close(there(found.clone()), y, rtol=1e-9, atol=1e-9 * size)
        if size == 1.0:  # far out a conditioner may squeeze a variable until its digits are gone
            torch.testing.assert_close(found, x, rtol=1e-7, atol=1e-7)


def test_the_image_of_a_block_autoregressive_layer_has_no_bound():
    """Of a bare tanh it has: three layers of it did not pass 20."""
    torch.manual_seed(0)
    layer = BlockAutoregressive(1, num_hidden=3).double()
    with torch.no_grad():
        layer.log_gate.fill_(0.0)
    far = torch.tensor([[-1e6], [-1e3], [0.0], [1e3], [1e6]]).double()
    y = layer(far)
    without = y - far
    assert (without.diff(dim=0) > 1.0).all()
    torch.testing.assert_close(layer.inv(y), far, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leak": 0.0}, "leak must be between 0 and 1"),
        ({"order": [0, 0]}, r"order must be a permutation of 0 … 1, got \[0, 0\]"),
        ({"hidden_factor": 0}, "hidden_factor must be a positive integer"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        BlockAutoregressive(2, **options)
