"""Which variables pass a coupling, and in which order an autoregressive layer takes them."""

from __future__ import annotations

import torch
from torch import Tensor


def coupling_masks(input_dim: int, num_layers: int) -> list[Tensor]:
    """Masks for a stack of couplings: a random half passes, then the other half, then another random half, and so on.

    The halves are drawn by a generator of their own with a fixed seed, so that a stack of one size always has the same masks.

    Args:
        input_dim: Number of variables D.
        num_layers: Number of couplings.

    Raises:
        ValueError: If ``num_layers`` is not a positive integer.

    Example:
        >>> [mask.tolist() for mask in coupling_masks(2, 2)]
        [[True, False], [False, True]]
    """
    check_num_layers(num_layers)
    generator = torch.Generator(device="cpu").manual_seed(0)
    masks: list[Tensor] = []
    for layer in range(num_layers):
        if input_dim == 1:
            masks.append(torch.tensor([False], device="cpu"))
        elif layer % 2:
            masks.append(~masks[-1])
        else:
            places = torch.arange(input_dim, device="cpu")
            order = torch.randperm(input_dim, generator=generator, device="cpu") if layer else places
            masks.append(order.argsort() < input_dim // 2)
    return masks


def alternating_orders(input_dim: int, num_layers: int) -> list[Tensor]:
    """Orders for a stack of autoregressive layers: forward, backward, forward, and so on.

    Args:
        input_dim: Number of variables D.
        num_layers: Number of layers.

    Raises:
        ValueError: If ``num_layers`` is not a positive integer.

    Example:
        >>> [order.tolist() for order in alternating_orders(3, 2)]
        [[0, 1, 2], [2, 1, 0]]
    """
    check_num_layers(num_layers)
    order = torch.arange(input_dim)
    return [order.flip(0) if layer % 2 else order for layer in range(num_layers)]


def check_num_layers(num_layers: int) -> None:
    """Refuse a number of layers that is not a positive integer.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_num_layers(4)
    """
    if not isinstance(num_layers, int) or isinstance(num_layers, bool) or num_layers < 1:
        raise ValueError(f"num_layers must be a positive integer, got {num_layers!r}")
