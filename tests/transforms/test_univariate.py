"""Univariate maps: both directions, slopes, identity at zero, and what the splines of others get wrong."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_flows.transforms.univariate import (
    Affine,
    Bernstein,
    DeepSigmoid,
    MixtureCDF,
    MonotonicNetwork,
    RationalQuadraticSpline,
    Shift,
    SumOfSquares,
    UnivariateMap,
)
from pyro_flows.transforms.univariate.closed_form import ClosedFormFunction
from pyro_flows.transforms.univariate.rational_quadratic_bins import forward_in_bin, inverse_in_bin, pick_bin

MAPS = {
    "shift": Shift,
    "affine": Affine,
    "affine_tight": lambda: Affine(log_scale_bound=0.5),
    "spline": RationalQuadraticSpline,
    "spline_two_bins": lambda: RationalQuadraticSpline(2, 1.0),
    "spline_more_bins_than_a_byte": lambda: RationalQuadraticSpline(300, 6.0, min_bin=1e-4),
    "spline_many_bins": lambda: RationalQuadraticSpline(33, 12.0, min_bin=1e-2, min_slope=0.1),
    "deep_sigmoid": DeepSigmoid,
    "deep_sigmoid_of_one": lambda: DeepSigmoid(1),
    "mixture_logistic": MixtureCDF,
    "mixture_gaussian": lambda: MixtureCDF(5, "gaussian"),
    "bernstein": Bernstein,
    "bernstein_cubic": lambda: Bernstein(3, 2.0),
    "sum_of_squares": SumOfSquares,
    "sum_of_squares_single": lambda: SumOfSquares(1, 1, 2.0),
    "monotonic_network": MonotonicNetwork,
}


def draw(name, n=2000, sd=1.0, spread=3.0, dtype=torch.float64):
    torch.manual_seed(0)
    u = MAPS[name]().to(dtype)
    raw = sd * torch.randn(u.param_count, n, dtype=dtype)
    return u, spread * torch.randn(n, dtype=dtype), raw


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("spread", [1e-6, 3.0, 1e4])
def test_both_directions_agree_and_log_slopes_are_those_of_autograd(name, spread):
    u, x, raw = draw(name, spread=spread)
    params = u.split(raw)
    x.requires_grad_()
    y, log_slope = u.forward_and_log_det(x, params)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope.expand(x.shape), slope.log(), atol=1e-10, rtol=1e-10)
    y = y.detach().requires_grad_()
    back, inverse_log_slope = u.inverse_and_log_det(y, params)
    torch.testing.assert_close(back, x.detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(inverse_log_slope, -log_slope, atol=1e-7, rtol=1e-7)
    (slope,) = torch.autograd.grad(back.sum(), y)
    torch.testing.assert_close(slope.log(), inverse_log_slope.expand(y.shape), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 3e-14)])
def test_zero_parameters_are_the_identity(name, dtype, tolerance):
    u, x, raw = draw(name, sd=0.0, dtype=dtype)
    for direction in (u.forward_and_log_det, u.inverse_and_log_det):
        y, log_slope = direction(x, u.split(raw))
        torch.testing.assert_close(y, x, atol=tolerance, rtol=0)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
@pytest.mark.parametrize("components", [1, 2, 3, 4, 8, 16, 40])
def test_a_mixture_starts_near_the_identity_with_components_apart(kind, components):
    u, x = MixtureCDF(components, kind), torch.linspace(-4, 4, 101)
    params = u.split(u.start()[:, None])
    y, _ = u.forward_and_log_det(x, params)
    assert (y - x).abs().max() < (0.12 if components < 8 else 0.04)
    assert len((params[0][:, 0] * u.gain).unique()) >= min(components, 2)


@pytest.mark.parametrize("name", MAPS)
def test_gradients_to_parameters_agree_with_finite_differences(name):
    u, x, raw = draw(name, n=6, spread=0.7)
    raw.requires_grad_()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, raw: u.forward_and_log_det(x, u.split(raw)), (x, raw))
    assert torch.autograd.gradcheck(lambda y, raw: u.inverse_and_log_det(y, u.split(raw)), (x, raw))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shared", [False, True])
def test_second_derivatives_agree_with_finite_differences(name, shared):
    u, x, raw = draw(name, n=3, spread=0.7)
    raw = raw[..., None] if shared else raw
    x = torch.stack([x, x + 0.3], -1) if shared else x

    def both(direction):
        def run(x, raw):
            value, log_slope = direction(x, u.split(raw))
            return value, log_slope.expand(x.shape)

        return run

    for direction in (u.forward_and_log_det, u.inverse_and_log_det):
        leaves = x.clone().requires_grad_(), raw.clone().requires_grad_()
        many = raw.numel() > 1000  # hundreds of bins: a difference for each parameter takes minutes
        assert torch.autograd.gradcheck(both(direction), leaves, fast_mode=many)
        assert torch.autograd.gradgradcheck(both(direction), leaves, fast_mode=True)


@pytest.mark.parametrize("name", MAPS)
def test_one_set_of_parameters_serves_many_points(name):
    u, x, raw = draw(name, n=4)
    many = torch.randn(3, 5, 4, dtype=torch.float64)
    for direction in (u.forward_and_log_det, u.inverse_and_log_det):
        few = direction(many, u.split(raw))
        all_ = direction(many, u.split(raw[:, None, None].expand(-1, 3, 5, -1)))
        for a, b in zip(few, all_, strict=True):
            torch.testing.assert_close(a.expand(many.shape), b.expand(many.shape))


def test_split_follows_the_declared_shapes():
    class Mixed(UnivariateMap):
        param_shapes = ((), (3,), (2, 2))

    u = Mixed()
    assert u.param_count == 8
    a, b, c = u.split(torch.arange(16.0).reshape(2, 8).T)
    assert a.tolist() == [0, 8]
    assert b[:, 0].tolist() == [1, 2, 3]
    assert c[..., 1].tolist() == [[12, 13], [14, 15]]


def test_affine_scale_is_bounded_and_slope_one_in_the_raw_parameter():
    u = Affine(2.0)
    x = torch.ones(2)
    _, log_slope = u.forward_and_log_det(x, (torch.tensor([[0.0, 0.0], [1e4, 1e-3]]),))
    assert 2.0 - 1e-5 < log_slope[0] <= 2.0
    assert log_slope[1].item() == pytest.approx(1e-3, rel=1e-4)


# The spline


def test_spline_slope_at_the_bound_is_exactly_one():
    """Pyro's is 0.999."""
    u = RationalQuadraticSpline(8, 5.0)
    torch.manual_seed(0)
    raw = 3 * torch.randn(u.param_count, 1000, dtype=torch.float64)
    for at in (-5.0, 5.0):
        x = torch.full((1000,), at, dtype=torch.float64)
        y, log_slope = u.forward_and_log_det(x, u.split(raw))
        assert torch.equal(log_slope, torch.zeros_like(x))
        torch.testing.assert_close(y, x, atol=1e-14, rtol=0)
        inner = x * (1 - 1e-12)
        _, log_slope = u.forward_and_log_det(inner, u.split(raw))
        # Continuous: the slope changes by at most (slopes of up to 1e6) x 5e-12 over that distance.
        assert log_slope.abs().max() < 1e-5


def test_spline_is_exactly_the_identity_outside():
    u = RationalQuadraticSpline(8, 5.0)
    torch.manual_seed(0)
    x = torch.tensor([-1e4, -5.1, 5.1, 1e4])
    params = u.split(3 * torch.randn(u.param_count, 4))
    for direction in (u.forward_and_log_det, u.inverse_and_log_det):
        y, log_slope = direction(x, params)
        assert torch.equal(y, x)
        assert torch.equal(log_slope, torch.zeros(4))


def test_spline_is_increasing_and_has_no_jump():
    u = RationalQuadraticSpline(6, 2.0)
    torch.manual_seed(0)
    x = torch.linspace(-2.5, 2.5, 200_001, dtype=torch.float64)
    for _ in range(5):
        raw = 2 * torch.randn(u.param_count, dtype=torch.float64)
        y, log_slope = u.forward_and_log_det(x, u.split(raw))
        steps = y.diff()
        assert (steps > 0).all()
        largest = torch.maximum(log_slope[1:], log_slope[:-1]).exp() * (x[1] - x[0])
        assert (steps <= 1.2 * largest).all()


def knots(u, raw):
    """Of x and of y, from their definition."""
    K, B = u.num_bins, u.bound
    sizes = 2 * B * (u.min_bin + (1 - K * u.min_bin) * raw[: 2 * K].unflatten(0, (2, K)).softmax(1))
    return torch.cat([torch.zeros_like(sizes[:, :1]), sizes.cumsum(1)], 1) - B


def test_spline_passes_its_knots_with_its_slopes_from_both_sides():
    u = RationalQuadraticSpline(6, 2.0, min_slope=0.1)
    torch.manual_seed(0)
    raw = torch.randn(u.param_count, dtype=torch.float64)
    xs, ys = knots(u, raw)
    slopes = 0.1 + 0.9 * torch.log2(1 + 2 ** raw[12:])
    for side in (-1e-12, 0.0, 1e-12):
        y, log_slope = u.forward_and_log_det(xs[1:-1] + side, u.split(raw))
        torch.testing.assert_close(y, ys[1:-1], atol=1e-10, rtol=0)
        torch.testing.assert_close(log_slope.exp(), slopes, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sd", [1.0, 10.0, 1e4])
def test_spline_survives_large_logits_in_float32(sd):
    """zuko gave 8 NaN of 20,000 at logits of sd 10, nflows' and Pyro's assertions failed."""
    torch.manual_seed(0)
    u = RationalQuadraticSpline()
    raw = (sd * torch.randn(u.param_count, 20_000)).requires_grad_()
    x = (3 * torch.randn(20_000)).requires_grad_()
    y, log_slope = u.forward_and_log_det(x, u.split(raw))
    back, inverse_log_slope = u.inverse_and_log_det(x, u.split(raw))
    for value in (y, log_slope, back, inverse_log_slope):
        assert torch.isfinite(value).all()
        for gradient in torch.autograd.grad(value.sum(), (x, raw), retain_graph=True):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("sd", [0.3, 1.0, 10.0])
def test_spline_round_trip_is_as_exact_as_its_slope_allows_in_float32(sd):
    torch.manual_seed(0)
    u = RationalQuadraticSpline()
    params = u.split(sd * torch.randn(u.param_count, 20_000))
    y = 3 * torch.randn(20_000)
    x, _ = u.inverse_and_log_det(y, params)
    again, log_slope = u.forward_and_log_det(x, params)
    rounding = 5 * torch.finfo(torch.float32).eps
    # One rounding of x moves y by the slope; bins as narrow as min_bin have slopes that change within a rounding.
    assert ((again - y).abs() / (rounding * (1 + log_slope.exp()))).max() < 50
    if sd <= 1:
        assert (again - y).abs().max() < 2e-4


@pytest.mark.parametrize("x", [-1e4, -5.0, -1e-6, 0.0, 5.0, 30.0, 1e4])
def test_spline_gradients_are_finite_at_and_beyond_the_bound(x):
    """A `where` after the arithmetic has the right value and NaN gradients (flowjax#239, #240)."""
    u = RationalQuadraticSpline()
    torch.manual_seed(0)
    raw = (3 * torch.randn(u.param_count, 64)).requires_grad_()
    at = torch.full((64,), x, requires_grad=True)
    for direction in (u.forward_and_log_det, u.inverse_and_log_det):
        y, log_slope = direction(at, u.split(raw))
        gradients = torch.autograd.grad(y.sum() + log_slope.sum(), (at, raw))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        if abs(x) > 5:
            assert torch.equal(gradients[0], torch.ones(64))
            assert gradients[1].count_nonzero() == 0


def test_inverse_gradient_is_right_where_the_quadratic_changes_form():
    """At the middle of a bin of equal end slopes the two forms of the root meet."""
    u = RationalQuadraticSpline(3, 3.0)
    raw = torch.zeros(u.param_count, 1, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, raw: u.inverse_and_log_det(y, u.split(raw)), (y, raw))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("sd", [0.0, 1.0, 30.0])
def test_gradient_in_closed_form_is_that_of_autograd(inverse, sd):
    """Values, first derivatives, and second ones, beside the arithmetic that is compiled; inside, outside, and at knots."""
    u = RationalQuadraticSpline(5, 2.0, min_bin=0.02)
    torch.manual_seed(0)
    raw = (sd * torch.randn(u.param_count, 300, dtype=torch.float64)).requires_grad_()
    x = 1.5 * torch.randn(300, dtype=torch.float64)
    x[:20], x[20:40] = knots(u, raw.detach())[int(inverse), 2, :20], torch.tensor(2.0)
    x.requires_grad_()
    weights = torch.randn(2, 300, dtype=torch.float64)
    results = []
    inside = x.clamp(-2.0, 2.0)
    by_autograd = (inverse_in_bin if inverse else forward_in_bin)(inside, pick_bin(inside, raw, inverse, 5, 2.0, 0.02, 1e-3))[:2]
    outside = inside != x
    by_autograd = torch.where(outside, x, by_autograd[0]), by_autograd[1].masked_fill(outside, 0.0)
    for value, log_slope in (ClosedFormFunction.apply(x, raw, inverse, u), by_autograd):
        loss = (weights[0] * value + weights[1] * log_slope).sum()
        first = torch.autograd.grad(loss, [x, raw], create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), [x, raw])
        results.append([value, log_slope, *first, *second])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_knots_respect_the_smallest_bin():
    u = RationalQuadraticSpline(4, 2.0, min_bin=0.05)
    torch.manual_seed(0)
    raw = 1e3 * torch.randn(u.param_count, 500)
    bins = [pick_bin(torch.linspace(-2, 2, 500), raw, inverse, 4, 2.0, 0.05, 1e-3) for inverse in (False, True)]
    assert min(float(torch.minimum(b.w, b.h).min()) for b in bins) >= 0.05 * 4.0 - 1e-6


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: Affine(0.0), "log_scale_bound"),
        (lambda: Affine(math.inf), "log_scale_bound"),
        (lambda: RationalQuadraticSpline(1), "num_bins"),
        (lambda: RationalQuadraticSpline(4.0), "num_bins"),
        (lambda: RationalQuadraticSpline(4, -1.0), "bound"),
        (lambda: RationalQuadraticSpline(4, min_bin=0.25), "min_bin"),
        (lambda: RationalQuadraticSpline(4, min_slope=1.0), "min_slope"),
    ],
)
def test_a_bad_argument_is_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()
