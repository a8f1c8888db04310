"""Flow of Bernstein polynomials."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.core import FlowTransform
from ..transforms.univariate import Bernstein
from .autoregressive_stack import autoregressive_stack
from .registry import register


@register("bernstein", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/2102.03509", smoothness="once")
def bernstein(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    degree: int = 12,
    bound: float = 6.0,
) -> FlowTransform:
    """Flow of Bernstein polynomials: scores data in one pass; ``.inv`` draws in one pass.

    References:
        Ramasinghe, Fernando, Khan, Barnes (2021), *Robust normalizing flows using Bernstein-type polynomials*,
        https://arxiv.org/abs/2102.03509

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_dims: Hidden layers of each conditioner.
        degree: Degree of the polynomials.
        bound: Beyond ``[-bound, bound]`` the maps are lines.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> bernstein(3).cheap_direction
        'inverse'
    """
    return autoregressive_stack(input_dim, context_dim, lambda: Bernstein(degree, bound), num_layers, hidden_dims)
