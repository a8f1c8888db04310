"""Convex potential flow."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.compose import Compose
from ..transforms.convex_potential import ConvexPotential
from ..transforms.core import FlowTransform
from ..transforms.elementwise import Elementwise
from ..transforms.univariate import Affine
from .mixing import check_num_layers
from .registry import register


@register("convex_potential", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/2012.05942")
def convex_potential(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
) -> FlowTransform:
    """Convex potential flow, scoring data in one pass; ``.inv`` draws in one pass.

    References:
        Huang, Chen, Tsirigotis, Courville (2021), *Convex potential flows*, https://arxiv.org/abs/2012.05942

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of potentials.
        hidden_dims: Hidden layers of each.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> convex_potential(3).cheap_direction
        'inverse'
    """
    check_num_layers(num_layers)
    layers: list[FlowTransform] = []
    for _ in range(num_layers):
        layers += [ConvexPotential(input_dim, context_dim, hidden_dims=hidden_dims)]
        layers += [Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim)]
    return Compose(layers).inv
