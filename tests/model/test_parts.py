"""The parts of the evaluation: rewrites, einsum in log space, agreement of two evaluations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_flows.model.agreement import Evaluation, cut_directions, difference
from pyro_flows.model.log_einsum import einsum
from pyro_flows.model.rewrites import rewritten


@pytest.mark.parametrize("equation", ["ij,j->i", "ij,jk,k->i", "a,b->ab", "abc->", "ab,ab->a", "ij,ji->", "i->i"])
def test_log_einsum_is_the_logarithm_of_einsum(equation: str) -> None:
    sizes = dict(zip("abcijk", (2, 3, 4, 3, 3, 5), strict=True))
    operands = [torch.randn([sizes[symbol] for symbol in dims], dtype=torch.float64) for dims in equation.split("->")[0].split(",")]
    expected = torch.einsum(equation, *[operand.exp() for operand in operands]).log()
    torch.testing.assert_close(einsum(equation, *operands), expected)
    shifted = [operands[0] + 800.0, *operands[1:]]
    torch.testing.assert_close(einsum(equation, *shifted), expected + 800.0)


def test_log_einsum_of_nothing_possible_has_gradient_zero() -> None:
    x = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf]], requires_grad=True)
    found = einsum("ij->i", x)
    assert found.tolist() == [-torch.inf, 0.0]
    (gradient,) = torch.autograd.grad(found[1] + torch.where(found[0] > 0, found[0], 0.0), x)
    assert gradient.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_rewrites_let_a_function_for_one_be_vectorised() -> None:
    def careless(z: torch.Tensor) -> torch.Tensor:
        buffer = torch.zeros(2)
        buffer[0] = z[0]
        buffer[1] = 2.0
        pair = torch.tensor([z[0] * z[1], 3.0])
        pair = pair.clone()
        pair[z > 0] = -1.0
        return torch.cat([buffer, pair])

    z = torch.tensor([[1.0, -2.0], [-3.0, 4.0]])
    with pytest.raises(RuntimeError):
        torch.func.vmap(careless)(z)
    expected = torch.stack([careless(row) for row in z])
    torch.testing.assert_close(torch.func.vmap(rewritten(careless))(z), expected)
    # Outside of it nothing has changed.
    assert not torch.tensor([1.0, 2.0]).requires_grad
    torch.testing.assert_close(torch.stack([careless(row) for row in z]), expected)


def test_rewritten_tensors_keep_type_and_shape() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    found = rewritten(lambda _: torch.tensor([[one, 2], [3, one]]))(one)
    assert found.dtype == torch.float64
    assert found.tolist() == [[1.0, 2.0], [3.0, 1.0]]
    assert rewritten(lambda _: torch.tensor([one, 2], dtype=torch.float32))(one).dtype == torch.float32
    assert rewritten(lambda _: torch.zeros(2, dtype=torch.int64))(one).dtype == torch.int64
    assert rewritten(lambda _: torch.tensor([1, 2]))(one).dtype == torch.int64


def test_a_matrix_without_cholesky_factor_has_nan_and_no_error() -> None:
    matrices = torch.stack([torch.eye(2), -torch.eye(2)])
    found = rewritten(torch.linalg.cholesky)(matrices)
    assert torch.equal(found[0], torch.eye(2))
    assert torch.isnan(found[1]).all()


def evaluation(value: float, gradient: float, site: float) -> Evaluation:
    return Evaluation(torch.tensor([value]), torch.tensor([[gradient]]), {"x": torch.tensor([site])})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (evaluation(1e6, 1.0, 2.0), None),
        (evaluation(1e6, 1.0, 2.5), "at site 'x' by up to 0.5 nats"),
        (evaluation(1e6, 2.0, 2.0), "another gradient than single draws, by up to 1"),
        (evaluation(2e6, 1.0, 2.0), "differs from single draws by up to 1e"),
        (Evaluation(torch.tensor([1e6]), torch.tensor([[1.0]]), {}), "reaches the sites"),
        (evaluation(torch.nan, 1.0, 2.0), "differs from single draws"),
    ],
)
def test_differences_are_told_in_words(found: Evaluation, message: str | None) -> None:
    told = difference(found, evaluation(1e6, 1.0, 2.0))
    assert told == message if message is None else message in str(told)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64]), st.floats(-3.0, 3.0))
def test_a_right_gradient_is_never_called_cut(seed: int, dtype: torch.dtype, log_scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = (10**log_scale * torch.randn(4, 3, generator=generator)).to(dtype)
    points = torch.randn(3, 3, generator=generator).to(dtype).requires_grad_()

    def value(x: torch.Tensor) -> torch.Tensor:
        return -(weights @ x - 1.0).abs().sum() - torch.logaddexp(x, 2 * x).sum() + 1e3

    (gradients,) = torch.autograd.grad(sum(value(point) for point in points), points)
    assert cut_directions(value, points.detach(), gradients, {"all": slice(0, 3)}) == []


def test_a_cut_gradient_is_found_in_its_block() -> None:
    points = torch.randn(3, 4, requires_grad=True)

    def value(x: torch.Tensor) -> torch.Tensor:
        return -((x[:2].detach() - 1.0) ** 2).sum() - (x[2:] ** 2).sum()

    (gradients,) = torch.autograd.grad(sum(value(point) for point in points), points)
    assert cut_directions(value, points.detach(), gradients, {"a": slice(0, 2), "b": slice(2, 4)}) == ["a"]
