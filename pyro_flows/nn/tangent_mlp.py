"""Multilayer perceptron that pushes tangents forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .arguments import check_hidden_dims, check_positive
from .recorded import Recorded


class TangentMLP(Recorded, nn.Module):
    r"""Multilayer perceptron of points and a context, with products of its Jacobian and tangents in closed form.

    :math:`W_n \tanh(\dots \tanh(W_1 (x, c) + b_1)) + b_n`. It is bounded, and zero at the start.

    Args:
        in_dim: Size of the points.
        out_dim: Size of the output.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Widths of the hidden layers; one at least.

    Raises:
        ValueError: If a size is not as described.

    Example:
        >>> value, pushed = TangentMLP(2, 3).pushed(torch.zeros(5, 2), torch.eye(2).expand(5, 2, 2))
        >>> value.shape, pushed.shape
        (torch.Size([5, 3]), torch.Size([5, 2, 3]))
    """

    def __init__(self, in_dim: int, out_dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim)
        widths = check_hidden_dims(hidden_dims)
        if not widths:
            raise ValueError("hidden_dims must have one width at least, got ()")
        self.in_dim, self.out_dim = in_dim, out_dim
        sizes = (in_dim + context_dim, *widths, out_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Value ``(*, out_dim)`` at points ``(*, in_dim)``."""
        return self.pushed(x, x[..., None, :][..., :0, :], context)[0]

    def pushed(self, x: Tensor, v: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value ``(*, out_dim)`` at points, and what becomes of tangents there, ``(*, K, out_dim)``.

        Args:
            x: The points, ``(*, in_dim)``.
            v: Tangents, ``(*, K, in_dim)``.
            context: Context ``(*, context_dim)``.
        """
        h = x if context is None else torch.cat([x, context.expand(*x.shape[:-1], -1)], -1)
        *hidden, last = cast(list[nn.Linear], list(self.layers))
        for i, layer in enumerate(hidden):
            h = layer(h).tanh()
            weight = layer.weight[:, : self.in_dim] if i == 0 else layer.weight
            v = (v @ weight.t()) * (1 - h * h)[..., None, :]
        return last(h), v @ last.weight.t()
