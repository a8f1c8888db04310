"""Autoregressive conditioner: every variable is mapped as those before it decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..nn.masked import MaskedMLP
from ..solvers.mode import is_eager
from .column_transform import ColumnTransform, Record
from .columns import context_columns, from_columns, to_columns
from .elementwise import check_univariate
from .layer import InversePass, Layer, Pass, solve_triangular_transpose
from .univariate.base import UnivariateMap

_MapOfX = Callable[[Tensor], tuple[Tensor, Tensor]]


class Autoregressive(ColumnTransform):
    r"""Autoregressive layer :math:`y_i = u(x_i; g_i(x_{<i}, c))` of a masked perceptron :math:`g` that starts at zero.

    :math:`\log|\det \partial y/\partial x| = \sum_i \log|du/dx_i|`. The forward direction is one pass. The inverse is
    found in parallel sweeps :math:`x \leftarrow u^{-1}(y; g(x, c))`: each fixes at least one more variable, so D
    suffice, and fewer usually do. Its gradient is implicit, :math:`dx = J^{-1}(dy - \partial_\phi y\,d\phi)` for
    whatever :math:`\phi` the layer depends on, with :math:`J^{-1}` applied in such sweeps too; it is of first order.
    Under ``torch.compile`` and ``torch.func`` all D sweeps are made and differentiated as they are.

    References:
        Papamakarios, Pavlakou, Murray (2017), *Masked autoregressive flow for density estimation*,
        https://arxiv.org/abs/1705.07057;
        Kingma et al. (2016), *Improving variational inference with inverse autoregressive flow*,
        https://arxiv.org/abs/1606.04934;
        Song, Meng, Liao, Ermon (2021), *Accelerating feedforward computation via parallel nonlinear equation solving*,
        https://arxiv.org/abs/2002.03629

    Args:
        input_dim: Number of variables D.
        univariate: The map :math:`u`.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the perceptron; those narrower than ``D`` are widened to it.
        order: Place of each variable in the order, a permutation of 0 … D-1, ``(D,)``; by default their own.
        adjacency: In place of an order, a graph without cycles: booleans ``(D, D)``, true in row i and column j where
            :math:`x_j` has a say in how :math:`x_i` is mapped. So the graph of a model can shape its guide.

    Raises:
        ValueError: If an argument is not as described.
        ArithmeticError: In the inverse, in eager mode, if it overflows for a finite input. Elsewhere the row is NaN.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> layer = Autoregressive(3, Affine())
        >>> layer.inv(layer(torch.ones(3))).tolist()
        [1.0, 1.0, 1.0]
    """

    cheap_direction = "forward"
    inverse_kind = "solved"

    def __init__(
        self,
        input_dim: int,
        univariate: UnivariateMap,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        order: Tensor | Sequence[int] | None = None,
        adjacency: Tensor | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.univariate = check_univariate(univariate, with_parameters=True)
        self.conditioner = MaskedMLP(input_dim, univariate.param_count, context_dim, hidden_dims, order, adjacency)

    @property
    def _layer(self) -> Layer:
        everything = slice(0, self.input_dim)
        return Layer(self.conditioner, self.univariate, everything, everything)

    @property
    def learned(self) -> tuple[Tensor, ...]:
        return (self.conditioner.weights,)

    def can_record(self, inverse: bool) -> bool:
        return self.univariate.closed_form and (is_eager() or not inverse)

    def arithmetic(
        self, columns: Tensor, context: Tensor | None, parameters: Sequence[Tensor], inverse: bool
    ) -> tuple[Tensor, Tensor]:
        if not inverse:
            return self._layer.arithmetic(columns, context, parameters[0], False)
        x, log_slopes = self._sweep(columns, context, parameters[0], stop_early=False)
        lost = _lost(x)
        return x.masked_fill(lost, torch.nan), log_slopes.expand(x.shape).sum(0).masked_fill(lost, torch.nan)

    def through(self, columns: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor, Record]:
        if not inverse:
            there = Pass.through(self._layer, columns, context, False)
            return there.done.value, there.done.log_slope.sum(0), there
        x, lost = self._solve(columns, context)
        there = Pass.through(self._layer, x, context, False)
        return x, there.done.log_slope.sum(0).neg_().masked_fill_(lost, torch.nan), InversePass(there)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not is_eager() or self.univariate.closed_form:
            return self._run(y, context, True)
        batch, columns = y.shape[:-1], to_columns(y)
        given, weights = context_columns(context, batch), self.conditioner.weights
        with torch.no_grad():
            x, lost = self._solve(columns, given)

        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            return self.univariate.arithmetic(x, self._layer.raw(self.conditioner(self._layer.input(x, given), weights)), False)

        if torch.is_grad_enabled():
            x = _attach_gradient(f, x, columns)
        log_slopes = -f(x)[1]
        log_det = log_slopes.expand(x.shape).sum(0).masked_fill(lost, torch.nan)
        return from_columns(x, batch), log_det.reshape(batch)

    def _solve(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Columns ``x`` without gradient, and which points are lost to NaN, which then are NaN."""
        x, _ = self._sweep(y, context, self.conditioner.weights, stop_early=True)
        lost = _lost(x)
        if bool(lost.any()):
            self._explain(lost, y, context)
            x = x.masked_fill(lost, torch.nan)
        return x, lost

    def _sweep(self, y: Tensor, context: Tensor | None, weights: Tensor, *, stop_early: bool) -> tuple[Tensor, Tensor]:
        network, limit, tolerance = self.conditioner.given(context, weights), _limit(y), 4 * torch.finfo(y.dtype).eps
        x, log_slopes = torch.zeros_like(y), torch.zeros_like(y)
        for _ in range(self.input_dim):
            # A variable whose predecessors are not right yet can be anything. It must not overflow inside the network:
            # infinity times a masked weight is NaN, also for the variables that are right.
            seen = x.nan_to_num(0.0).clamp(-limit, limit)
            previous = x
            raw = self._layer.raw(network(seen))
            if stop_early and self.univariate.closed_form:
                done = self.univariate.evaluate(y, raw, True)  # type: ignore[operator]
                x, log_slopes = done.value, done.log_slope
            else:
                x, log_slopes = self.univariate.arithmetic(y, raw, True)
            if stop_early and bool(((x - previous).abs() <= tolerance * (1 + x.abs())).all()):
                break
        return x, log_slopes

    def _explain(self, lost: Tensor, y: Tensor, context: Tensor | None) -> None:
        """Raise if points were lost to overflow; those of NaN are right where NaN came in."""
        excused = ~torch.isfinite(y).all(0)
        if context is not None:
            excused = excused | ~torch.isfinite(context).all(0)
        if bool((lost & ~excused).any()) and all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            raise ArithmeticError(
                f"{type(self).__name__}: the inverse overflows in {int((lost & ~excused).sum())} rows of finite input, "
                f"beyond {_limit(y):.0e}; use float64, fewer layers, or a univariate map that scales less"
            )


def _lost(x: Tensor) -> Tensor:
    """Points ``(N,)`` that are not numbers, or so large that the network overflows."""
    return ~(x.abs() < _limit(x)).all(0)


def _limit(x: Tensor) -> float:
    """Magnitude up to which a network of ordinary weights does not overflow."""
    return torch.finfo(x.dtype).max ** 0.75


def _attach_gradient(f: _MapOfX, x: Tensor, y: Tensor) -> Tensor:
    """Give ``x``, which solves ``f(x) = y``, the gradient that the implicit function theorem says it has."""
    at = x.detach().requires_grad_()
    image, log_slopes = f(at)
    slopes = log_slopes.detach().expand(x.shape).exp()

    def solve(gradient: Tensor) -> Tensor:
        return solve_triangular_transpose(lambda v: torch.autograd.grad(image, at, v, retain_graph=True)[0], slopes, gradient)

    return x.detach() + _ImplicitStep.apply(image - y, solve)


class _ImplicitStep(torch.autograd.Function):
    r"""Zero in value, :math:`-J^{-1}` of the residual in gradient."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.solve(gradient), None
