"""Neural autoregressive flow, deep sigmoidal."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.core import FlowTransform
from ..transforms.univariate import DeepSigmoid
from .autoregressive_stack import autoregressive_stack
from .registry import register


@register("naf", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/1804.00779")
def naf(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    num_units: int = 8,
) -> FlowTransform:
    """Neural autoregressive flow with deep sigmoidal maps: scores data in one pass; ``.inv`` draws in one pass.

    References:
        Huang, Krueger, Lacoste, Courville (2018), *Neural autoregressive flows*, https://arxiv.org/abs/1804.00779

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_dims: Hidden layers of each conditioner.
        num_units: Number of sigmoids of each map.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> naf(3).cheap_direction
        'inverse'
    """
    return autoregressive_stack(input_dim, context_dim, lambda: DeepSigmoid(num_units), num_layers, hidden_dims)
