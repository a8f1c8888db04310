"""Maps of a context: what a transform is told of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .recorded import Recorded


class FirstNumbers(Recorded, nn.Module):
    """The first numbers of a context.

    Args:
        count: How many.

    Example:
        >>> FirstNumbers(2)(torch.arange(5.0))
        tensor([0., 1.])
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def extra_repr(self) -> str:
        return str(self.count)

    def forward(self, context: Tensor) -> Tensor:
        """Of a context ``(*, C)``: ``(*, count)``."""
        return context[..., : self.count]


class Standardised(Recorded, nn.Module):
    r"""A context in units of its own, :math:`(c - \mu) / \sigma`.

    Args:
        loc: Location, ``(C,)``.
        scale: Scale, ``(C,)``.

    Raises:
        ValueError: If a scale is not positive and finite.

    Example:
        >>> Standardised(torch.ones(1), torch.full((1,), 2.0))(torch.tensor([5.0]))
        tensor([2.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(f"scale must be positive and finite, got {scale.tolist()}")
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, context: Tensor) -> Tensor:
        """Of a context ``(*, C)``: the same in these units."""
        return (context - self.loc) / self.scale
