"""Sum-of-squares polynomial flow."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.core import FlowTransform
from ..transforms.univariate import SumOfSquares
from .autoregressive_stack import autoregressive_stack
from .registry import register


@register("sospf", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/1905.02325", smoothness="once")
def sospf(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    degree: int = 4,
    num_polynomials: int = 3,
    bound: float = 6.0,
) -> FlowTransform:
    """Sum-of-squares polynomial flow: scores data in one pass; ``.inv`` draws in one pass.

    References:
        Jaini, Selby, Yu (2019), *Sum-of-squares polynomial flow*, https://arxiv.org/abs/1905.02325

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_dims: Hidden layers of each conditioner.
        degree: Degree of the squared polynomials.
        num_polynomials: Number of them.
        bound: Beyond ``[-bound, bound]`` the maps are lines.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> sospf(3).cheap_direction
        'inverse'
    """
    return autoregressive_stack(
        input_dim, context_dim, lambda: SumOfSquares(degree, num_polynomials, bound), num_layers, hidden_dims
    )
