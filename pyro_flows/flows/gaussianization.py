"""Gaussianization flow: rotations and marginal maps by turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.elementwise import Elementwise
from ..transforms.householder import Householder
from ..transforms.univariate import Affine, MixtureCDF
from .mixing import check_num_layers
from .registry import register


@register("gaussianization", cheap="both", inverse="solved", paper="https://arxiv.org/abs/2003.01941")
def gaussianization(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    num_components: int = 8,
    kind: Literal["logistic", "gaussian"] = "gaussian",
) -> FlowTransform:
    """Gaussianization flow: every layer makes each variable normal by itself, then rotates.

    The maps of a layer are those of a mixture for each variable, the rotations products of Householder reflections, so the cost
    grows with D as a product with a matrix does. With a context all of them depend on it.

    References:
        Meng, Song, Song, Ermon (2020), *Gaussianization flows*, https://arxiv.org/abs/2003.01941

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers.
        hidden_dims: Hidden layers of the networks of a context.
        num_components: Components of each mixture.
        kind: Their distribution, ``"logistic"`` or ``"gaussian"``.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> gaussianization(3).cheap_direction
        'both'
    """
    check_num_layers(num_layers)
    layers: list[FlowTransform] = [Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim, hidden_dims=hidden_dims)]
    for _ in range(num_layers):
        if input_dim > 1:
            layers.append(Householder(input_dim, context_dim))
        layers.append(Elementwise(input_dim, MixtureCDF(num_components, kind), context_dim, hidden_dims=hidden_dims))
    return Compose(layers).inv
