"""Convolutional encoder of images and signals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .arguments import check_hidden_dims, check_positive
from .mlp import Activation
from .recorded import Recorded


class ConvEncoder(Recorded, nn.Module):
    r"""Convolutions of stride two, then a linear layer: an image ``(C, H, W)`` or a signal ``(C, L)`` to a vector.

    Each layer halves the size, rounded up.

    Args:
        in_shape: Shape of one input, ``(C, H, W)`` or ``(C, L)``.
        out_dim: Size of the output.
        channels: Channels of each layer, at least one.
        kernel_size: Width of the kernels, odd.
        activation: Between layers. It must have a name that pickle finds; a lambda has none.

    Raises:
        ValueError: If a size is not as described.

    Example:
        >>> ConvEncoder((1, 28, 28), 10)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_dim: int,
        channels: Sequence[int] = (16, 32),
        *,
        kernel_size: int = 3,
        activation: Activation = nn.functional.silu,
    ) -> None:
        super().__init__()
        self.in_shape = tuple(in_shape)
        if len(self.in_shape) not in (2, 3) or not all(isinstance(size, int) and size > 0 for size in self.in_shape):
            raise ValueError(f"in_shape must be (C, H, W) or (C, L), got {in_shape!r}")
        check_positive(out_dim=out_dim, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        widths = (self.in_shape[0], *check_hidden_dims(channels))
        if len(widths) == 1:
            raise ValueError("channels must hold at least one number, got none")
        convolution = nn.Conv2d if len(self.in_shape) == 3 else nn.Conv1d
        self.activation = activation
        self.layers = nn.ModuleList(
            convolution(a, b, kernel_size, stride=2, padding=kernel_size // 2) for a, b in zip(widths, widths[1:], strict=False)
        )
        size = widths[-1]
        for length in self.in_shape[1:]:
            for _ in self.layers:
                length = (length + 1) // 2
            size *= length
        self.last = nn.Linear(size, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, *in_shape)`` to ``(*, out_dim)``.

        Raises:
            ValueError: If the input has another shape.
        """
        dim = len(self.in_shape)
        if x.shape[x.dim() - dim :] != self.in_shape:
            raise ValueError(f"x must have shape (*, {', '.join(map(str, self.in_shape))}), got {tuple(x.shape)}")
        batch = x.shape[: x.dim() - dim]
        x = x.reshape(-1, *self.in_shape)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.last(x.flatten(1)).reshape(*batch, -1)
