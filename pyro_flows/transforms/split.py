"""Channels that leave a multi-scale flow early."""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn.conv_net import ConvNet
from .core import FlowTransform
from .event_shape import IMAGE, check_image_shape
from .univariate.affine import Affine


class Split(FlowTransform):
    r"""Half of the channels go through a deeper flow, the other half is normal given what comes out of that.

    For images of ``2 C`` channels :math:`x = (x_1, x_2)`: :math:`y_1 = f(x_1; c)` and :math:`y_2 = u(x_2; g(y_1, c))` with an
    affine map u and a convolutional network g that starts at zero. Of standard normal noise that is the multi-scale architecture,
    in which :math:`y_2` has a normal prior given :math:`y_1`, without a list of latents: events keep their shape.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803, section 3.6;
        Kingma, Dhariwal (2018), *Glow*, https://arxiv.org/abs/1807.03039

    Args:
        transform: The deeper flow f, of images ``(C, H, W)``.
        hidden_channels: Channels of the network.

    Raises:
        ValueError: If ``transform`` is not one of images that keep their shape.

    Example:
        >>> from pyro_flows.transforms import InvertibleConv1x1
        >>> Split(InvertibleConv1x1((2, 4, 4))).event_shape
        torch.Size([4, 4, 4])
    """

    def __init__(self, transform: FlowTransform, *, hidden_channels: int = 64) -> None:
        if not isinstance(transform, FlowTransform) or transform.event_shape != transform.output_shape:
            raise ValueError(f"transform must be a FlowTransform of images that keep their shape, got {type(transform).__name__}")
        channels, height, width = check_image_shape(tuple(transform.event_shape))
        super().__init__(2 * transform.input_dim, transform.context_dim)
        self.transform = transform
        self._take_after(transform)
        self.event_shape = self.output_shape = torch.Size((2 * channels, height, width))
        self.domain = self.codomain = IMAGE
        self.univariate = Affine(log_scale_bound=3.0)
        self.network = ConvNet(channels, channels * self.univariate.param_count, hidden_channels, 1, transform.context_dim)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, 2 C, H, W)`` and the log-determinant of shape ``(*)``."""
        first, second = x.chunk(2, -3)
        first, log_det = self.transform.forward_and_log_det(first, context)
        second, log_slope = self.univariate.forward_and_log_det(second, self._params(first, context))
        return torch.cat([first, second], -3), log_det + log_slope.sum((-3, -2, -1))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, 2 C, H, W)`` and the log-determinant of the inverse, shape ``(*)``."""
        first, second = y.chunk(2, -3)
        second, log_slope = self.univariate.inverse_and_log_det(second, self._params(first, context))
        first, log_det = self.transform.inverse_and_log_det(first, context)
        return torch.cat([first, second], -3), log_det + log_slope.sum((-3, -2, -1))

    def _params(self, first: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        batch, shape = first.shape[:-3], first.shape[-3:]
        if context is not None:
            context = context.expand(*batch, -1).reshape(-1, self.context_dim)
        raw = self.network(first.reshape(-1, *shape), context).unflatten(1, (self.univariate.param_count, -1)).movedim(1, 0)
        return self.univariate.split(raw.reshape(raw.shape[0], *batch, *shape))
