"""Masked and inverse autoregressive flow: one stack in two directions."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.autoregressive import Autoregressive
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.univariate import Affine
from .mixing import alternating_orders
from .registry import register


@register("iaf", cheap="forward", inverse="solved", paper="https://arxiv.org/abs/1606.04934")
def iaf(input_dim: int, context_dim: int = 0, *, num_layers: int = 4, hidden_dims: Sequence[int] = (64, 64)) -> Compose:
    """Inverse autoregressive flow: draws in one pass, so it suits guides.

    References:
        Kingma et al. (2016), *Improving variational inference with inverse autoregressive flow*, https://arxiv.org/abs/1606.04934

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_dims: Hidden layers of each conditioner.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> iaf(3).cheap_direction
        'forward'
    """
    return Compose(
        Autoregressive(input_dim, Affine(), context_dim, hidden_dims=hidden_dims, order=order)
        for order in alternating_orders(input_dim, num_layers)
    )


@register("maf", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/1705.07057")
def maf(input_dim: int, context_dim: int = 0, *, num_layers: int = 4, hidden_dims: Sequence[int] = (64, 64)) -> FlowTransform:
    """Masked autoregressive flow, the inverse of :func:`iaf`: scores data in one pass, so it suits density estimation.

    References:
        Papamakarios, Pavlakou, Murray (2017), *Masked autoregressive flow for density estimation*, https://arxiv.org/abs/1705.07057

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_dims: Hidden layers of each conditioner.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> maf(3).cheap_direction
        'inverse'
    """
    return iaf(input_dim, context_dim, num_layers=num_layers, hidden_dims=hidden_dims).inv
