"""Coupling conditioner: some variables pass, and decide how the others are mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nn.column_mlp import ColumnMLP
from .column_transform import ColumnTransform, Needs, Record
from .elementwise import check_univariate
from .layer import Layer, Pass
from .univariate.base import UnivariateMap


class Coupling(ColumnTransform):
    r"""Coupling layer :math:`y_A = x_A,\; y_B = u(x_B; g(x_A, c))` with a perceptron :math:`g` that starts at zero.

    :math:`\log|\det \partial y/\partial x| = \sum_{i \in B} \log|du/dx_i|`. NICE is ``Coupling(Shift)``, RealNVP
    ``Coupling(Affine)``, a neural spline flow ``Coupling(RationalQuadraticSpline)``. Both directions cost one pass.
    Where nothing passes, as with one variable, the map depends on the context alone, or is constant.

    References:
        Dinh, Krueger, Bengio (2014), *NICE: non-linear independent components estimation*, https://arxiv.org/abs/1410.8516

    Args:
        input_dim: Number of variables D.
        univariate: The map :math:`u`.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the perceptron.
        mask: True for the variables A that pass, ``(D,)``; by default the first half.

    Raises:
        ValueError: If an argument is not as described, or all variables pass.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> layer = Coupling(4, Affine())
        >>> layer(torch.ones(4)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    joined: Tensor
    restore: Tensor

    def __init__(
        self,
        input_dim: int,
        univariate: UnivariateMap,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        mask: Tensor | Sequence[bool] | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.univariate = check_univariate(univariate, with_parameters=True)
        self.inverse_kind = univariate.inverse_kind
        if mask is None:
            mask = [i < input_dim // 2 for i in range(input_dim)]
        keep = mask.tolist() if isinstance(mask, Tensor) else list(mask)
        if len(keep) != input_dim or not all(isinstance(entry, bool) for entry in keep):
            raise ValueError(f"mask must hold {input_dim} booleans, True for a variable that passes; got {keep}")
        if all(keep):
            raise ValueError("mask lets every variable pass, so the layer would do nothing; set one entry to False")
        passed = [i for i in range(input_dim) if keep[i]]
        mapped = [i for i in range(input_dim) if not keep[i]]
        self._passed_last = mapped + passed == list(range(input_dim))
        joined = mapped + passed if self._passed_last else passed + mapped
        self._in_place = joined == list(range(input_dim))
        self.num_passed = len(passed)
        self.register_buffer("joined", torch.tensor(joined))
        self.register_buffer("restore", torch.tensor([joined.index(i) for i in range(input_dim)]))
        in_dim, out_dim = len(passed) + context_dim, len(mapped) * univariate.param_count
        self.network = ColumnMLP(in_dim, out_dim, hidden_dims) if in_dim else None
        self.constant = None if in_dim else torch.nn.Parameter(torch.zeros(out_dim))

    def extra_repr(self) -> str:
        passed = self.joined[-self.num_passed :] if self._passed_last else self.joined[: self.num_passed]
        return f"passed={passed.tolist()}" if self.input_dim <= 16 else f"{self.num_passed} of {self.input_dim} pass"

    @property
    def _layer(self) -> Layer:
        edge = self.input_dim - self.num_passed if self._passed_last else self.num_passed
        first, second = slice(0, edge), slice(edge, self.input_dim)
        seen, mapped = (second, first) if self._passed_last else (first, second)
        return Layer(self.network, self.univariate, seen, mapped)  # type: ignore[arg-type]

    @property
    def learned(self) -> tuple[Tensor, ...]:
        return (self.constant if self.network is None else self.network.weights,)  # type: ignore[return-value]

    def can_record(self, inverse: bool) -> bool:
        return self.network is not None and self.univariate.closed_form

    def arithmetic(
        self, columns: Tensor, context: Tensor | None, parameters: Sequence[Tensor], inverse: bool
    ) -> tuple[Tensor, Tensor]:
        if self.network is None:
            raw = parameters[0].unflatten(0, (self.univariate.param_count, -1))[..., None]
            value, log_slope = self.univariate.arithmetic(columns, raw, inverse)
            return value, log_slope.expand(value.shape).sum(0)
        if not self._in_place:
            columns = columns.index_select(0, self.joined)
        value, log_det = self._layer.arithmetic(columns, context, parameters[0], inverse)
        return value if self._in_place else value.index_select(0, self.restore), log_det

    def through(self, columns: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor, Record]:
        if self._in_place:
            there = Pass.through(self._layer, columns, context, inverse)
            return there.joined(columns), there.done.log_slope.sum(0), there
        columns = columns.index_select(0, self.joined)
        there = Pass.through(self._layer, columns, context, inverse)
        record = Reordered(there, self.joined, self.restore)
        return there.joined(columns).index_select(0, self.restore), there.done.log_slope.sum(0), record


class Reordered(NamedTuple):
    """A pass between two reorderings of the variables.

    Args:
        there: The pass.
        order: The order before it.
        back_again: The inverse of that, the order behind it.

    Example:
        See :class:`Coupling`.
    """

    there: Pass
    order: Tensor
    back_again: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return self.there.tensors

    def holding(self, tensors: Sequence[Any]) -> Reordered:
        """The same with other tensors in the place of these."""
        return self._replace(there=self.there.holding(tensors))

    def spent(self) -> Reordered:
        """The same once a gradient has written into what is made anew."""
        return self._replace(there=self.there.spent())

    def back(
        self, g_columns: Tensor, g_log_det: Tensor, needs: Needs
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor | None, ...]]:
        """Gradients of columns, context and weights."""
        found, *others = self.there.back(g_columns.index_select(0, self.order), g_log_det, needs)
        return None if found is None else found.index_select(0, self.back_again), *others  # type: ignore[return-value]

    def pushed(self, score: Tensor) -> Tensor:
        """The score behind the pass."""
        return self.there.pushed(score.index_select(0, self.order)).index_select(0, self.back_again)
