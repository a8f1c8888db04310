"""Losses that draw noise, comparable from one epoch to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def same_noise_in_evaluation(module: nn.Module) -> Iterator[None]:
    """Draw the same random numbers every time a module is in evaluation mode; others, as ever, in training mode.

    Args:
        module: The module.

    Example:
        >>> layer, found = nn.Linear(1, 1).eval(), []
        >>> for _ in range(2):
        ...     with same_noise_in_evaluation(layer):
        ...         found.append(torch.randn(()))
        >>> bool(found[0] == found[1])
        True
    """
    with torch.random.fork_rng(enabled=not module.training):
        if not module.training:
            torch.manual_seed(0)
        yield
