"""A layer of a conditioner and univariate maps on columns, and how vectors pass its transposed Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ..nn.column_mlp import ColumnMLP
from ..solvers.mode import is_eager
from .column_transform import Needs
from .univariate.base import UnivariateMap
from .univariate.closed_form import ClosedFormMap, MappedPoints


class Layer(NamedTuple):
    r"""A layer :math:`y_M = u(x_M; g(x_S, c))`, which leaves the variables outside of :math:`M` as they are.

    A coupling sees the variables that it leaves; an autoregressive layer sees and maps all, by a network whose masks order them.

    Args:
        network: The network :math:`g`.
        univariate: The map :math:`u`.
        seen: Rows :math:`S` of the columns.
        mapped: Rows :math:`M`: all of them, or those that are not seen.

    Example:
        >>> from .univariate import Affine
        >>> layer = Layer(ColumnMLP(1, 2), Affine(), slice(0, 1), slice(1, 2))
        >>> layer.arithmetic(torch.ones(2, 3), None, layer.network.weights, False)[0].shape
        torch.Size([2, 3])
    """

    network: ColumnMLP
    univariate: UnivariateMap
    seen: slice
    mapped: slice

    @property
    def is_coupling(self) -> bool:
        """Whether some variables are left as they are."""
        return self.seen != self.mapped

    def joined(self, seen: Tensor, mapped: Tensor) -> Tensor:
        """Rows in their order."""
        return torch.cat([seen, mapped] if self.seen.start < self.mapped.start else [mapped, seen])

    def input(self, columns: Tensor, context: Tensor | None) -> Tensor:
        """What the network is given: the rows that are seen and the context, ``(C, N)`` or ``(C, 1)``."""
        seen = columns[self.seen]
        if context is None:
            return seen
        context = context.expand(-1, columns.shape[1])
        return torch.cat([seen, context]) if seen.shape[0] else context

    def raw(self, output: Tensor) -> Tensor:
        """Parameters ``(param_count, M, N)`` in what the network gives."""
        count = self.univariate.param_count
        return output.view(count, output.shape[0] // count, output.shape[1])

    def arithmetic(self, columns: Tensor, context: Tensor | None, weights: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Columns of results and log-determinants ``(N,)``, as operations that autograd and compilers follow."""
        raw = self.raw(self.network(self.input(columns, context), weights))
        value, log_slope = self.univariate.arithmetic(columns[self.mapped], raw, inverse)
        total = log_slope.expand(value.shape).sum(0)
        return self.joined(columns[self.seen], value) if self.is_coupling else value, total


class Pass(NamedTuple):
    """A pass through a layer of closed form, from which gradients return as often as one likes.

    Args:
        layer: The layer.
        context_shape: Rows and columns of the context; None for none.
        done: The columns that were mapped, and what their maps gave.
        kept: What the network kept.

    Example:
        >>> from .univariate import Affine
        >>> layer = Layer(ColumnMLP(1, 2), Affine(), slice(0, 1), slice(1, 2))
        >>> with torch.no_grad():
        ...     there = Pass.through(layer, torch.ones(2, 3), None, False)
        ...     there.pushed(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    layer: Layer
    context_shape: tuple[int, int] | None
    done: MappedPoints
    kept: Sequence[Tensor]

    @classmethod
    def through(cls, layer: Layer, columns: Tensor, context: Tensor | None, inverse: bool) -> Pass:
        """Evaluate a layer, without autograd."""
        output, kept = layer.network.evaluate(layer.input(columns, context), layer.network.weights)
        shape = None if context is None else (context.shape[0], context.shape[1])
        univariate: ClosedFormMap = layer.univariate  # type: ignore[assignment]
        # No view of what may be the output of a node: a node that keeps one keeps itself alive.
        at = columns[layer.mapped] if layer.is_coupling else columns
        return cls(layer, shape, univariate.evaluate(at, layer.raw(output), inverse), kept)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [*self.done.tensors, *self.kept]

    def holding(self, tensors: Sequence[Any]) -> Self:
        """The same with other tensors in the place of these."""
        count = len(self.done.tensors)
        return self._replace(done=self.done.holding(tensors[:count]), kept=tensors[count:])

    def spent(self) -> Self:
        """The same once a gradient has written into what is made anew."""
        return self._replace(done=self.done._replace(scratch=None))

    def joined(self, columns: Tensor) -> Tensor:
        """Columns of results, for those that came."""
        layer = self.layer
        return layer.joined(columns[layer.seen], self.done.value) if layer.is_coupling else self.done.value

    def pullback(
        self, g_value: Tensor, g_log_slope: Tensor, *, to_input: bool = True, to_weights: bool = True, last: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of the mapped columns at fixed parameters, of what the network was given, and of its weights."""
        univariate: ClosedFormMap = self.layer.univariate  # type: ignore[assignment]
        g_at, g_raw = univariate.pullback(self.done, g_value, g_log_slope, last=last)
        output = g_raw.flatten(0, 1)  # type: ignore[union-attr]
        return g_at, *self.layer.network.pullback(self.kept, output, to_input=to_input, to_weights=to_weights)

    def split(self, g_given: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of the rows that are seen and of the context, for that of what the network was given."""
        if self.context_shape is None:
            return g_given, None
        size, count = self.context_shape
        g_seen, g_context = g_given.split([g_given.shape[0] - size, size])
        return g_seen, g_context.sum(1, keepdim=True) if count != g_given.shape[1] else g_context

    def back(
        self, g_columns: Tensor, g_log_det: Tensor, needs: Needs
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor | None, ...]]:
        """Gradients of columns, context and weights."""
        layer = self.layer
        g_at, g_given, g_weights = self.pullback(
            g_columns[layer.mapped], g_log_det, to_input=needs.columns or needs.context, to_weights=needs.parameters, last=True
        )
        if g_given is None:
            return None, None, (g_weights,)
        g_seen, g_context = self.split(g_given)
        if not layer.is_coupling:
            return g_at + g_seen, g_context, (g_weights,)
        return layer.joined(g_columns[layer.seen] + g_seen, g_at), g_context, (g_weights,)

    def pulled(self, g_value: Tensor, g_log_slope: Tensor) -> Tensor:
        """Gradient of the columns of an autoregressive layer, or of those that a coupling sees."""
        g_at, g_given, _ = self.pullback(g_value, g_log_slope, to_weights=False)
        g_seen, _ = self.split(g_given)  # type: ignore[arg-type]
        return g_seen if self.layer.is_coupling else g_at + g_seen

    def solve_transposed(self, gradient: Tensor) -> Tensor:
        r"""The solution :math:`v` of :math:`J^\top v = g` for the Jacobian of an autoregressive layer."""
        nothing = torch.zeros_like(gradient)
        return solve_triangular_transpose(lambda v: self.pulled(v, nothing), self.done.log_slope.exp(), gradient)

    def pushed(self, score: Tensor) -> Tensor:
        r"""The score behind the layer.

        The Jacobian of a coupling is block triangular with a diagonal block: one pullback solves its transpose. That of an
        autoregressive layer takes sweeps, but no inverse.
        """
        layer, ones = self.layer, torch.ones_like(self.done.at)
        if not layer.is_coupling:
            return self.solve_transposed(score - self.pulled(torch.zeros_like(ones), ones))
        univariate: ClosedFormMap = layer.univariate  # type: ignore[assignment]
        of_seen, of_mapped = score[layer.seen], score[layer.mapped]
        if not univariate.affine:
            zeros = torch.zeros_like(ones)
            of_mapped = of_mapped - univariate.pullback(self.done, zeros, ones, to_raw=False, last=False)[0]
        of_mapped = of_mapped * (-self.done.log_slope).exp()
        return layer.joined(of_seen - self.pulled(of_mapped, ones), of_mapped)


def solve_triangular_transpose(transposed: Callable[[Tensor], Tensor], slopes: Tensor, gradient: Tensor) -> Tensor:
    r"""The solution :math:`v` of :math:`J^\top v = g` for a triangular :math:`J` in some order of the variables, by sweeps.

    Each fixes at least one more variable, and two more remove the rounding errors of those that were large on the way. In eager
    mode it stops as soon as nothing changes.

    Args:
        transposed: The product with :math:`J^\top`, of columns ``(D, N)``.
        slopes: The diagonal of :math:`J`, ``(D, N)``.
        gradient: The right-hand side, ``(D, N)``.

    Example:
        >>> J = torch.tensor([[2.0, 0.0], [1.0, 4.0]])
        >>> solve_triangular_transpose(lambda v: J.T @ v, torch.tensor([[2.0], [4.0]]), torch.tensor([[3.0], [4.0]])).flatten()
        tensor([1., 1.])
    """
    may_stop, tolerance = is_eager(), 4 * torch.finfo(gradient.dtype).eps
    v = gradient / slopes
    for _ in range(gradient.shape[0] + 1):
        step = (gradient - transposed(v)).div_(slopes)
        v = v + step
        if may_stop and bool((step.abs_() <= tolerance * v.abs().amax(0)).all()):
            break
    return v


class InversePass(NamedTuple):
    r"""A solution :math:`x` of :math:`f(x) = y` for an autoregressive layer, with gradients by the implicit function theorem.

    For cotangents :math:`g_x` of the solution and :math:`g_L` of :math:`L = -\log|\det J|`, the solution of
    :math:`J^\top v = g_x + g_L \nabla_x L` is the gradient of :math:`y`, and what the layer depends on has that of :math:`g_L L - v
    \cdot f` at a fixed :math:`x`.

    Args:
        there: The pass from x to y.

    Example:
        See :class:`~pyro_flows.transforms.Autoregressive`.
    """

    there: Pass

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return self.there.tensors

    def holding(self, tensors: Sequence[Any]) -> InversePass:
        """The same with other tensors in the place of these."""
        return InversePass(self.there.holding(tensors))

    def spent(self) -> InversePass:
        """The same once a gradient has written into what is made anew."""
        return InversePass(self.there.spent())

    def back(
        self, g_columns: Tensor, g_log_det: Tensor, needs: Needs
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor | None, ...]]:
        """Gradients of images, context and weights."""
        there, g_log_slope = self.there, -g_log_det
        v = there.solve_transposed(g_columns + there.pulled(torch.zeros_like(g_columns), g_log_slope))
        if not (needs.context or needs.parameters):
            return v, None, (None,)
        _, g_given, g_weights = there.pullback(-v, g_log_slope, to_input=needs.context, to_weights=needs.parameters, last=True)
        return v, None if g_given is None else there.split(g_given)[1], (g_weights,)

    def pushed(self, score: Tensor) -> Tensor:
        """The score at the solution: one pullback, for here it is the forward direction that is inverted."""
        return self.there.pulled(score, torch.ones_like(score))
