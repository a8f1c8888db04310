"""Pixels into channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .core import FlowTransform
from .event_shape import IMAGE, check_image_shape


class Squeeze(FlowTransform):
    r"""Squares of :math:`f \times f` pixels become :math:`f^2` channels: ``(C, H, W)`` to ``(C f^2, H / f, W / f)``.

    A reordering, with log-determinant zero; its inverse is ``.inv``.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803, section 3.6

    Args:
        event_shape: Shape ``(C, H, W)`` of an image.
        factor: Side f of the squares, at least 2.

    Raises:
        ValueError: If height or width is no multiple of ``factor``.

    Example:
        >>> Squeeze((1, 4, 6))(torch.zeros(1, 4, 6)).shape
        torch.Size([4, 2, 3])
    """

    def __init__(self, event_shape: Sequence[int], factor: int = 2) -> None:
        shape = check_image_shape(event_shape)
        if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
            raise ValueError(f"factor must be an integer of at least 2, got {factor!r}")
        channels, height, width = shape
        if height % factor or width % factor:
            raise ValueError(
                f"event_shape must have a height and width that are multiples of factor={factor}, got {tuple(shape)}; "
                f"pad the images or use fewer levels"
            )
        super().__init__(shape.numel())
        self.factor = factor
        self.event_shape = shape
        self.domain = self.codomain = IMAGE
        self.output_shape = torch.Size((channels * factor**2, height // factor, width // factor))

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)} -> {tuple(self.output_shape)}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the squares as channels, and zeros of shape ``(*)``."""
        (channels, height, width), f = self.event_shape, self.factor
        batch = x.shape[:-3]
        cut = x.reshape(*batch, channels, height // f, f, width // f, f).movedim((-3, -1), (-4, -3))
        return cut.reshape(batch + self.output_shape), x.new_zeros(batch)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the image, and zeros of shape ``(*)``."""
        (channels, height, width), f = self.event_shape, self.factor
        batch = y.shape[:-3]
        cut = y.reshape(*batch, channels, f, f, height // f, width // f).movedim((-4, -3), (-3, -1))
        return cut.reshape(batch + self.event_shape), y.new_zeros(batch)
