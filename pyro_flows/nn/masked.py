"""Masked multilayer perceptron (MADE), whose i-th output sees the variables before the i-th."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .mlp import Activation, check_hidden_dims, linear_columns


class MaskedLinear(nn.Linear):
    """Linear layer whose weight is multiplied by a fixed mask.

    Args:
        mask: Which weights are kept, ``(out, in)``, boolean.

    Example:
        >>> layer = MaskedLinear(torch.tensor([[True, False]]))
        >>> layer(torch.tensor([1.0, 5.0])).equal(layer(torch.tensor([1.0, -5.0])))
        True
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype))  # of the weight's type, for a product without conversion

    @property
    def masked_weight(self) -> Tensor:
        """The weight, zero where the mask is False."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, in)`` to ``(*, out)``."""
        return nn.functional.linear(x, self.masked_weight, self.bias)


class MaskedMLP(nn.Module):
    r"""Masked perceptron: output :math:`i` is a function of the variables before :math:`x_i`, and of the context.

    Every output sees all its predecessors; for that, hidden layers narrower than ``D`` are widened to it. The context
    enters the first layer.

    References:
        Germain et al. (2015), *MADE: masked autoencoder for distribution estimation*, https://arxiv.org/abs/1502.03509

    Args:
        input_dim: Number of variables D.
        out_per_dim: Number P of outputs per variable.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Widths of the hidden layers; may be empty.
        order: Place of each variable in the order, a permutation of 0 … D-1, ``(D,)``; by default their own.
        activation: Function between the layers. It must have a name that pickle finds; a lambda has none.

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
        order: Tensor | Sequence[int] | None = None,
        *,
        activation: Activation = nn.functional.silu,
    ) -> None:
        super().__init__()
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
        self.out_per_dim = out_per_dim
        self.activation = activation
        # A hidden unit of degree m sees the variables at places below m; an output at place i sees units of degree at
        # most i. All degrees 0 … D-1 occur in every layer, so that no path from a predecessor is cut.
        degrees = place + 1
        layers = []
        for width in check_hidden_dims(hidden_dims):
            hidden = torch.arange(max(width, input_dim)) % input_dim
            layers.append(MaskedLinear(hidden[:, None] >= degrees[None, :]))
            degrees = hidden
        last = MaskedLinear(place.repeat(out_per_dim)[:, None] >= degrees[None, :])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.ModuleList([*layers, last])
        width = len((*layers, last)[0].weight)
        self.context_layer = nn.Linear(context_dim, width, bias=False) if context_dim else None
        if self.context_layer is not None and not layers:
            nn.init.zeros_(self.context_layer.weight)

    def given(self, context: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The map of columns ``(D, N)`` to ``(P, D, N)``, for repeated use: weights masked and context embedded once.

        Args:
            context: Shape ``(N, context_dim)`` or ``(1, context_dim)``, or None where ``context_dim`` is 0.

        Raises:
            ValueError: If there is no context and one is needed, or the other way round.
        """
        weights = [layer.masked_weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        if (context is None) != (self.context_layer is None):
            wanted = 0 if self.context_layer is None else self.context_layer.in_features
            raise ValueError(f"context: the network has context_dim={wanted}, got {'none' if context is None else 'one'}")
        embedded = None if self.context_layer is None else self.context_layer(context).T

        def network(x: Tensor) -> Tensor:
            h = linear_columns(x, weights[0], biases[0])  # type: ignore[arg-type]
            if embedded is not None:
                h = h + embedded
            for weight, bias in zip(weights[1:], biases[1:], strict=True):
                h = linear_columns(self.activation(h), weight, bias)  # type: ignore[arg-type]
            return h.unflatten(0, (self.out_per_dim, -1))

        return network

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``x`` ``(*, D)`` and context ``(*, context_dim)`` to ``(*, D, P)``; zero at the start."""
        rows = None
        if context is not None:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], context.shape[:-1]), -1)
            rows = context.expand(*x.shape[:-1], -1).reshape(-1, context.shape[-1])
        found = self.given(rows)(x.reshape(-1, x.shape[-1]).T)
        return found.permute(2, 1, 0).reshape(*x.shape, self.out_per_dim)
