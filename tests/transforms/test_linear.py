"""Permutation, LULinear, Householder, ActNorm, AffineTril: the matrix they say, its determinant, its inverse."""

from __future__ import annotations

import pytest
import torch

from pyro_flows.transforms.actnorm import ActNorm
from pyro_flows.transforms.affine_tril import AffineTril
from pyro_flows.transforms.householder import Householder
from pyro_flows.transforms.lu_linear import LULinear
from pyro_flows.transforms.permutation import Permutation
from pyro_flows.transforms.reflections import reflect
from pyro_flows.transforms.triangular import matvec, strictly_lower_index, triangular_solve, unpack

D, C = 4, 3
UNCONDITIONAL = {
    "permutation": lambda: Permutation([2, 0, 3, 1]),
    "lu": lambda: LULinear(D),
    "lu_permuted": lambda: LULinear(D, permutation=[1, 2, 3, 0]),
    "householder": lambda: Householder(D),
    "householder_odd": lambda: Householder(D, num_reflections=3),
    "actnorm": lambda: ActNorm(D),
    "affine": lambda: AffineTril(D),
}
CONDITIONAL = {
    "lu": lambda: LULinear(D, C),
    "householder": lambda: Householder(D, C),
    "affine": lambda: AffineTril(D, C),
}


def randomised(build, dtype=torch.float64, seed=0, scale=0.5):
    torch.manual_seed(seed)
    transform = build().to(dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, dtype=dtype))
    return transform


def jacobian(function, x):
    return torch.autograd.functional.jacobian(function, x)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_log_det_and_sign_are_those_of_the_jacobian(name):
    transform = randomised(UNCONDITIONAL[name])
    x = torch.randn(D, dtype=torch.float64)
    y, log_det = transform.forward_and_log_det(x)
    sign, expected = torch.linalg.slogdet(jacobian(lambda v: transform.forward_and_log_det(v)[0], x))
    torch.testing.assert_close(log_det, expected, atol=1e-10, rtol=0)
    assert transform.sign == int(sign)
    back, inverse_log_det = transform.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(inverse_log_det, -expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize("x_batch, context_batch", [((5,), ()), ((5,), (5,)), ((2, 5), (5,)), ((5,), (2, 5)), ((), (5,))])
def test_a_conditional_map_has_one_matrix_for_each_context(name, x_batch, context_batch):
    transform = randomised(CONDITIONAL[name], scale=0.2)
    x = torch.randn(*x_batch, D, dtype=torch.float64)
    context = torch.randn(*context_batch, C, dtype=torch.float64)
    batch = torch.broadcast_shapes(x_batch, context_batch)
    y, log_det = transform.forward_and_log_det(x, context)
    assert y.shape == (*batch, D) and log_det.shape == batch
    back, inverse_log_det = transform.inverse_and_log_det(y, context)
    torch.testing.assert_close(back, x.expand(*batch, D), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det)
    rows = x.expand(*batch, D).reshape(-1, D)
    contexts = context.expand(*batch, C).reshape(-1, C)
    for i in range(len(rows)):
        single = transform.forward_and_log_det(rows[i], contexts[i])
        torch.testing.assert_close(y.reshape(-1, D)[i], single[0])
        expected = torch.linalg.slogdet(jacobian(lambda v, i=i: transform.forward_and_log_det(v, contexts[i])[0], rows[i]))[1]
        torch.testing.assert_close(log_det.reshape(-1)[i], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["lu", "householder", "actnorm", "affine"])
def test_starts_at_the_identity(name):
    torch.manual_seed(1)
    x = torch.randn(7, D)
    y, log_det = UNCONDITIONAL[name]().forward_and_log_det(x)
    torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, torch.zeros(7))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_starts_at_the_identity_for_every_context(name):
    torch.manual_seed(1)
    x, context = torch.randn(7, D), 10 * torch.randn(7, C)
    y, log_det = CONDITIONAL[name]().forward_and_log_det(x, context)
    torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, torch.zeros(7))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_every_parameter_and_the_context_receive_gradients_in_both_directions(name):
    transform = randomised(CONDITIONAL[name])
    for method in (transform.forward_and_log_det, transform.inverse_and_log_det):
        transform.zero_grad()
        context = torch.randn(6, C, dtype=torch.float64, requires_grad=True)
        out, log_det = method(torch.randn(6, D, dtype=torch.float64), context)
        ((out**3).sum() + log_det.sum()).backward()
        for parameter_name, parameter in transform.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name
        assert bool((context.grad.abs().sum(-1) > 0).all())


@pytest.mark.parametrize("name", UNCONDITIONAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e4])
def test_inputs_of_any_size_come_back(name, dtype, scale):
    transform = randomised(UNCONDITIONAL[name], dtype)
    x = (scale * torch.randn(9, D, dtype=dtype)).requires_grad_()
    y, _ = transform.forward_and_log_det(x)
    assert y.dtype == dtype
    back, _ = transform.inverse_and_log_det(y)
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance * max(1.0, scale))
    (gradient,) = torch.autograd.grad(back.sum(), x)
    assert bool(torch.isfinite(gradient).all())


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
def test_state_dict_carries_everything(name):
    """Pyro's random permutations are lost on saving; here a fresh object takes over all state."""
    transform = randomised(UNCONDITIONAL[name], seed=3)
    fresh = randomised(UNCONDITIONAL[name], seed=4)
    fresh.load_state_dict(transform.state_dict())
    x = torch.randn(5, D, dtype=torch.float64)
    assert torch.equal(fresh.forward_and_log_det(x)[0], transform.forward_and_log_det(x)[0])


@pytest.mark.parametrize("family", [LULinear, Householder, ActNorm, AffineTril])
def test_one_variable(family):
    transform = randomised(lambda: family(1))
    x = torch.randn(5, 1, dtype=torch.float64)
    y, log_det = transform.forward_and_log_det(x)
    torch.testing.assert_close(transform.inverse_and_log_det(y)[0], x)
    slope = (y[1] - y[0]) / (x[1] - x[0])
    torch.testing.assert_close(log_det[0], slope.abs().log().squeeze())


def test_a_random_permutation_survives_saving():
    saved = Permutation.random(50, torch.Generator().manual_seed(1))
    fresh = Permutation.random(50, torch.Generator().manual_seed(2))
    x = torch.arange(50.0)
    assert not torch.equal(fresh.forward_and_log_det(x)[0], saved.forward_and_log_det(x)[0])
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh.forward_and_log_det(x)[0], saved.forward_and_log_det(x)[0])
    assert torch.equal(fresh.inverse_and_log_det(saved.forward_and_log_det(x)[0])[0], x)
    assert fresh.sign == saved.sign


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5])
def test_reverse_and_its_sign(dim):
    reverse = Permutation.reverse(dim)
    assert reverse.forward_and_log_det(torch.arange(float(dim)))[0].tolist() == list(range(dim))[::-1]
    assert reverse.sign == round(float(torch.linalg.det(torch.eye(dim).flip(0))))


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], [[0, 1]], [-1, 0]])
def test_what_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match="permutation must hold each of"):
        Permutation(order)


def test_a_permutation_of_another_size_is_refused():
    with pytest.raises(ValueError, match="permutation must have 3 entries, got 2"):
        LULinear(3, permutation=[1, 0])


def test_lu_is_the_product_of_its_factors():
    transform = randomised(lambda: LULinear(D, permutation=[1, 2, 3, 0]))
    values = dict(transform.params.named_parameters())
    index = strictly_lower_index(D)
    identity = torch.eye(D, dtype=torch.float64)
    lower = unpack(values["lower"], index) + identity
    upper = unpack(values["upper"], index.mT) + torch.diag(values["log_diagonal"].exp())
    x = torch.randn(D, dtype=torch.float64)
    expected = identity[[1, 2, 3, 0]] @ lower @ upper @ x + values["bias"]
    torch.testing.assert_close(transform.forward_and_log_det(x)[0], expected)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_reflections_equal_the_product_one_by_one(count, scale):
    torch.manual_seed(count)
    vectors = torch.randn(count, D)
    x = torch.randn(6, D)
    expected = x
    for v in reversed(vectors):
        expected = expected - 2 * v * (expected @ v / (v @ v)).unsqueeze(-1)
    torch.testing.assert_close(reflect(x, vectors * scale), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(reflect(expected, vectors * scale, transpose=True), x, atol=2e-5, rtol=1e-4)


def test_householder_is_a_rotation_that_training_can_turn():
    transform = randomised(lambda: Householder(D))
    q = transform.forward_and_log_det(torch.eye(D, dtype=torch.float64))[0]
    torch.testing.assert_close(q @ q.mT, torch.eye(D, dtype=torch.float64))
    fresh = Householder(D)
    (fresh.forward_and_log_det(torch.randn(5, D))[0] ** 3).sum().backward()
    assert bool((fresh.params.vectors.grad.abs().sum(-1) > 1e-4).all())


def test_affine_over_a_standard_normal_is_the_full_covariance_gaussian():
    transform = randomised(lambda: AffineTril(D))
    bias, matrix = transform.params.bias, transform.matrix()
    y = torch.randn(20, D, dtype=torch.float64)
    x, log_det = transform.inverse_and_log_det(y)
    base = torch.distributions.Normal(torch.zeros(D, dtype=torch.float64), 1.0).log_prob(x).sum(-1)
    expected = torch.distributions.MultivariateNormal(bias, scale_tril=matrix).log_prob(y)
    torch.testing.assert_close(base + log_det, expected)


def test_actnorm_is_the_identity_until_initialised_and_standardises_after():
    torch.manual_seed(0)
    x = 5 + torch.tensor([0.1, 1.0, 10.0, 100.0]) * torch.randn(40, 5, D)
    norm = ActNorm(D)
    assert torch.equal(norm.forward_and_log_det(x)[0], x)
    assert not bool(norm.initialized)
    norm.initialize(x)
    y = norm.forward_and_log_det(x)[0].reshape(-1, D)
    torch.testing.assert_close(y.mean(0), torch.zeros(D), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0), torch.ones(D), atol=1e-4, rtol=0)
    fresh = ActNorm(D)
    fresh.load_state_dict(norm.state_dict())
    assert bool(fresh.initialized)
    assert torch.equal(fresh.forward_and_log_det(x)[0], norm.forward_and_log_det(x)[0])


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.randn(5), "at least two points"),
        (torch.randn(1, 2), "at least two points"),
        (torch.randn(5, 3), r"of shape \(\*, 2\), got shape \(5, 3\)"),
        (torch.tensor([[1.0, 2.0], [2.0, 2.0]]), r"variables \[1\] do not"),
        (torch.tensor([[1.0, 2.0], [torch.nan, 3.0]]), r"variables \[0\] do not"),
    ],
)
def test_actnorm_refuses_data_that_cannot_set_it(x, message):
    norm = ActNorm(2)
    with pytest.raises(ValueError, match=message):
        norm.initialize(x)
    assert not bool(norm.initialized)


def test_number_of_reflections_is_validated():
    with pytest.raises(ValueError, match="num_reflections must be at least 1, got 0"):
        Householder(3, num_reflections=0)


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
@pytest.mark.parametrize("upper", [False, True])
def test_triangular_helpers_agree_with_dense_algebra(batch, upper):
    torch.manual_seed(0)
    matrix = torch.randn(*batch, D, D, dtype=torch.float64) + 3 * torch.eye(D, dtype=torch.float64)
    matrix = matrix.triu() if upper else matrix.tril()
    x = torch.randn(2, 5, D, dtype=torch.float64)
    y = matvec(matrix, x)
    torch.testing.assert_close(y, torch.einsum("...ij,...j->...i", matrix, x))
    torch.testing.assert_close(triangular_solve(matrix, y, upper=upper), x)
