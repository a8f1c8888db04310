"""Autoregressive layers: the sequential direction in sweeps, its implicit gradients, overflow."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_flows import flows
from pyro_flows.transforms import Affine, Autoregressive, Coupling, Elementwise, RationalQuadraticSpline, Shift

UNIVARIATE = {"shift": Shift, "affine": Affine, "spline": RationalQuadraticSpline}
ORDERS = {1: [0], 3: [2, 0, 1], 6: [3, 0, 5, 1, 2, 4]}


def layer_of(name, D, c=0, scale=0.3, dtype=torch.float64, order=None):
    torch.manual_seed(0)
    layer = Autoregressive(D, UNIVARIATE[name](), c, hidden_dims=(16, 16), order=order or ORDERS.get(D)).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return layer


def sequential(layer, y, context):
    """The inverse by D passes, differentiated through all of them."""
    x = torch.zeros_like(y)
    for place in range(layer.input_dim):
        raw = layer.conditioner.at(x, context).movedim(-1, 0)
        solved, log_slopes = layer.univariate.inverse_and_log_det(y, layer.univariate.split(raw))
        now = torch.tensor(ORDERS[layer.input_dim]) == place
        x = torch.where(now, solved, x)
    _, log_slopes = layer.univariate.inverse_and_log_det(y, layer.univariate.split(layer.conditioner.at(x, context).movedim(-1, 0)))
    return x, log_slopes.expand(x.shape).sum(-1)


@pytest.mark.parametrize("name", UNIVARIATE)
@pytest.mark.parametrize("D", ORDERS)
@pytest.mark.parametrize("c", [0, 2])
def test_inverse_and_its_implicit_gradients_are_those_of_sequential_passes(name, D, c):
    layer = layer_of(name, D, c)
    y = (2 * torch.randn(7, D, dtype=torch.float64)).requires_grad_()
    context = torch.randn(7, c, dtype=torch.float64).requires_grad_() if c else None
    leaves = [y, *([context] if c else []), *layer.parameters()]
    weights = torch.randn(7, D + 1, dtype=torch.float64)
    results = []
    for solve in (layer.inverse_and_log_det, lambda y, context: sequential(layer, y, context)):
        x, log_det = solve(y, context)
        loss = (weights[:, :D] * x).sum() + (weights[:, D] * log_det).sum()
        # the conditioner of a single variable without context is constant: its first layers have no influence
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        results.append((x, log_det, gradients))
    torch.testing.assert_close(results[0], results[1], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", UNIVARIATE)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_round_trip_both_ways(name, dtype, tolerance):
    layer = layer_of(name, 6, 2, scale=0.15, dtype=dtype)
    points, context = torch.randn(50, 6, dtype=dtype), torch.randn(50, 2, dtype=dtype)
    y, log_det = layer.forward_and_log_det(points, context)
    x, inverse_log_det = layer.inverse_and_log_det(y, context)
    torch.testing.assert_close(x, points, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=10 * tolerance, rtol=10 * tolerance)
    x, log_det = layer.inverse_and_log_det(points, context)
    torch.testing.assert_close(layer.forward_and_log_det(x, context)[0], points, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("c", [0, 2])
def test_jacobian_is_triangular_in_the_order_and_its_log_det_right(c):
    layer = layer_of("affine", 6, c)
    x = torch.randn(6, dtype=torch.float64)
    context = torch.randn(c, dtype=torch.float64) if c else None
    for method in (layer.forward_and_log_det, layer.inverse_and_log_det):
        jacobian = torch.autograd.functional.jacobian(lambda v, method=method: method(v, context)[0], x)
        place = torch.tensor(ORDERS[6])
        assert torch.equal(jacobian != 0, place[:, None] >= place[None, :])
        torch.testing.assert_close(method(x, context)[1], torch.linalg.slogdet(jacobian)[1], atol=1e-10, rtol=1e-10)


def test_no_graph_of_the_sweeps_is_kept(monkeypatch):
    """Backprop through D = 32 passes took zuko 12 s and memory in proportion to D."""
    layer = layer_of("affine", 32, order=list(range(32)), scale=0.1)
    calls = {True: 0, False: 0}
    inner = layer.conditioner.given

    def given(context=None, weights=None):
        network = inner(context, weights)

        def counted(x):
            calls[torch.is_grad_enabled()] += 1
            return network(x)

        return counted

    monkeypatch.setattr(layer.conditioner, "given", given)
    x, _ = layer.inverse_and_log_det(torch.randn(8, 32, dtype=torch.float64))
    assert calls[True] == 0  # the one pass at the solution is not among these
    assert 2 <= calls[False] <= 32


def test_sweeps_stop_when_nothing_changes(monkeypatch):
    layer = Autoregressive(32, Affine())
    sweeps = []
    inner = layer.univariate.evaluate
    monkeypatch.setattr(layer.univariate, "evaluate", lambda y, raw, inverse: sweeps.append(inverse) or inner(y, raw, inverse))
    layer.inverse_and_log_det(torch.randn(8, 32))
    assert sweeps == [True, True, False]  # the identity: one to find it, one to see that it stays; and one for the gradient


class Amplifier(Shift):
    """A shift by a multiple of its raw parameter, so large that a chain of six overflows float32."""

    def forward_and_log_det(self, x, params):
        return super().forward_and_log_det(x, (2.0**40 * params[0],))

    def inverse_and_log_det(self, y, params):
        return super().inverse_and_log_det(y, (2.0**40 * params[0],))


class NaNAmplifier(Amplifier):
    """The same, with NaN where it overflows, as the difference of two infinities is."""

    def inverse_and_log_det(self, y, params):
        x, log_slope = super().inverse_and_log_det(y, params)
        return x + 0 * x, log_slope


def amplifying(univariate=Amplifier, D=8):
    torch.manual_seed(0)
    layer = Autoregressive(D, univariate(), hidden_dims=())
    with torch.no_grad():
        layer.conditioner.weights.copy_(layer.conditioner.pack([(torch.ones(D, D), torch.zeros(D))]))
    return layer


@pytest.mark.parametrize("univariate", [Amplifier, NaNAmplifier])
def test_wrong_guesses_that_overflow_on_the_way_do_not_spoil_the_solution(univariate):
    """Infinity times a masked weight is NaN, also for the variables that are right already."""
    layer = amplifying(univariate)
    solution = torch.eye(8)[:3]  # sums of powers of two: exact in float32, although the guesses go beyond 2 ** 128
    y, _ = layer.forward_and_log_det(solution)
    for solve in (layer.inverse_and_log_det, torch.func.vmap(layer.inverse_and_log_det)):
        assert torch.equal(solve(y)[0], solution)


def test_overflow_raises_in_eager_mode_and_is_nan_elsewhere():
    layer = amplifying()
    y = torch.ones(2, 8)
    with pytest.raises(ArithmeticError, match="overflows in 2 rows"):
        layer.inverse_and_log_det(y)
    x, log_det = torch.func.vmap(layer.inverse_and_log_det)(y)
    assert x.isnan().all()
    assert log_det.isnan().all()
    compiled = torch.compile(layer.inverse_and_log_det, fullgraph=True, backend="eager")
    x, log_det = compiled(y)
    assert x.isnan().all()
    assert log_det.isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_becomes_nan_and_leaves_the_others_alone(bad):
    layer = layer_of("affine", 6, 2)
    y, context = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    expected, expected_log_det = layer.inverse_and_log_det(y, context)
    for spoil in (y, context):
        other = spoil.clone()
        other[1, 0] = bad
        x, log_det = layer.inverse_and_log_det(*((other, context) if spoil is y else (y, other)))
        assert x[1].isnan().any()
        assert log_det[1].isnan()
        torch.testing.assert_close(x[[0, 2]], expected[[0, 2]])
        torch.testing.assert_close(log_det[[0, 2]], expected_log_det[[0, 2]])


def test_parameters_that_are_not_finite_give_nan_which_a_training_loop_can_skip():
    layer = layer_of("affine", 3)
    with torch.no_grad():
        layer.conditioner.weights[-1] = torch.nan
    x, log_det = layer.inverse_and_log_det(torch.zeros(2, 3, dtype=torch.float64))
    assert x.isnan().all()
    assert log_det.isnan().all()


@pytest.mark.parametrize("name", UNIVARIATE)
def test_second_order_through_the_inverse_is_that_of_sequential_passes(name):
    layer = layer_of(name, 3)
    y = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for solve in (layer.inverse_and_log_det, lambda y: sequential(layer, y, None)):
        x, log_det = solve(y)
        first = torch.autograd.grad(x.sin().sum() + log_det.sum(), [y, *layer.parameters()], create_graph=True)
        loss = sum(gradient.sin().sum() for gradient in first)
        results.append(torch.autograd.grad(loss, [y, *layer.parameters()], allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(results[0], results[1], atol=1e-8, rtol=1e-8)


def test_a_map_that_overrides_one_with_a_closed_form_has_its_own_gradient():
    """The closed form is that of the class it comes from, and would be wrong without a sign."""

    class Doubled(Affine):
        def forward_and_log_det(self, x, params):
            y, log_slope = super().forward_and_log_det(x, params)
            return 2 * y, log_slope + math.log(2.0)

        def inverse_and_log_det(self, y, params):
            x, log_slope = super().inverse_and_log_det(y / 2, params)
            return x, log_slope - math.log(2.0)

    for conditioner in (Autoregressive, Coupling, Elementwise):
        layer = conditioner(2, Doubled()).double()
        x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
        y, log_det = layer.forward_and_log_det(x)
        moved = 1 if conditioner is Coupling else 2
        torch.testing.assert_close(log_det, torch.full((5,), moved * math.log(2.0), dtype=torch.float64))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.sum() == 5 * 2 * moved + 5 * (2 - moved)
        torch.testing.assert_close(layer.inverse_and_log_det(y)[0], x)


@pytest.mark.parametrize("name", ["iaf", "maf", "nsf_autoregressive"])
@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e4])
def test_flows_are_finite_with_finite_gradients_at_small_and_large_inputs(name, dim, scale):
    torch.manual_seed(0)
    flow = flows.get(name)(dim, 2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, context = (scale * torch.randn(16, dim)).requires_grad_(), torch.randn(16, 2)
    for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
        y, log_det = method(x, context)
        gradients = torch.autograd.grad(y.sum() + log_det.sum(), [x, *flow.parameters()])
        assert all(torch.isfinite(t).all() for t in (y, log_det, *gradients))


@pytest.mark.parametrize("name, cheap", [("iaf", "forward"), ("maf", "inverse"), ("nsf_autoregressive", "inverse")])
def test_the_cheap_direction_makes_no_sweep(name, cheap, monkeypatch):
    flow = flows.get(name)(3)
    assert flow.cheap_direction == cheap == flows.info(name).cheap
    monkeypatch.setattr(Autoregressive, "_sweep", lambda *_, **__: pytest.fail("a sweep"))
    getattr(flow, f"{cheap}_and_log_det")(torch.zeros(2, 3))


def test_maf_is_the_inverse_of_iaf():
    torch.manual_seed(0)
    maf = flows.maf(3, hidden_dims=(8,))
    torch.manual_seed(0)
    iaf = flows.iaf(3, hidden_dims=(8,))
    with torch.no_grad():
        for p, q in zip(maf.parameters(), iaf.parameters(), strict=True):
            q.copy_(p.add_(0.2 * torch.randn_like(p)))
    x = torch.randn(5, 3)
    torch.testing.assert_close(maf.inverse_and_log_det(x), iaf.forward_and_log_det(x))


@pytest.mark.parametrize("name", ["nice", "real_nvp", "iaf", "maf", "nsf_coupling", "nsf_autoregressive"])
@pytest.mark.parametrize("num_layers", [0, -1, 2.0, True])
def test_a_bad_number_of_layers_is_named(name, num_layers):
    with pytest.raises(ValueError, match="num_layers"):
        flows.get(name)(3, num_layers=num_layers)
