"""Missing values in front of an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .recorded import Recorded


class MissingValues(Recorded, nn.Module):
    r"""Puts a learned value where one is missing, and tells the network behind it which ones were.

    An input ``(*, in_dim)`` becomes ``(*, 2 in_dim)``: values, with NaN replaced by one learned number per variable, and ones
    where something was missing. What comes with the input, such as a mask of padded elements, is passed on.

    Args:
        network: An encoder of inputs of size ``2 in_dim``.
        in_dim: Number of variables.

    Raises:
        ValueError: If ``network`` is not a module, or ``in_dim`` not a positive integer.

    Example:
        >>> encoder = MissingValues(torch.nn.Linear(6, 2), 3)
        >>> torch.isfinite(encoder(torch.tensor([[1.0, float("nan"), 2.0]]))).all().item()
        True
    """

    def __init__(self, network: nn.Module, in_dim: int) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ValueError(f"network must be a torch module, got {type(network).__name__}")
        if not isinstance(in_dim, int) or in_dim < 1:
            raise ValueError(f"in_dim must be a positive integer, got {in_dim!r}")
        self.network = network
        self.filling = nn.Parameter(torch.zeros(in_dim))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the network makes of ``(*, in_dim)`` with NaN where values are missing."""
        if x.shape[-1:] != self.filling.shape:
            raise ValueError(f"x must have shape (*, {len(self.filling)}), got {tuple(x.shape)}")
        missing = torch.isnan(x)
        filled = torch.where(missing, self.filling.to(x.dtype).expand(x.shape), x)
        return self.network(torch.cat([filled, missing.to(x.dtype)], -1), *args, **kwargs)  # type: ignore[no-any-return]
