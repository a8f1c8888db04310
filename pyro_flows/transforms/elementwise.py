"""Elementwise conditioner: every variable has a univariate map of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .columns import context_rows, from_columns, to_columns, total
from .context_parameters import ContextParameters
from .core import FlowTransform
from .univariate.base import Params, UnivariateMap


class Elementwise(FlowTransform):
    r"""Elementwise transform :math:`y_i = u(x_i; p_i + g_i(c))` of learnable :math:`p` and a network :math:`g`.

    :math:`\log|\det \partial y/\partial x| = \sum_i \log|du/dx_i|`. It starts as the identity, whatever the context.
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
        zeros = torch.zeros(univariate.param_count, input_dim)
        self.conditioner = ContextParameters({"raw": zeros}, context_dim, hidden_dims)

    def _params(self, context: Tensor | None, batch: tuple[int, ...]) -> Params:
        (raw,) = self.conditioner(None if context is None else context_rows(context, batch))
        return self.univariate.split(raw[..., None] if raw.dim() == 2 else raw.movedim(0, -1).contiguous())

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._mapped(self.univariate.forward_and_log_det, x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._mapped(self.univariate.inverse_and_log_det, y, context)

    def _mapped(
        self, direction: Callable[[Tensor, Params], tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        batch = x.shape[:-1]
        y, log_det = direction(to_columns(x), self._params(context, batch))
        return from_columns(y, batch), total(log_det, y, batch)


def check_univariate(univariate: UnivariateMap) -> UnivariateMap:
    """The argument, if it is a univariate map.

    Raises:
        ValueError: If it is not.

    Example:
        >>> from pyro_flows.transforms.univariate import Shift
        >>> check_univariate(Shift())
        Shift()
    """
    if not isinstance(univariate, UnivariateMap):
        raise ValueError(f"univariate must be an instance of UnivariateMap, such as Affine(), got {univariate!r}")
    return univariate
