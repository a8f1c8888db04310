"""Stacks of splines on spheres, on tori and products of circles and lines, and on simplices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..manifolds.simplex import IsometricLogRatio
from ..manifolds.sphere import CylinderSpline, NormalizedAffine
from ..manifolds.torus import CircularCoupling
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.univariate import CircularSpline, RationalQuadraticSpline
from .mixing import check_num_layers
from .nsf import nsf_autoregressive
from .registry import register


@register("sphere", cheap="both", inverse="closed", paper="https://arxiv.org/abs/2002.02428", smoothness="once", event="sphere")
def sphere(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
) -> FlowTransform:
    """Flow of unit vectors: recursive splines on cylinder coordinates about one axis after another, and normalised affine maps.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of recursive splines.
        hidden_dims: Hidden layers of their networks.
        num_bins: Number of bins of each spline.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> sphere(3).event_shape
        torch.Size([3])
    """
    check_num_layers(num_layers)
    layers: list[FlowTransform] = []
    for layer in range(num_layers):
        axis = (-1 - layer) % input_dim
        layers += [
            CylinderSpline(input_dim, context_dim, num_bins=num_bins, hidden_dims=hidden_dims, axis=axis),
            NormalizedAffine(input_dim, context_dim),
        ]
    return Compose(layers)


@register("torus", cheap="both", inverse="closed", paper="https://arxiv.org/abs/2002.02428", smoothness="once", event="torus")
def torus(
    input_dim: int,
    context_dim: int = 0,
    *,
    circles: Sequence[bool] | None = None,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
) -> FlowTransform:
    r"""Flow of angles in :math:`[-\pi, \pi)`, and of numbers beside them: couplings of circular splines and splines.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        circles: Which variables are angles, ``(D,)``; all if None.
        num_layers: Number of couplings.
        hidden_dims: Hidden layers of their networks.
        num_bins: Number of bins of each spline.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> torus(2, circles=(True, False)).domain
        vectors of (angle in [-pi, pi), number)
    """
    check_num_layers(num_layers)
    return Compose(
        CircularCoupling(
            input_dim,
            context_dim,
            circles=circles,
            circle_map=partial(CircularSpline, num_bins),
            line_map=partial(RationalQuadraticSpline, num_bins),
            hidden_dims=hidden_dims,
            mask=[input_dim > 1 and (i < input_dim // 2) == (layer % 2 == 0) for i in range(input_dim)],
        )
        for layer in range(num_layers)
    )


@register(
    "simplex",
    cheap="inverse",
    inverse="closed",
    paper="https://doi.org/10.1023/A:1023818214614",
    smoothness="once",
    event="simplex",
)
def simplex(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
) -> FlowTransform:
    """Flow of proportions: autoregressive splines in isometric log-ratio coordinates.

    References:
        Egozcue, Pawlowsky-Glahn, Mateu-Figueras, Barceló-Vidal (2003), *Isometric logratio transformations for compositional data
        analysis*, https://doi.org/10.1023/A:1023818214614

    Args:
        input_dim: Number n of components, at least 2.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of spline layers.
        hidden_dims: Hidden layers of their networks.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> simplex(3).output_shape
        torch.Size([3])
    """
    ratios = IsometricLogRatio(input_dim)
    return Compose([nsf_autoregressive(input_dim - 1, context_dim, num_layers=num_layers, hidden_dims=hidden_dims), ratios])
