"""Which variables pass a coupling, and in which order an autoregressive layer takes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..transforms.core import FlowTransform
from ..transforms.permutation import Permutation


def coupling_stack(input_dim: int, num_layers: int, coupling: Callable[[Tensor], FlowTransform]) -> list[FlowTransform]:
    """Couplings in which the first half of the variables passes, then the second, then two halves of another order, and so on.

    Between pairs stand random permutations, and at the end the one that restores the order, so that a stack of couplings that do
    nothing does nothing. They are drawn by a generator of their own with a fixed seed: a stack of one size always has the same.

    Args:
        input_dim: Number of variables D.
        num_layers: Number of couplings.
        coupling: Makes a coupling for a mask ``(D,)``, true for the variables that pass.

    Raises:
        ValueError: If ``num_layers`` is not a positive integer.

    Example:
        >>> from pyro_flows.transforms import Affine, Coupling
        >>> stack = coupling_stack(4, 3, lambda mask: Coupling(4, Affine(), mask=mask))
        >>> [type(transform).__name__ for transform in stack]
        ['Coupling', 'Coupling', 'Permutation', 'Coupling', 'Permutation']
    """
    check_num_layers(num_layers)
    generator = torch.Generator(device="cpu").manual_seed(0)
    first = torch.arange(input_dim, device="cpu") < input_dim // 2
    order = torch.arange(input_dim, device="cpu")
    stack: list[FlowTransform] = []
    for layer in range(num_layers):
        if layer and layer % 2 == 0 and input_dim > 2:
            drawn = torch.randperm(input_dim, generator=generator, device="cpu")
            stack.append(Permutation(drawn.tolist()))  # a list, whose tensor goes to the default device
            order = order[drawn]
        stack.append(coupling(~first if layer % 2 and input_dim > 1 else first))
    if not torch.equal(order, torch.arange(input_dim, device="cpu")):
        stack.append(Permutation(order.argsort().tolist()))
    return stack


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
    order = torch.arange(input_dim, device="cpu")  # its values are read
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
