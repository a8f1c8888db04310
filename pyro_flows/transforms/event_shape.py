"""Shapes of events, those of images among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributions import constraints

#: Any image.
IMAGE = constraints.independent(constraints.real, 3)


def check_image_shape(event_shape: Sequence[int]) -> torch.Size:
    """The shape, if it is one of an image ``(C, H, W)``.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_image_shape((3, 32, 32))
        torch.Size([3, 32, 32])
    """
    shape = tuple(event_shape) if isinstance(event_shape, Sequence) else ()
    if len(shape) != 3 or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape):
        raise ValueError(f"event_shape must be three positive integers (channels, height, width), got {event_shape!r}")
    return torch.Size(shape)


def check_event_shape(event_shape: object) -> torch.Size:
    """The shape, if it is a sequence of positive integers.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_event_shape((2, 3))
        torch.Size([2, 3])
    """
    sizes = tuple(event_shape) if isinstance(event_shape, (tuple, list)) else None
    if sizes is None or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(f"event_shape must be a tuple of positive integers such as (3,), got {event_shape!r}")
    return torch.Size(sizes)
