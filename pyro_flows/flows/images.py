"""Multi-scale flows of images: Glow, and RealNVP with checkerboards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..transforms.actnorm import ActNorm
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.event_shape import check_image_shape
from ..transforms.image_coupling import ImageCoupling
from ..transforms.per_pixel import InvertibleConv1x1, PerPixel
from ..transforms.split import Split
from ..transforms.squeeze import Squeeze
from ..transforms.univariate import Affine
from .mixing import check_num_layers
from .registry import register

Shape = tuple[int, ...]
#: Layers from noise to data on images of a shape, at a level: before pixels become channels, and after.
Layers = Callable[[Shape, bool], list[FlowTransform]]


def _check_levels(event_shape: Sequence[int], num_levels: int) -> Shape:
    shape = tuple(check_image_shape(event_shape))
    check_num_layers(num_levels)
    if shape[1] % 2**num_levels or shape[2] % 2**num_levels:
        raise ValueError(
            f"event_shape must have a height and width that are multiples of {2**num_levels} for num_levels={num_levels}, got "
            f"{shape}; pad the images or use fewer levels"
        )
    return shape


def _level(shape: Shape, num_levels: int, layers: Layers, hidden_channels: int) -> FlowTransform:
    """From noise to data: a flow of squeezed images, in which half of the channels have more levels before them."""
    squeeze = Squeeze(shape)
    channels, height, width = squeeze.output_shape
    inner = layers((channels, height, width), True)
    if num_levels > 1:
        deeper = _level((channels // 2, height, width), num_levels - 1, layers, hidden_channels)
        inner = [Split(deeper, hidden_channels=hidden_channels), *inner]
    return Compose([squeeze, *inner, squeeze.inv, *layers(shape, False)])


def _coupling(shape: Shape, context_dim: int, hidden_channels: int, swap: bool, board: bool = False) -> FlowTransform:
    return ImageCoupling(
        shape,
        Affine(log_scale_bound=2.0),
        context_dim,
        mask="checkerboard" if board else "channels",
        swap=swap,
        hidden_channels=hidden_channels,
    )


@register("glow", cheap="both", inverse="closed", paper="https://arxiv.org/abs/1807.03039", event="image")
def glow(
    event_shape: Sequence[int],
    context_dim: int = 0,
    *,
    num_levels: int = 2,
    num_steps: int = 8,
    hidden_channels: int = 64,
) -> FlowTransform:
    r"""Glow: at every level steps of ActNorm, invertible :math:`1 \times 1` convolution and affine coupling, then a split.

    Noise and images have one shape. It is the identity until it is trained; ``fit_density`` starts ActNorm from data. For the
    values of pixels see :func:`of_pixels`, for bits per dimension ``diagnostics.bits_per_dim``.

    References:
        Kingma, Dhariwal (2018), *Glow: generative flow with invertible 1x1 convolutions*, https://arxiv.org/abs/1807.03039

    Args:
        event_shape: Shape ``(C, H, W)`` of an image.
        context_dim: Size of the context; 0 for none.
        num_levels: Number of levels, each of half the height and width.
        num_steps: Steps at each level.
        hidden_channels: Channels of the networks.

    Raises:
        ValueError: If an argument is not as described, or height or width is no multiple of ``2**num_levels``.

    Example:
        >>> glow((1, 8, 8), num_steps=1).event_shape
        torch.Size([1, 8, 8])
    """
    shape = _check_levels(event_shape, num_levels)
    check_num_layers(num_steps)

    def layers(at: Shape, squeezed: bool) -> list[FlowTransform]:
        steps: list[FlowTransform] = []
        for step in range(num_steps if squeezed else 0):
            steps += [
                _coupling(at, context_dim, hidden_channels, bool(step % 2)),
                InvertibleConv1x1(at),
                PerPixel(at, ActNorm(at[0])).inv,
            ]
        return steps

    return _level(shape, num_levels, layers, hidden_channels)


@register("real_nvp_image", cheap="both", inverse="closed", paper="https://arxiv.org/abs/1605.08803", event="image")
def real_nvp_image(
    event_shape: Sequence[int],
    context_dim: int = 0,
    *,
    num_levels: int = 2,
    num_steps: int = 4,
    hidden_channels: int = 64,
) -> FlowTransform:
    """RealNVP of images: at every level couplings by checkerboards, then, squeezed, by channels, then a split.

    ActNorm stands where the paper has batch normalisation.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803

    Args:
        event_shape: Shape ``(C, H, W)`` of an image.
        context_dim: Size of the context; 0 for none.
        num_levels: Number of levels, each of half the height and width.
        num_steps: Couplings of either kind at each level.
        hidden_channels: Channels of the networks.

    Raises:
        ValueError: If an argument is not as described, or height or width is no multiple of ``2**num_levels``.

    Example:
        >>> real_nvp_image((3, 4, 4), num_steps=1).event_shape
        torch.Size([3, 4, 4])
    """
    shape = _check_levels(event_shape, num_levels)
    check_num_layers(num_steps)

    def layers(at: Shape, squeezed: bool) -> list[FlowTransform]:
        steps: list[FlowTransform] = []
        for step in range(num_steps):
            steps += [
                _coupling(at, context_dim, hidden_channels, bool(step % 2), board=not squeezed),
                PerPixel(at, ActNorm(at[0])).inv,
            ]
        return steps

    return _level(shape, num_levels, layers, hidden_channels)
