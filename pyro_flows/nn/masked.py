"""Masked multilayer perceptron (MADE), whose i-th output sees the variables before the i-th, or its parents in a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_hidden_dims
from .column_mlp import ColumnMLP


class MaskedMLP(ColumnMLP):
    r"""Masked perceptron: output :math:`i` is a function of the variables before :math:`x_i`, or of its parents in a graph, and of
    the context.

    Every output sees all its predecessors or parents; for that, hidden layers narrower than the number of different sets of these,
    ``D`` for an order, are widened to it. The context enters the first layer. As a :class:`ColumnMLP` it maps columns
    ``(D + context_dim, N)`` to ``(P D, N)``.

    References:
        Germain et al. (2015), *MADE: masked autoencoder for distribution estimation*, https://arxiv.org/abs/1502.03509;
        Wehenkel, Louppe (2021), *Graphical normalizing flows*, https://arxiv.org/abs/2006.02548

    Args:
        input_dim: Number of variables D.
        out_per_dim: Number P of outputs per variable.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Widths of the hidden layers; may be empty.
        order: Place of each variable in the order, a permutation of 0 … D-1, ``(D,)``; by default their own.
        adjacency: In place of an order, a graph without cycles: booleans ``(D, D)``, true in row i and column j where output i sees
            :math:`x_j`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> network = MaskedMLP(3, 2)
        >>> network.at(torch.ones(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        input_dim: int,
        out_per_dim: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        order: Tensor | Sequence[int] | None = None,
        adjacency: Tensor | None = None,
    ) -> None:
        for name, size, least in (
            ("input_dim", input_dim, 1),
            ("out_per_dim", out_per_dim, 1),
            ("context_dim", context_dim, 0),
        ):
            if not isinstance(size, int) or size < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {size!r}")
        parents = _ordered(input_dim, order) if adjacency is None else _acyclic(input_dim, order, adjacency).cpu()
        # A hidden unit stands for a set of variables, those that some output sees, and may see what sees no others. All sets occur
        # in every layer, so that no path from a parent is cut.
        kinds = sorted({tuple(row) for row in parents.tolist()}, key=lambda row: (sum(row), row))
        sets = torch.tensor(kinds, device="cpu")
        within = (~sets[None, :, :] | sets[:, None, :]).all(-1)  # the second within the first
        # Without a context, what sees no variable is a constant, and the bias of an output suffices.
        useful = [i for i, kind in enumerate(kinds) if context_dim or any(kind)] or [0]
        masks, widths = [], [max(width, len(useful)) for width in check_hidden_dims(hidden_dims)]
        seen = torch.cat([sets, sets.new_ones(len(kinds), context_dim)], 1)
        for width in widths:
            hidden = torch.tensor(useful, device="cpu")[torch.arange(width, device="cpu") % len(useful)]
            masks.append(seen[hidden])
            seen = within[:, hidden]
        of_output = torch.tensor([kinds.index(tuple(row)) for row in parents.tolist()], device="cpu")
        masks.append(seen[of_output].repeat(out_per_dim, 1))
        masks = [mask.to(torch.empty(0).device) for mask in masks]  # the default device
        super().__init__(input_dim + context_dim, input_dim * out_per_dim, widths, masks=masks)
        self.input_dim, self.out_per_dim, self.context_dim = input_dim, out_per_dim, context_dim

    def at(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map rows ``x`` ``(*, D)`` and their context ``(*, context_dim)`` to ``(*, D, P)``; zero at the start.

        Raises:
            ValueError: If there is no context and one is needed, or the other way round.
        """
        if (context is None) != (self.context_dim == 0):
            raise ValueError(f"context: the network has context_dim={self.context_dim}, got {'none' if context is None else 'one'}")
        if context is not None:
            batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            x = torch.cat([x.expand(*batch, -1), context.expand(*batch, -1)], -1)
        found = self(x.reshape(-1, x.shape[-1]).t()).unflatten(0, (self.out_per_dim, -1))
        return found.permute(2, 1, 0).reshape(*x.shape[:-1], self.input_dim, self.out_per_dim)  # type: ignore[no-any-return]


def check_order(input_dim: int, order: Tensor | Sequence[int] | None) -> list[int]:
    """The place of each variable, its own if there is no order.

    Raises:
        ValueError: If the order is no permutation of 0 … D-1.

    Example:
        >>> check_order(3, None)
        [0, 1, 2]
    """
    places = order.tolist() if isinstance(order, Tensor) else list(range(input_dim) if order is None else order)
    if not isinstance(places, list) or sorted(places) != list(range(input_dim)):
        raise ValueError(f"order must be a permutation of 0 … {input_dim - 1}, got {places}")
    return places


def _ordered(input_dim: int, order: Tensor | Sequence[int] | None) -> Tensor:
    """Which variables stand before which, ``(D, D)``."""
    place = torch.tensor(check_order(input_dim, order), device="cpu")  # its values are read
    return place[:, None] > place[None, :]


def _acyclic(input_dim: int, order: Tensor | Sequence[int] | None, adjacency: Tensor) -> Tensor:
    """The graph, checked."""
    if order is not None:
        raise ValueError("order and adjacency were both given; give one")
    if not isinstance(adjacency, Tensor) or adjacency.dtype != torch.bool or tuple(adjacency.shape) != (input_dim, input_dim):
        got = f"{adjacency.dtype} of shape {tuple(adjacency.shape)}" if isinstance(adjacency, Tensor) else type(adjacency).__name__
        raise ValueError(f"adjacency must hold booleans of shape ({input_dim}, {input_dim}), got {got}")
    left = list(range(input_dim))
    rows = adjacency.tolist()
    while left:
        free = [i for i in left if not any(rows[i][j] for j in left)]
        if not free:
            raise ValueError(
                f"adjacency has a cycle among the variables {left}: each sees another of them, or itself; a variable may see those "
                f"alone that can be drawn before it"
            )
        left = [i for i in left if i not in free]
    return adjacency
