"""The map from standardised to actual effects: it is the conditional posterior of normal effects."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_flows.transforms import NonCentring


def two_levels() -> NonCentring:
    """(mu, log tau, theta, log sigma, x) with theta ~ N(mu, tau) and x ~ N(theta, sigma)."""
    loc, log_scale = torch.zeros(5, 5), torch.zeros(5, 5)
    loc[2, 0] = loc[4, 2] = 1.0
    log_scale[2, 1] = log_scale[4, 3] = 1.0
    return NonCentring(torch.zeros(5), loc, torch.zeros(5), log_scale)


def test_a_hierarchy_of_two_levels_is_written_out():
    noise = torch.tensor([0.5, -1.0, 2.0, 0.3, -0.7])
    mu, theta = 0.5, 0.5 + 2.0 * torch.tensor(-1.0).exp()
    expected = torch.stack([torch.tensor(mu), torch.tensor(-1.0), theta, torch.tensor(0.3), theta - 0.7 * torch.tensor(0.3).exp()])
    layer = two_levels()
    assert layer.depth == 2
    torch.testing.assert_close(layer(noise), expected)
    torch.testing.assert_close(layer.inv(expected), noise)
    assert layer.forward_and_log_det(noise)[1].item() == pytest.approx(-1.0 + 0.3)


def test_with_data_it_draws_the_conditional_posterior():
    # theta ~ N(mu, tau^2) and an observation y = 3 of sd 2: normal with the precisions added.
    loc, log_scale = torch.zeros(3, 3), torch.zeros(3, 3)
    loc[2, 0] = log_scale[2, 1] = 1.0
    zero = torch.zeros(3)
    precision, centre = torch.tensor([0.0, 0.0, 0.25]), torch.tensor([0.0, 0.0, 3.0])
    layer = NonCentring(zero, loc, zero, log_scale, precision, centre)
    for mu, log_tau in ((1.0, 0.0), (-2.0, 3.0), (0.0, -15.0)):
        prior = torch.tensor(-2 * log_tau).exp()
        total = prior + 0.25
        for noise in (-1.0, 0.0, 2.0):
            found = layer(torch.tensor([mu, log_tau, noise]))[2]
            torch.testing.assert_close(found, (prior * mu + 0.25 * 3.0) / total + noise * total.rsqrt())


def test_the_neck_of_a_funnel_does_not_overflow():
    layer = two_levels()
    noise = torch.tensor([[0.0, -1e4, 1.0, 0.0, 0.0], [0.0, 1e4, 1.0, 0.0, 0.0]])
    y, log_det = layer.forward_and_log_det(noise)
    assert torch.isfinite(y).all() and log_det.tolist() == [-20.0, 20.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loc_bias": torch.zeros(2, 2)}, r"loc_bias must have shape \(D,\)"),
        ({"loc_weight": torch.zeros(3, 3)}, r"loc_weight must have shape \(2, 2\)"),
        ({"log_scale_weight": torch.eye(2)}, "strictly lower triangular"),
        ({"log_scale_bias": torch.tensor([0.0, torch.inf])}, "log_scale_bias must be finite"),
        ({"precision": torch.tensor([0.0, -1.0])}, "precision must not be negative"),
        ({"centre": torch.zeros(3)}, "centre must have shape"),
    ],
)
def test_what_is_no_hierarchy_is_refused(change, message):
    names = {"loc_bias": (2,), "loc_weight": (2, 2), "log_scale_bias": (2,), "log_scale_weight": (2, 2)}
    given = {**{name: torch.zeros(shape) for name, shape in names.items()}, **change}
    with pytest.raises(ValueError, match=message):
        NonCentring(**given)


def test_levels_are_counted_anew_when_other_weights_are_loaded():
    layer = two_levels()
    other = NonCentring(torch.zeros(5), torch.zeros(5, 5), torch.zeros(5), torch.zeros(5, 5))
    other.load_state_dict(layer.state_dict())
    assert other.depth == 2
    noise = torch.randn(4, 5)
    torch.testing.assert_close(other(noise), layer(noise))


def test_data_of_any_precision_do_not_overflow():
    log_scale = torch.zeros(2, 2)
    log_scale[1, 0] = 1.0
    layer = NonCentring(
        torch.zeros(2), torch.zeros(2, 2), torch.zeros(2), log_scale, torch.tensor([0.0, 1e25]), torch.full((2,), 3.0)
    )
    y, log_det = layer.forward_and_log_det(torch.tensor([40.0, 1.0]))
    assert y[1].item() == pytest.approx(3.0) and log_det.item() == pytest.approx(-0.5 * math.log(1e25), rel=1e-5)
