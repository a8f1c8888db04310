"""Convolutional residual network from images to images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arguments import check_positive
from .recorded import Recorded


class ConvNet(Recorded, nn.Module):
    r"""Convolutions from an image ``(in_channels, H, W)`` to one of the same size ``(out_channels, H, W)``, zero at the start.

    :math:`3 \times 3`, then ``num_blocks`` residual blocks :math:`h + W_2\,\sigma(W_1\,\sigma(h))` of :math:`3 \times 3` and
    :math:`1 \times 1` kernels, then :math:`3 \times 3` again; SiLU as the activation. A context is added to the hidden channels,
    the same at all pixels. One more channel, of ones, tells where the image ends under padding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden_channels: Channels in between.
        num_blocks: Number of residual blocks.
        context_dim: Size of a context; 0 for none.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> ConvNet(1, 2, 8)(torch.ones(5, 1, 4, 4)).abs().max().item()
        0.0
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int = 64, num_blocks: int = 1, context_dim: int = 0
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels, num_blocks=num_blocks)
        self.first = nn.Conv2d(in_channels + 1, hidden_channels, 3, padding=1)
        self.of_context = nn.Linear(context_dim, hidden_channels) if context_dim else None
        self.wide = nn.ModuleList(nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1) for _ in range(num_blocks))
        self.narrow = nn.ModuleList(nn.Conv2d(hidden_channels, hidden_channels, 1) for _ in range(num_blocks))
        self.last = nn.Conv2d(hidden_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(N, in_channels, H, W)``, with a context ``(N, context_dim)``, to ``(N, out_channels, H, W)``."""
        h = self.first(torch.cat([x, torch.ones_like(x[:, :1])], 1))
        if self.of_context is not None:
            h = h + self.of_context(context)[..., None, None]
        silu = nn.functional.silu
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            h = h + narrow(silu(wide(silu(h))))
        return self.last(silu(h))
