"""Unconstrained monotonic neural network flow."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.core import FlowTransform
from ..transforms.univariate import MonotonicNetwork
from .autoregressive_stack import autoregressive_stack
from .registry import register


@register("umnn", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/1908.05164", smoothness="once")
def umnn(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    embedding_dim: int = 8,
    integrand_dims: Sequence[int] = (32, 32),
    bound: float = 6.0,
) -> FlowTransform:
    """Flow of unconstrained monotonic neural networks: scores data in one pass; ``.inv`` draws in one pass.

    References:
        Wehenkel, Louppe (2019), *Unconstrained monotonic neural networks*, https://arxiv.org/abs/1908.05164

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_dims: Hidden layers of each conditioner.
        embedding_dim: Size of the embedding that a conditioner gives for each variable.
        integrand_dims: Hidden layers of the integrand of each layer.
        bound: Beyond ``[-bound, bound]`` the maps are lines.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> umnn(3).cheap_direction
        'inverse'
    """
    return autoregressive_stack(
        input_dim, context_dim, lambda: MonotonicNetwork(embedding_dim, integrand_dims, bound=bound), num_layers, hidden_dims
    )
