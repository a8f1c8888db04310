"""The map from standardised effects to actual ones: the conditional posterior of normal effects with a prior that is told."""

from __future__ import annotations

import pytest
import torch

from pyro_flows.nn import FirstNumbers, Standardised
from pyro_flows.transforms import AffineTril, ContextMap, PartialCentring


def test_it_draws_the_conditional_posterior_at_every_prior():
    layer = PartialCentring(1, 2).double()
    with torch.no_grad():
        layer.params.bias.fill_(3.0)  # an observation of 3 with sd 2
        layer.params.log_scale.fill_(torch.tensor(2.0).log())
    for mu, log_tau in ((1.0, 0.0), (-2.0, 3.0), (0.5, -15.0)):
        prior = torch.tensor(-2 * log_tau).double().exp()
        total = prior + 0.25
        noise = torch.tensor([[-1.0], [0.0], [2.0]]).double()
        expected = (prior * mu + 0.25 * 3.0) / total + noise * total**-0.5
        context = torch.tensor([mu, -2 * log_tau]).double()
        y, log_det = layer.forward_and_log_det(noise, context)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(log_det, (-0.5 * total.log()).expand(3))
        torch.testing.assert_close(layer.inverse_and_log_det(y, context)[0], noise, rtol=1e-4, atol=1e-4)


def test_extremes_of_the_prior_have_values_and_gradients():
    layer = PartialCentring(2, 4)
    context = torch.tensor([[1.0, 2.0, -200.0, 40.0], [1.0, 2.0, 40.0, -40.0]], requires_grad=True)
    y, log_det = layer.forward_and_log_det(torch.ones(2, 2), context)
    (y.sum() + log_det.sum()).backward()
    assert torch.isfinite(y).all() and torch.isfinite(context.grad).all()
    torch.testing.assert_close(y.detach(), torch.tensor([[1.0, 2.0], [1.0, 1.0]]))  # data N(0, 1), or the location of the prior
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_location_and_scale_are_linear_in_the_context():
    layer = PartialCentring(1, 5)
    with torch.no_grad():
        for weight in layer.params.parameters():
            weight.copy_(torch.randn_like(weight))
    rows = torch.randn(3, 3)
    contexts = torch.cat(
        [torch.stack([rows[0], rows[1], rows[0] + rows[1], 0 * rows[0]]), torch.tensor([0.0, -200.0]).expand(4, 2)], 1
    )
    loc, log_scale = layer.location_and_log_scale(contexts)
    for values in (loc, log_scale):
        torch.testing.assert_close(values[0] + values[1], values[2] + values[3], rtol=1e-4, atol=1e-4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"context_dim must be at least 2 \* input_dim = 4"):
        PartialCentring(2, 3)
    with pytest.raises(ValueError, match="needs a context"):
        PartialCentring(1, 2)(torch.ones(1))
    with pytest.raises(ValueError, match="context_dim must be a positive integer"):
        ContextMap(AffineTril(2, 3), FirstNumbers(3), 0)
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        Standardised(torch.zeros(1), torch.zeros(1))


def test_a_transform_is_told_a_function_of_the_context():
    inner = AffineTril(2, 3)
    with torch.no_grad():
        for weight in inner.parameters():
            weight.copy_(0.3 * torch.randn_like(weight))
    layer, context, x = ContextMap(inner, FirstNumbers(3), 5), torch.randn(4, 5), torch.randn(4, 2)
    torch.testing.assert_close(layer.condition(context)(x), inner.condition(context[:, :3])(x))
    changed = context.clone()
    changed[:, 3:] = 7.0
    torch.testing.assert_close(layer.condition(changed).inv(x), inner.condition(context[:, :3]).inv(x))
    assert ContextMap(AffineTril(2), FirstNumbers(1), 4).condition(torch.randn(4, 4))(x).shape == (4, 2)
    loc, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 0.1])
    standard = ContextMap(inner, Standardised(loc, scale), 3)
    torch.testing.assert_close(
        standard.condition(loc + scale * context[:, :3])(x), inner.condition(context[:, :3])(x), atol=1e-4, rtol=1e-4
    )
