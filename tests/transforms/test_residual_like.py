"""Planar, Radial, Sylvester: invertible everywhere, which the published forms with a lookup cache are not."""

from __future__ import annotations

import pytest
import torch

from pyro_flows.flows.planar import planar
from pyro_flows.flows.radial import radial
from pyro_flows.flows.sylvester import sylvester
from pyro_flows.transforms.planar import Planar
from pyro_flows.transforms.radial import Radial
from pyro_flows.transforms.sylvester import Sylvester

D, C = 3, 2
UNCONDITIONAL = {
    "planar": lambda: Planar(D),
    "radial": lambda: Radial(D),
    "sylvester": lambda: Sylvester(D),
    "sylvester_narrow": lambda: Sylvester(D, num_units=2, num_reflections=5),
}
CONDITIONAL = {
    "planar": lambda: Planar(D, C),
    "radial": lambda: Radial(D, C),
    "sylvester": lambda: Sylvester(D, C),
}
ONE_VARIABLE = {"planar": lambda: Planar(1), "radial": lambda: Radial(1), "sylvester": lambda: Sylvester(1)}


def randomised(build, dtype=torch.float64, seed=0, scale=1.0):
    torch.manual_seed(seed)
    transform = build().to(dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, dtype=dtype))
    return transform


def log_abs_det_jacobian(function, x):
    return torch.linalg.slogdet(torch.autograd.functional.jacobian(function, x))


@pytest.mark.parametrize("name", UNCONDITIONAL)
@pytest.mark.parametrize("seed", range(5))
def test_log_det_is_that_of_the_jacobian_and_positive(name, seed):
    transform = randomised(UNCONDITIONAL[name], seed=seed, scale=2.0)
    for x in 2 * torch.randn(5, D, dtype=torch.float64):
        y, log_det = transform.forward_and_log_det(x)
        sign, expected = log_abs_det_jacobian(lambda v: transform.forward_and_log_det(v)[0], x)
        assert sign == 1
        torch.testing.assert_close(log_det, expected, atol=1e-9, rtol=1e-9)
        sign, expected = log_abs_det_jacobian(lambda v: transform.inverse_and_log_det(v)[0], y)
        torch.testing.assert_close(transform.inverse_and_log_det(y)[1], expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", UNCONDITIONAL)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.float64, 1e-12)])
def test_points_that_were_never_images_have_an_inverse(name, scale, dtype, tolerance):
    """Pyro's planar, radial and Sylvester raise KeyError on a point that is not in their cache."""
    transform = randomised(UNCONDITIONAL[name], dtype)
    y = (scale * torch.randn(200, D, dtype=dtype)).requires_grad_()
    x, inverse_log_det = transform.inverse_and_log_det(y)
    again, log_det = transform.forward_and_log_det(x)
    assert x.dtype == log_det.dtype == dtype
    torch.testing.assert_close(again, y, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=tolerance, atol=10 * tolerance)
    (gradient,) = torch.autograd.grad((x.sum() + inverse_log_det.sum()), y)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", UNCONDITIONAL)
@pytest.mark.parametrize("seed", range(4))
def test_large_parameters_stay_invertible(name, seed):
    """The constraint holds by construction, not only near the start."""
    transform = randomised(UNCONDITIONAL[name], seed=seed, scale=10.0)
    x = 3 * torch.randn(100, D, dtype=torch.float64)
    y, log_det = transform.forward_and_log_det(x)
    assert bool(torch.isfinite(log_det).all())
    torch.testing.assert_close(transform.inverse_and_log_det(y)[0], x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_gradients_of_the_inverse_are_those_of_finite_differences(name):
    transform = randomised(UNCONDITIONAL[name])
    parameters = dict(transform.named_parameters())
    y = torch.randn(4, D, dtype=torch.float64, requires_grad=True)

    def inverse(y, *values):
        named = dict(zip([f"t.{n}" for n in parameters], values, strict=True))
        return torch.func.functional_call(Inverted(transform), named, (y,))

    assert torch.autograd.gradcheck(inverse, (y, *parameters.values()), atol=1e-7, rtol=1e-6)


class Inverted(torch.nn.Module):
    def __init__(self, t):
        super().__init__()
        self.t = t

    def forward(self, y):
        return self.t.inverse_and_log_det(y)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_inverse_gradients_agree_with_the_implicit_function_theorem(name):
    transform = randomised(UNCONDITIONAL[name])
    y = torch.randn(D, dtype=torch.float64)
    x = transform.inverse_and_log_det(y)[0].detach()
    weights = torch.randn(D, dtype=torch.float64)
    values = list(transform.parameters())
    forward_jacobian = torch.autograd.functional.jacobian(lambda v: transform.forward_and_log_det(v)[0], x)
    adjoint = torch.linalg.solve(forward_jacobian.mT, weights)
    expected = torch.autograd.grad(-(adjoint * transform.forward_and_log_det(x)[0]).sum(), values)
    found = torch.autograd.grad((weights * transform.inverse_and_log_det(y)[0]).sum(), values)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_is_exactly_the_identity_at_the_start(name):
    torch.manual_seed(0)
    x = torch.randn(10, D)
    y, log_det = UNCONDITIONAL[name]().forward_and_log_det(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(10))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_is_exactly_the_identity_at_the_start_for_every_context(name):
    torch.manual_seed(0)
    x = torch.randn(10, D)
    assert torch.equal(CONDITIONAL[name]().forward_and_log_det(x, torch.randn(10, C))[0], x)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_training_leaves_the_start(name):
    """A start at the identity must not be a stationary point."""
    torch.manual_seed(0)
    transform = UNCONDITIONAL[name]()
    y, log_det = transform.forward_and_log_det(torch.randn(50, D))
    ((y - 1).square().sum() - log_det.sum()).backward()
    assert all(p.grad is not None for p in transform.parameters())
    assert sum(float(p.grad.abs().sum()) for p in transform.parameters()) > 1e-2


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize("x_batch, context_batch", [((), ()), ((5,), ()), ((5,), (5,)), ((2, 5), (5,)), ((5,), (2, 5))])
def test_contexts_broadcast(name, x_batch, context_batch):
    transform = randomised(CONDITIONAL[name], scale=0.3)
    x = torch.randn(*x_batch, D, dtype=torch.float64)
    context = torch.randn(*context_batch, C, dtype=torch.float64)
    batch = torch.broadcast_shapes(x_batch, context_batch)
    y, log_det = transform.forward_and_log_det(x, context)
    assert y.shape == (*batch, D) and log_det.shape == batch
    back, inverse_log_det = transform.inverse_and_log_det(y, context)
    torch.testing.assert_close(back, x.expand(*batch, D), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-10, rtol=1e-10)
    rows, contexts = x.expand(*batch, D).reshape(-1, D), context.expand(*batch, C).reshape(-1, C)
    for i in range(len(rows)):
        single, single_log_det = transform.forward_and_log_det(rows[i], contexts[i])
        torch.testing.assert_close(y.reshape(-1, D)[i], single)
        torch.testing.assert_close(log_det.reshape(-1)[i], single_log_det)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_every_parameter_and_the_context_receive_gradients_in_both_directions(name):
    transform = randomised(CONDITIONAL[name], scale=0.5)
    for method in (transform.forward_and_log_det, transform.inverse_and_log_det):
        transform.zero_grad()
        context = torch.randn(6, C, dtype=torch.float64, requires_grad=True)
        out, log_det = method(torch.randn(6, D, dtype=torch.float64), context)
        ((out**3).sum() + log_det.sum()).backward()
        for parameter_name, parameter in transform.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name
        assert bool((context.grad.abs().sum(-1) > 0).all())


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_compiled_and_vmapped_as_in_eager_mode(name):
    torch._dynamo.reset()  # the checks around the methods are one code object, recompiled at most eight times
    transform = randomised(UNCONDITIONAL[name])
    x = torch.randn(5, D, dtype=torch.float64)
    for method in (transform.forward_and_log_det, transform.inverse_and_log_det):
        expected = method(x)
        torch.testing.assert_close(torch.compile(method, fullgraph=True, backend="eager")(x), expected)
        torch.testing.assert_close(torch.func.vmap(method)(x), expected)


@pytest.mark.parametrize("name", UNCONDITIONAL)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch itself, in its decompositions
def test_forward_mode_derivatives_of_the_inverse_agree_with_reverse_mode(name):
    """In float32 and without a batch: torch's forward mode promotes a zero-dimensional tensor times a number."""
    transform = randomised(UNCONDITIONAL[name], torch.float32)
    y = torch.randn(D)
    found, expected = (jac(transform.inverse_and_log_det)(y) for jac in (torch.func.jacfwd, torch.func.jacrev))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ONE_VARIABLE)
def test_one_variable_is_increasing_with_a_density_that_integrates_to_one(name):
    transform = randomised(ONE_VARIABLE[name], scale=2.0)
    grid = torch.linspace(-60, 60, 200_001, dtype=torch.float64).unsqueeze(-1)
    x, log_det = transform.inverse_and_log_det(grid)
    assert bool((x.diff(dim=0) > 0).all())
    density = torch.exp(-0.5 * x.squeeze(-1) ** 2 + log_det) / (2 * torch.pi) ** 0.5
    assert abs(torch.trapezoid(density, grid.squeeze(-1)).item() - 1) < 1e-5


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_non_finite_inputs_stay_in_their_row(name):
    transform = randomised(UNCONDITIONAL[name])
    y = torch.randn(3, D, dtype=torch.float64)
    expected = transform.inverse_and_log_det(y)[0]
    y[1, 0] = torch.nan
    x = transform.inverse_and_log_det(y)[0]
    assert bool(torch.isnan(x[1]).any())
    torch.testing.assert_close(x[[0, 2]], expected[[0, 2]])


def test_radial_is_finite_with_finite_gradients_at_its_centre():
    transform = randomised(UNCONDITIONAL["radial"])
    for method in (transform.forward_and_log_det, transform.inverse_and_log_det):
        point = transform.params.center.detach().clone().requires_grad_()
        out, log_det = method(point)
        torch.testing.assert_close(out, point)
        gradients = torch.autograd.grad(out.sum() + log_det, [point, *transform.parameters()])
        assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_planar_at_zero_weight_is_a_shift():
    """The correction of the paper divides by the norm of w."""
    transform = randomised(UNCONDITIONAL["planar"])
    with torch.no_grad():
        transform.params.w.zero_()
    x = torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    y, log_det = transform.forward_and_log_det(x)
    torch.testing.assert_close(y - x, (y - x)[:1].expand(5, D))
    assert torch.equal(log_det, torch.zeros(5, dtype=torch.float64))
    gradients = torch.autograd.grad(y.square().sum() + log_det.sum(), [x, *transform.parameters()])
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_sylvester_with_one_unit_is_planar():
    """With Q = e / |e| and one unit, y = x + q r tanh(r~ q.x + b)."""
    transform = randomised(lambda: Sylvester(D, num_units=1))
    values = dict(transform.params.named_parameters())
    q = torch.zeros(D, dtype=torch.float64)
    q[0] = 1.0
    v = values["vectors"][0]
    q = q - 2 * v * v[0] / (v @ v)
    plane = Planar(D).double()
    with torch.no_grad():
        plane.params.u.copy_(q * values["outer_diagonal"])
        plane.params.w.copy_(q * values["inner_diagonal"])
        plane.params.b.copy_(values["bias"])
    x = torch.randn(7, D, dtype=torch.float64)
    torch.testing.assert_close(transform.forward_and_log_det(x), plane.forward_and_log_det(x))
    torch.testing.assert_close(transform.inverse_and_log_det(x), plane.inverse_and_log_det(x))


@pytest.mark.parametrize("units", [0, 4])
def test_number_of_units_is_validated(units):
    with pytest.raises(ValueError, match=f"num_units must be .*got {units}"):
        Sylvester(3, num_units=units)


@pytest.mark.parametrize("factory", [planar, radial, sylvester])
def test_factories_stack_and_invert(factory):
    torch.manual_seed(0)
    flow = factory(D, C, num_layers=3).double()
    x, context = torch.randn(5, D, dtype=torch.float64), torch.randn(5, C, dtype=torch.float64)
    torch.testing.assert_close(flow.forward_and_log_det(x, context)[0], x)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    y, log_det = flow.forward_and_log_det(x, context)
    assert not torch.allclose(y, x)
    back, inverse_log_det = flow.inverse_and_log_det(y, context)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="num_layers must be a positive integer, got 0"):
        factory(D, num_layers=0)
