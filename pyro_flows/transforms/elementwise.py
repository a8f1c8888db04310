"""Elementwise conditioner: every variable has a univariate map of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from .column_transform import ColumnTransform, Needs, Record
from .context_parameters import ContextParameters
from .supports import is_real
from .univariate.base import UnivariateMap
from .univariate.closed_form import ClosedFormMap, MappedPoints


class Elementwise(ColumnTransform):
    r"""Elementwise transform :math:`y_i = u(x_i; p_i + g_i(c))` of learnable :math:`p` and a network :math:`g`.

    :math:`\log|\det \partial y/\partial x| = \sum_i \log|du/dx_i|`. It starts as the identity, or close to it where the map has to
    (:meth:`MixtureCDF.start`), whatever the context.
    Both directions cost what the univariate map's cost.

    Args:
        input_dim: Number of variables D.
        univariate: The map :math:`u`.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the network of the context.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> Elementwise(3, Affine())(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(
        self, input_dim: int, univariate: UnivariateMap, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.univariate = check_univariate(univariate)
        self.inverse_kind = univariate.inverse_kind
        if not is_real(univariate.codomain):
            self.codomain = constraints.independent(univariate.codomain, 1)
        self.conditioner: ContextParameters | None = None
        if univariate.param_count:
            raw = univariate.start()[:, None].expand(univariate.param_count, input_dim)
            self.conditioner = ContextParameters({"raw": raw}, context_dim, hidden_dims)
        elif context_dim:
            raise ValueError(f"context_dim must be 0 for {type(univariate).__name__}, which has no parameters, got {context_dim}")

    @property
    def learned(self) -> tuple[Tensor, ...]:
        return self.conditioner() if self.context_dim == 0 and self.conditioner is not None else ()

    def can_record(self, inverse: bool) -> bool:
        return self.context_dim == 0 and self.univariate.closed_form and self.univariate.broadcasts

    def arithmetic(
        self, columns: Tensor, context: Tensor | None, parameters: Sequence[Tensor], inverse: bool
    ) -> tuple[Tensor, Tensor]:
        if context is None:
            raw = parameters[0][..., None] if parameters else columns[:0]
            value, log_slope = self.univariate.arithmetic(columns, raw, inverse)
        else:
            (raw,) = self.conditioner(context.t())  # type: ignore[misc]
            direction = self.univariate.inverse_and_log_det if inverse else self.univariate.forward_and_log_det
            value, log_slope = direction(columns, self.univariate.split(raw.movedim(0, -1).contiguous()))
        return value, log_slope.expand(value.shape).sum(0)

    def through(self, columns: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor, Record]:
        univariate: ClosedFormMap = self.univariate  # type: ignore[assignment]
        raw = self.learned[0][..., None]
        done = univariate.evaluate(columns, raw, inverse)
        log_det = done.log_slope.sum(0).expand(columns.shape[1])
        return done.value, log_det.clone(), ElementwisePass(univariate, done)


class ElementwisePass(NamedTuple):
    """A pass through univariate maps with a parameter for each variable.

    Args:
        univariate: The map.
        done: Columns with parameters ``(param_count, D, 1)``, and what the maps gave.

    Example:
        See :class:`Elementwise`.
    """

    univariate: ClosedFormMap
    done: MappedPoints

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return self.done.tensors

    def holding(self, tensors: Sequence[Any]) -> ElementwisePass:
        """The same with other tensors in the place of these."""
        return self._replace(done=self.done.holding(tensors))

    def spent(self) -> ElementwisePass:
        """This."""
        return self

    def back(self, g_columns: Tensor, g_log_det: Tensor, needs: Needs) -> tuple[Tensor, None, tuple[Tensor | None]]:
        """Gradients of columns and parameters."""
        g_log_slope = g_log_det.sum() if self.done.log_slope.shape[1] == 1 else g_log_det
        found, g_raw = self.univariate.pullback(self.done, g_columns, g_log_slope)
        return found, None, (None if g_raw is None else g_raw[..., 0],)

    def pushed(self, score: Tensor) -> Tensor:
        """The score behind the maps."""
        if not self.univariate.affine:
            zeros, ones = torch.zeros_like(score), torch.ones_like(score)
            score = score - self.univariate.pullback(self.done, zeros, ones, to_raw=False)[0]
        return score * (-self.done.log_slope).exp()


def check_univariate(univariate: UnivariateMap, with_parameters: bool = False) -> UnivariateMap:
    """The argument, if it is a univariate map, with parameters where these are wanted.

    Raises:
        ValueError: If it is not.

    Example:
        >>> from pyro_flows.transforms.univariate import Shift
        >>> check_univariate(Shift())
        Shift()
    """
    if not isinstance(univariate, UnivariateMap):
        raise ValueError(f"univariate must be an instance of UnivariateMap, such as Affine(), got {univariate!r}")
    if with_parameters and not univariate.param_count:
        raise ValueError(f"univariate must have parameters to be set by a network, and {univariate!r} has none; use Elementwise")
    return univariate
