"""Masked multilayer perceptron (MADE), whose i-th output sees the variables before the i-th."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .mlp import check_hidden_dims


class MaskedLinear(nn.Linear):
    """Linear layer whose weight is multiplied by a fixed mask.

    Args:
        mask: Which weights are kept, ``(out, in)``.

    Example:
        >>> layer = MaskedLinear(torch.tensor([[True, False]]))
        >>> layer.weight.data.fill_(1.0); layer(torch.tensor([1.0, 5.0])).item() == (1.0 + layer.bias).item()
        tensor([[1., 1.]])
        True
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, in)`` to ``(*, out)``."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class MaskedMLP(nn.Module):
    r"""Masked perceptron: output :math:`i` is a function of :math:`x_j` with :math:`\mathrm{order}_j < \mathrm{order}_i` and the context.

    Every output sees all its predecessors; for that, hidden layers narrower than ``D`` are widened to it.

    References:
        Germain et al. (2015), *MADE: masked autoencoder for distribution estimation*, https://arxiv.org/abs/1502.03509

    Args:
        input_dim: Number of variables D.
        out_per_dim: Number P of outputs per variable.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Widths of the hidden layers.
        order: Place of each variable in the order, a permutation of 0 … D-1, ``(D,)``; by default their own.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> MaskedMLP(3, 2)(torch.ones(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        input_dim: int,
        out_per_dim: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        place = torch.arange(input_dim) if order is None else order.to(torch.long)
        if place.shape != (input_dim,) or not torch.equal(place.sort().values, torch.arange(input_dim)):
            raise ValueError(f"order must be a permutation of 0 … {input_dim - 1}, got {place.tolist()}")
        self.out_per_dim = out_per_dim
        # A hidden unit of degree m sees the variables at places below m; an output at place i sees units of degree at most i.
        degrees = place + 1
        layers = []
        for width in check_hidden_dims(hidden_dims):
            hidden = torch.arange(max(width, input_dim)) % input_dim
            layers.append(MaskedLinear(hidden[:, None] >= degrees[None, :]))
            degrees = hidden
        if layers:
            out = place.repeat_interleave(out_per_dim)[:, None] >= degrees[None, :]
        else:
            out = place.repeat_interleave(out_per_dim)[:, None] > place[None, :]
        last = MaskedLinear(out)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.ModuleList([*layers, last])
        first_width = self.layers[0].weight.shape[0]  # type: ignore[union-attr, index]
        self.context_layer = nn.Linear(context_dim, int(first_width), bias=False) if context_dim else None  # type: ignore[arg-type]
        if self.context_layer is not None and not layers:
            nn.init.zeros_(self.context_layer.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``x`` ``(*, D)`` and context ``(*, context_dim)`` to ``(*, D, P)``; zero at the start."""
        h = self.layers[0](x)
        if self.context_layer is not None and context is not None:
            h = h + self.context_layer(context)
        for layer in self.layers[1:]:
            h = layer(nn.functional.silu(h))
        return h.reshape(*h.shape[:-1], -1, self.out_per_dim)
