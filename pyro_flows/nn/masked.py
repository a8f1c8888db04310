"""Masked multilayer perceptron (MADE), whose i-th output sees the variables before the i-th."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .column_mlp import ColumnMLP
from .mlp import check_hidden_dims


class MaskedMLP(ColumnMLP):
    r"""Masked perceptron: output :math:`i` is a function of the variables before :math:`x_i`, and of the context.

    Every output sees all its predecessors; for that, hidden layers narrower than ``D`` are widened to it. The context
    enters the first layer. As a :class:`ColumnMLP` it maps columns ``(D + context_dim, N)`` to ``(P D, N)``.

    References:
        Germain et al. (2015), *MADE: masked autoencoder for distribution estimation*, https://arxiv.org/abs/1502.03509

    Args:
        input_dim: Number of variables D.
        out_per_dim: Number P of outputs per variable.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Widths of the hidden layers; may be empty.
        order: Place of each variable in the order, a permutation of 0 … D-1, ``(D,)``; by default their own.

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
    ) -> None:
        for name, size, least in (
            ("input_dim", input_dim, 1),
            ("out_per_dim", out_per_dim, 1),
            ("context_dim", context_dim, 0),
        ):
            if not isinstance(size, int) or size < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {size!r}")
        places = order.tolist() if isinstance(order, Tensor) else list(range(input_dim) if order is None else order)
        if not isinstance(places, list) or sorted(places) != list(range(input_dim)):
            raise ValueError(f"order must be a permutation of 0 … {input_dim - 1}, got {places}")
        place = torch.tensor(places)
        # A hidden unit of degree m sees the variables at places below m; an output at place i sees units of degree at
        # most i. All degrees 0 … D-1 occur in every layer, so that no path from a predecessor is cut. The context has degree 0.
        degrees = torch.cat([place + 1, place.new_zeros(context_dim)])
        masks, widths = [], [max(width, input_dim) for width in check_hidden_dims(hidden_dims)]
        for width in widths:
            hidden = torch.arange(width) % input_dim
            masks.append(hidden[:, None] >= degrees[None, :])
            degrees = hidden
        masks.append(place.repeat(out_per_dim)[:, None] >= degrees[None, :])
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
