"""The contract of a univariate map."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_flows.nn.recorded import Recorded

Params = tuple[Tensor, ...]


class UnivariateMap(Recorded, nn.Module):
    r"""An increasing map :math:`y = u(x; p)` of one variable with raw parameters :math:`p`, identity at :math:`p = 0`.

    A subclass sets ``param_shapes`` and writes :meth:`forward_and_log_det` and :meth:`inverse_and_log_det`. All is
    elementwise: for ``x`` of shape ``(*)``, the i-th parameter has shape ``(*param_shapes[i], *)``, its own dimensions first, so
    that arithmetic runs along contiguous memory. Where one set of parameters serves many points, its ``*`` broadcasts against
    that of ``x``; so may then the log-determinant. A map whose log-determinant does not depend on ``x`` may set ``affine``, which
    spares others its derivative.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> Affine().param_count
        2
    """

    param_shapes: tuple[tuple[int, ...], ...] = ()
    affine: bool = False
    #: Where values lie.
    codomain: constraints.Constraint = constraints.real
    #: How the inverse is computed, in closed form or by a solver.
    inverse_kind: Literal["closed", "solved"] = "closed"
    #: Whether gradients have a closed form, as those of a :class:`~pyro_flows.transforms.univariate.closed_form.ClosedFormMap`.
    closed_form: bool = False
    #: Whether that may have parameters that broadcast against the points, with gradients that are summed.
    broadcasts: bool = False

    @property
    def param_count(self) -> int:
        """Number of raw parameters per variable."""
        return sum(math.prod(shape) for shape in self.param_shapes)

    def start(self) -> Tensor:
        """Raw parameters ``(param_count,)`` from which a variable of its own starts, those of the identity or close to it."""
        return torch.zeros(self.param_count)

    def split(self, raw: Tensor) -> Params:
        """Cut raw parameters ``(param_count, *)`` into those of :attr:`param_shapes`."""
        if all(shape == () for shape in self.param_shapes):
            return tuple(raw.unbind(0))
        if len(self.param_shapes) == 1:
            return (raw.unflatten(0, self.param_shapes[0]),)
        parts = raw.split([math.prod(shape) for shape in self.param_shapes])
        return tuple(part.reshape(shape + raw.shape[1:]) for part, shape in zip(parts, self.param_shapes, strict=True))

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        r"""Map ``x`` ``(*)``; returns :math:`y` ``(*)`` and :math:`\log|dy/dx|` ``(*)``."""
        raise TypeError(f"{type(self).__name__} does not define forward_and_log_det(x, params)")

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        r"""Invert ``y`` ``(*)``; returns :math:`x` ``(*)`` and :math:`\log|dx/dy|` ``(*)``."""
        raise TypeError(f"{type(self).__name__} does not define inverse_and_log_det(y, params)")

    def arithmetic(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Either direction at points ``(*)`` for raw parameters ``(param_count, *)``, as autograd and compilers follow it."""
        return (self.inverse_and_log_det if inverse else self.forward_and_log_det)(at, self.split(raw))
