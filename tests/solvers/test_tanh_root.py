"""The root behind the inverses of planar and Sylvester flows."""

from __future__ import annotations

import importlib

import pytest
import torch

from pyro_flows.solvers import sech_squared, tanh_root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_root_solves_hard_cases(dtype):
    slope = torch.logspace(-4, 6, 61, dtype=dtype)  # at the centre, 1 + c
    size = torch.logspace(-6, 7, 79, dtype=dtype)
    target = torch.cat([-size, torch.zeros(1, dtype=dtype), size])
    coefficient, target = torch.broadcast_tensors((slope - 1)[:, None], target)
    v = tanh_root(coefficient, target)
    residual = v.double() + coefficient.double() * torch.tanh(v.double()) - target.double()
    terms = v.abs() + coefficient.abs() * torch.tanh(v.abs()) + target.abs()
    assert bool((residual.abs() <= 4 * torch.finfo(dtype).eps * terms).all())


def test_tanh_root_gradients():
    target = torch.tensor([0.3, -2.0, 7.0, 1e-6], dtype=torch.float64, requires_grad=True)
    coefficient = torch.tensor([-0.9, 4.0, 50.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh_root, (coefficient, target), atol=1e-7, rtol=1e-6)


def test_sech_squared_has_no_cancellation():
    v = torch.tensor([-20.0, 0.0, 1.0, 20.0])
    torch.testing.assert_close(sech_squared(v), (1 / v.double().cosh() ** 2).float(), rtol=1e-5, atol=0)


def test_where_the_equation_is_not_monotone_the_root_is_nan():
    found = tanh_root(torch.tensor([-30.0, -0.5, -1.0001]), torch.ones(3))
    assert torch.isnan(found).tolist() == [True, False, True]


def test_what_has_not_converged_raises_in_eager_mode_and_is_nan_elsewhere(monkeypatch):
    module = importlib.import_module("pyro_flows.solvers.tanh_root")
    monkeypatch.setattr(module, "_MAX_EAGER_ITERATIONS", 2)
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 2)
    coefficient, target = torch.tensor([0.0, 1e6]), torch.tensor([1.0, 1e6])
    with pytest.raises(ArithmeticError, match="1 of 2 elements have not converged"):
        tanh_root(coefficient, target)
    assert torch.isnan(torch.func.vmap(tanh_root)(coefficient, target)).tolist() == [False, True]


def test_non_finite_arguments_give_nan():
    coefficient = torch.tensor([1.0, torch.nan, 1.0, 1.0])
    found = tanh_root(coefficient, torch.tensor([torch.nan, 1.0, torch.inf, 0.0]))
    assert torch.isnan(found).tolist() == [True, True, True, False]


def test_gradients_are_finite_where_everything_saturates():
    coefficient = torch.tensor([-0.99, 0.0, 1e4], requires_grad=True)
    target = torch.tensor([1e-6, 30.0, 1e4], requires_grad=True).reshape(3, 1)
    gradients = torch.autograd.grad(tanh_root(coefficient, target).sum(), [coefficient, target])
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_vmap_and_compile_agree_with_eager():
    target = torch.linspace(-8, 8, 7, dtype=torch.float64)
    coefficient = torch.linspace(-0.95, 30, 7, dtype=torch.float64)
    expected = tanh_root(coefficient, target)
    torch.testing.assert_close(torch.func.vmap(tanh_root)(coefficient, target), expected, rtol=1e-12, atol=1e-14)
    compiled = torch.compile(tanh_root, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(coefficient, target), expected, rtol=1e-12, atol=1e-14)
