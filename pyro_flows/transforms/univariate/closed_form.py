"""Univariate maps whose gradient is in closed form, as one node of an autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ..differentiable import differentiable
from .base import UnivariateMap


class MappedPoints(NamedTuple):
    """A map at some points, and what its gradient needs of the way there.

    Args:
        at: The points.
        raw: The raw parameters.
        inverse: Whether the map was inverted.
        value: Values, of the shape of the points.
        log_slope: Their log-slopes, which may broadcast to it.
        saved: Tensors to be kept.
        scratch: One more that the gradient may write into; made anew where it is None.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> Affine().evaluate(torch.ones(1), torch.zeros(2, 1), False).value
        tensor([1.])
    """

    at: Tensor
    raw: Tensor
    inverse: bool
    value: Tensor
    log_slope: Tensor
    saved: tuple[Tensor, ...]
    scratch: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds but for the scratch."""
        return [self.at, self.raw, self.value, self.log_slope, *self.saved]

    def holding(self, tensors: Sequence[Any]) -> Self:
        """The same with other tensors in the place of these."""
        at, raw, value, log_slope, *saved = tensors
        return self._replace(at=at, raw=raw, value=value, log_slope=log_slope, saved=tuple(saved))


class ClosedFormMap(UnivariateMap):
    """A univariate map that is evaluated, in either direction, without autograd, and says how gradients return.

    A subclass writes :meth:`evaluate`, :meth:`pullback` and :meth:`arithmetic`, the same as operations that autograd and compilers
    follow. Its raw parameters ``(param_count, *)`` are one tensor. Couplings and autoregressive layers are then single nodes of an
    autograd graph, which keep little.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> isinstance(Affine(), ClosedFormMap)
        True
    """

    closed_form = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.keys()
        if {"forward_and_log_det", "inverse_and_log_det"} & own and not {"evaluate", "pullback", "arithmetic"} <= own:
            # Another map, whose closed form is not that of the class it comes from.
            cls.closed_form, cls.arithmetic = False, UnivariateMap.arithmetic  # type: ignore[method-assign]

    def evaluate(self, at: Tensor, raw: Tensor, inverse: bool) -> MappedPoints:
        """Value and log-slope of the map, or of its inverse, at points ``(*)``."""
        raise TypeError(f"{type(self).__name__} does not define evaluate(at, raw, inverse)")

    def pullback(
        self, done: MappedPoints, g_value: Tensor, g_log_slope: Tensor, *, to_raw: bool = True, last: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of points and raw parameters.

        Args:
            done: What :meth:`evaluate` gave.
            g_value: Gradient of the values, ``(*)``.
            g_log_slope: Gradient of the log-slopes, broadcastable to ``(*)``.
            to_raw: Whether the gradient of the parameters is wanted.
            last: Whether ``done.scratch`` may be written into.
        """
        raise TypeError(f"{type(self).__name__} does not define pullback(…)")

    def arithmetic(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Value and log-slope as operations that autograd and compilers follow."""
        raise TypeError(f"{type(self).__name__} does not define arithmetic(at, raw, inverse)")


class ClosedFormFunction(torch.autograd.Function):
    """Value and log-slope of a :class:`ClosedFormMap`; derivatives of higher order are those of autograd.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> ClosedFormFunction.apply(torch.tensor([3.0]), torch.tensor([[2.0], [0.0]]), True, Affine())[0]
        tensor([1.])
    """

    @staticmethod
    def forward(ctx: Any, at: Tensor, raw: Tensor, inverse: bool, univariate: ClosedFormMap) -> tuple[Tensor, Tensor]:
        done = univariate.evaluate(at, raw, inverse)
        ctx.save_for_backward(*done.tensors)
        ctx.done, ctx.univariate = done.holding([None] * len(done.tensors)), univariate
        return done.value, done.log_slope

    @staticmethod
    def backward(ctx: Any, g_value: Tensor, g_log_slope: Tensor) -> tuple[Tensor | None, ...]:
        done = ctx.done.holding(ctx.saved_tensors)
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # somebody asks for derivatives of these
            arithmetic = partial(ctx.univariate.arithmetic, inverse=done.inverse)
            return *differentiable(arithmetic, (done.at, done.raw), needed, (g_value, g_log_slope)), None, None
        ctx.done = ctx.done._replace(scratch=None)
        return *ctx.univariate.pullback(done, g_value, g_log_slope, to_raw=needed[1]), None, None
