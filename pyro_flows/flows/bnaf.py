"""Block neural autoregressive flow."""

from __future__ import annotations

from ..transforms.block_autoregressive import BlockAutoregressive
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.elementwise import Elementwise
from ..transforms.univariate import Affine
from .mixing import alternating_orders
from .registry import register


@register("bnaf", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/1904.04676")
def bnaf(
    input_dim: int, context_dim: int = 0, *, num_layers: int = 3, hidden_factor: int = 8, num_hidden: int = 1
) -> FlowTransform:
    """Block neural autoregressive flow: scores data in one pass; ``.inv`` draws in one pass.

    References:
        De Cao, Titov, Aziz (2019), *Block neural autoregressive flow*, https://arxiv.org/abs/1904.04676

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_factor: Units per variable in each hidden layer.
        num_hidden: Hidden layers of each layer.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> bnaf(3).cheap_direction
        'inverse'
    """
    layers = [
        BlockAutoregressive(input_dim, context_dim, hidden_factor=hidden_factor, num_hidden=num_hidden, order=order)
        for order in alternating_orders(input_dim, num_layers)
    ]
    return Compose([Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim), *layers]).inv
