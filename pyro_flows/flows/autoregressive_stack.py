"""A stack of autoregressive layers of one univariate map, in the role of a density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..transforms.autoregressive import Autoregressive
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.elementwise import Elementwise
from ..transforms.univariate import Affine, UnivariateMap
from .mixing import alternating_orders


def autoregressive_stack(
    input_dim: int,
    context_dim: int,
    univariate: Callable[[], UnivariateMap],
    num_layers: int,
    hidden_dims: Sequence[int],
) -> FlowTransform:
    """Autoregressive layers of alternating order and an elementwise affine map, scoring data in one pass.

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        univariate: Makes the map of a layer.
        num_layers: Number of layers.
        hidden_dims: Hidden layers of each conditioner.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> from pyro_flows.transforms import Affine
        >>> autoregressive_stack(3, 0, Affine, 2, (16,)).cheap_direction
        'inverse'
    """
    layers = [
        Autoregressive(input_dim, univariate(), context_dim, hidden_dims=hidden_dims, order=order)
        for order in alternating_orders(input_dim, num_layers)
    ]
    scaling = Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim, hidden_dims=hidden_dims)
    return Compose([scaling, *layers]).inv
