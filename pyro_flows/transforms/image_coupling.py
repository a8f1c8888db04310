"""Coupling of images: channels, or the squares of a checkerboard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..nn.conv_net import ConvNet
from .core import FlowTransform
from .elementwise import check_univariate
from .event_shape import IMAGE, check_image_shape
from .univariate.base import UnivariateMap


class ImageCoupling(FlowTransform):
    r"""Coupling layer of images :math:`y_A = x_A,\; y_B = u(x_B; g(x_A, c))` with a convolutional network g that starts at zero.

    A is half of the channels, or the squares of one colour of a checkerboard; :math:`\log|\det|` the sum of the log-slopes over B.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803

    Args:
        event_shape: Shape ``(C, H, W)`` of an image.
        univariate: The map u of a pixel.
        context_dim: Size of the context; 0 for none.
        mask: ``"channels"``, of which there must be two at least, or ``"checkerboard"``.
        swap: Whether the other half passes.
        hidden_channels: Channels of the network.
        num_blocks: Number of its residual blocks.
        context_image: Shape ``(C', H, W)`` that the first numbers of the context make as an image, which the network sees beside
            the half that passes; None if there is none.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> layer = ImageCoupling((1, 4, 4), Affine(), mask="checkerboard")
        >>> layer(torch.ones(1, 4, 4)).mean().item()
        1.0
    """

    board: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        univariate: UnivariateMap,
        context_dim: int = 0,
        *,
        mask: Literal["channels", "checkerboard"] = "channels",
        swap: bool = False,
        hidden_channels: int = 64,
        num_blocks: int = 1,
        context_image: Sequence[int] | None = None,
    ) -> None:
        shape = check_image_shape(event_shape)
        super().__init__(shape.numel(), context_dim)
        self.event_shape = shape
        self.domain = self.codomain = IMAGE
        self.univariate = check_univariate(univariate, with_parameters=True)
        self.inverse_kind = univariate.inverse_kind
        if mask not in ("channels", "checkerboard"):
            raise ValueError(f'mask must be "channels" or "checkerboard", got {mask!r}')
        if mask == "channels" and shape[0] < 2:
            raise ValueError(f'mask="channels" needs two channels at least, event_shape is {tuple(shape)}; squeeze the image first')
        if mask == "checkerboard" and shape[1] * shape[2] < 2:
            raise ValueError(f'mask="checkerboard" needs two pixels at least, event_shape is {tuple(shape)}')
        self.mask, self.swap = mask, swap
        self.context_image = None if context_image is None else check_image_shape(context_image)
        told = 0 if self.context_image is None else self.context_image.numel()
        if self.context_image is not None and (told > context_dim or self.context_image[1:] != shape[1:]):
            raise ValueError(
                f"context_image must be of the size {tuple(shape[1:])} and in a context of {told} numbers or more, got "
                f"{tuple(self.context_image)} and context_dim={context_dim}"
            )
        self._edge = shape[0] // 2
        passed = shape[0] if mask == "checkerboard" else (shape[0] - self._edge if swap else self._edge)
        mapped = shape[0] if mask == "checkerboard" else shape[0] - passed
        seen = passed + (0 if self.context_image is None else self.context_image[0])
        self.network = ConvNet(seen, mapped * univariate.param_count, hidden_channels, num_blocks, context_dim - told)
        rows, columns = torch.arange(shape[1])[:, None], torch.arange(shape[2])
        self.register_buffer("board", (rows + columns) % 2 == int(swap), persistent=False)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, mask={self.mask!r}, swap={self.swap}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, C, H, W)`` and the log-determinant of shape ``(*)``."""
        return self._mapped(x, context, False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, C, H, W)`` and the log-determinant of the inverse, shape ``(*)``."""
        return self._mapped(y, context, True)

    def _mapped(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        direction = self.univariate.inverse_and_log_det if inverse else self.univariate.forward_and_log_det
        batch = at.shape[:-3]
        images = at.reshape(-1, *self.event_shape)
        if context is not None:
            context = context.expand(*batch, -1).reshape(len(images), self.context_dim)
        if self.mask == "checkerboard":
            passed = torch.where(self.board, images, torch.zeros_like(images))
            mapped, log_slope = direction(images, self.univariate.split(self._raw(passed, context)))
            result = torch.where(self.board, images, mapped)
            log_slope = torch.where(self.board, torch.zeros_like(log_slope), log_slope)
        else:
            first, second = images[:, : self._edge], images[:, self._edge :]
            passed, changed = (second, first) if self.swap else (first, second)
            mapped, log_slope = direction(changed, self.univariate.split(self._raw(passed, context)))
            result = torch.cat([mapped, passed] if self.swap else [passed, mapped], 1)
        return result.reshape(at.shape), log_slope.expand(mapped.shape).flatten(1).sum(-1).reshape(batch)

    def _raw(self, passed: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters ``(param_count, N, C, H, W)`` of the channels that are mapped."""
        if self.context_image is not None and context is not None:
            count = self.context_image.numel()
            passed = torch.cat([passed, context[:, :count].reshape(-1, *self.context_image)], 1)
            context = context[:, count:]
        raw = self.network(passed, context)
        return raw.unflatten(1, (self.univariate.param_count, -1)).movedim(1, 0)
