"""A transform of channels at every pixel, and the invertible 1 x 1 convolution among them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .core import FlowTransform
from .event_shape import IMAGE, check_image_shape
from .lu_linear import LULinear


class PerPixel(FlowTransform):
    r"""A transform of C variables applied to the channels of an image ``(C, H, W)`` at every pixel.

    :math:`\log|\det|` is the sum over pixels. With :class:`ActNorm` it is that of Glow. A context is the same at all pixels.

    References:
        Kingma, Dhariwal (2018), *Glow*, https://arxiv.org/abs/1807.03039

    Args:
        event_shape: Shape ``(C, H, W)`` of an image.
        transform: A transform of ``C`` variables.

    Raises:
        ValueError: If the transform is not of ``C`` variables, or the shape not one of an image.

    Example:
        >>> from pyro_flows.transforms import ActNorm
        >>> PerPixel((3, 4, 4), ActNorm(3))(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    def __init__(self, event_shape: Sequence[int], transform: FlowTransform) -> None:
        shape = check_image_shape(event_shape)
        if not isinstance(transform, FlowTransform) or transform.event_shape != shape[:1] or transform.output_shape != shape[:1]:
            raise ValueError(f"transform must be one of {shape[0]} variables, the channels of event_shape={tuple(shape)}")
        super().__init__(shape.numel(), transform.context_dim)
        self.transform = transform
        self._take_after(transform)
        self.event_shape = self.output_shape = shape
        self.domain = self.codomain = IMAGE

    @property
    def sign(self) -> int | Tensor:
        """That of the transform to the power of the number of pixels."""
        return self.transform.sign ** (self.event_shape[1] * self.event_shape[2])

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, C, H, W)`` and the log-determinant of shape ``(*)``."""
        return self._mapped(x, context, False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, C, H, W)`` and the log-determinant of the inverse, shape ``(*)``."""
        return self._mapped(y, context, True)

    def _mapped(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        direction = self.transform.inverse_and_log_det if inverse else self.transform.forward_and_log_det
        rows, log_det = direction(at.movedim(-3, -1), None if context is None else context[..., None, None, :])
        return rows.movedim(-1, -3), log_det.sum((-2, -1))


class InvertibleConv1x1(PerPixel):
    r"""Invertible :math:`1 \times 1` convolution: the channels of every pixel times a learnable matrix of LU factors.

    :math:`\log|\det| = H W \sum_i s_i` with the log-diagonal s of :class:`LULinear`. Starts as the identity.

    References:
        Kingma, Dhariwal (2018), *Glow*, https://arxiv.org/abs/1807.03039

    Args:
        event_shape: Shape ``(C, H, W)`` of an image.
        context_dim: Size of the context; 0 for none.
        permutation: Order that the fixed permutation of :class:`LULinear` gives to the channels.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.allclose(InvertibleConv1x1((3, 4, 4))(x), x)
        True
    """

    def __init__(
        self, event_shape: Sequence[int], context_dim: int = 0, *, permutation: Sequence[int] | Tensor | None = None
    ) -> None:
        channels = check_image_shape(event_shape)[0]
        super().__init__(event_shape, LULinear(channels, context_dim, permutation=permutation))
