"""The unit in which densities of images are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def bits_per_dim(log_prob: Tensor, event_shape: Sequence[int]) -> Tensor:
    r"""Bits per dimension, :math:`-\log_2 p(y) / D`, of log-probabilities in nats.

    Of whole numbers, such as the values of pixels, it is what a code needs for each; a flow behind a
    :class:`~pyro_flows.transforms.Dequantization` gives one draw of an upper bound.

    Args:
        log_prob: Log-probabilities ``(*)``, in nats.
        event_shape: Shape of an event, of D entries in all.

    Returns:
        Bits per dimension ``(*)``.

    Raises:
        ValueError: If ``event_shape`` has no entries.

    Example:
        >>> bits_per_dim(torch.tensor(-math.log(256.0)), (1, 1, 1))
        tensor(8.)
    """
    count = torch.Size(event_shape).numel()
    if count < 1:
        raise ValueError(f"event_shape must have at least one entry, got {tuple(event_shape)}")
    return -log_prob / (count * math.log(2))
