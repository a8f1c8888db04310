"""Gaussianization flow: rotations and marginal maps by turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

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
    grows with D as a product with a matrix does. With a context all of them depend on it. At the start each layer turns in a
    direction of its own, at random, and back behind its maps, which are nearly the identity (:meth:`MixtureCDF.start`): without
    the directions and the spread of the components the start is a saddle that training does not leave.

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
        layer: list[FlowTransform] = [
            Elementwise(input_dim, MixtureCDF(num_components, kind), context_dim, hidden_dims=hidden_dims)
        ]
        if input_dim > 1:
            there, back = _rotation_and_back(input_dim, context_dim)
            layer = [there, *layer, back]
        layers += layer
    return Compose(layers).inv


def _rotation_and_back(input_dim: int, context_dim: int) -> tuple[Householder, Householder]:
    """A random product of reflections and, for now, its transpose, each with half of the reflections of a rotation."""
    count = (input_dim + 1) // 2
    there, back = (Householder(input_dim, context_dim, num_reflections=count) for _ in range(2))
    with torch.no_grad():
        vectors = torch.randn(count, input_dim)
        for half, start in ((there, vectors), (back, vectors.flip(0))):
            half.params.get_parameter("vectors").copy_(start)
    return there, back
