"""The scalar solver: right roots from any start, gradients through the solution, no silent failure."""

from __future__ import annotations

import pytest
import torch

from pyro_flows.solvers import bracketed_newton


def cubic(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x**3 + x, 3 * x**2 + 1


def exponential(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.exp(), x.exp()


def arctangent(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.atan(x), 1 / (1 + x**2)


ROOTS = torch.tensor([-40.0, -1.0, -1e-6, 0.0, 1e-6, 0.3, 15.0, 30.0], dtype=torch.float64)


@pytest.mark.parametrize("function", [cubic, exponential, arctangent], ids=lambda f: f.__name__)
@pytest.mark.parametrize("start", [0.0, -5.0, 100.0])
def test_finds_the_root_from_any_start(function, start):
    roots = bracketed_newton(function, function(ROOTS)[0], torch.tensor(start, dtype=torch.float64))
    torch.testing.assert_close(roots, ROOTS, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("scale", [15.0, 1e4, 1e12])
def test_reaches_roots_far_outside_any_fixed_bracket(scale):
    roots = torch.tensor([-scale, scale], dtype=torch.float64)
    found = bracketed_newton(cubic, cubic(roots)[0], torch.zeros_like(roots))
    torch.testing.assert_close(found, roots, rtol=1e-12, atol=0)


def test_float32_stays_float32():
    roots = torch.tensor([-3.0, 0.5, 100.0])
    found = bracketed_newton(cubic, cubic(roots)[0], torch.zeros(()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, roots, rtol=1e-6, atol=1e-7)


def test_a_function_that_cannot_reach_the_target_raises_in_eager_mode():
    with pytest.raises(ArithmeticError, match="1 of 2 elements have not converged"):
        bracketed_newton(arctangent, torch.tensor([0.5, 2.0]), torch.zeros(()))


def test_an_element_that_has_not_converged_is_nan_outside_eager_mode():
    target = torch.tensor([0.5, 2.0])

    def solve(t):
        return bracketed_newton(arctangent, t, torch.zeros_like(t), max_iterations=30)

    for found in (torch.func.vmap(solve)(target), torch.compile(solve, fullgraph=True, backend="eager")(target)):
        assert torch.isnan(found).tolist() == [False, True]
        torch.testing.assert_close(found[0], torch.tensor(0.5).tan())


def test_an_element_on_its_way_is_nan_not_a_wrong_number():
    target = torch.tensor([2.0, 1e9])
    found = torch.func.vmap(lambda t: bracketed_newton(cubic, t, torch.ones_like(t), max_iterations=4))(target)
    assert torch.isnan(found).tolist() == [False, True]


def test_non_finite_targets_give_nan_and_leave_the_other_elements_alone():
    found = bracketed_newton(cubic, torch.tensor([torch.nan, 2.0, torch.inf]), torch.zeros(()))
    assert torch.isnan(found).tolist() == [True, False, True]
    assert found[1] == 1.0


def test_nan_parameters_give_nan_instead_of_an_exception():
    weight = torch.tensor([torch.nan, 1.0])
    found = bracketed_newton(lambda x: (x * weight, weight), torch.ones(2), torch.zeros(()))
    assert torch.isnan(found).tolist() == [True, False]


def test_iteration_bound_is_validated():
    with pytest.raises(ValueError, match="max_iterations"):
        bracketed_newton(cubic, torch.ones(1), torch.zeros(1), max_iterations=0)


def test_first_and_second_gradients_go_through_the_solution():
    target = torch.tensor([0.3, -2.0, 7.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64, requires_grad=True)

    def solve(t, w):
        return bracketed_newton(lambda x: (w * x + torch.sinh(x), w + torch.cosh(x)), t, torch.zeros_like(t))

    assert torch.autograd.gradcheck(solve, (target, weight), atol=1e-8, rtol=1e-7)
    assert torch.autograd.gradgradcheck(solve, (target, weight), atol=1e-6, rtol=1e-5)


def test_gradient_does_not_depend_on_the_number_of_iterations():
    """The graph holds two evaluations, however far the start."""
    calls = []

    def function(x):
        calls.append(torch.is_grad_enabled())
        return cubic(x)

    target = torch.tensor([1e9], dtype=torch.float64, requires_grad=True)
    bracketed_newton(function, target, torch.zeros(()))
    assert sum(calls) == 2
    assert len(calls) > 6


def test_vmap_and_compile_agree_with_eager():
    target = torch.linspace(-8, 8, 7, dtype=torch.float64)

    def solve(t):
        return bracketed_newton(cubic, t, torch.zeros_like(t), max_iterations=30)

    expected = solve(target)
    torch.testing.assert_close(torch.func.vmap(solve)(target), expected, rtol=1e-12, atol=1e-14)
    compiled = torch.compile(solve, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(target), expected, rtol=1e-12, atol=1e-14)


def test_every_tensor_stays_on_the_device_of_the_input():
    with torch.device("meta"):
        found = bracketed_newton(cubic, torch.tensor([2.0], device="cpu"), torch.tensor(0.0, device="cpu"))
    assert found.tolist() == [1.0]
