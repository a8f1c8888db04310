"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .arguments import check_hidden_dims, check_positive
from .recorded import Recorded

Activation = Callable[[Tensor], Tensor]


class MLP(Recorded, nn.Module):
    r"""Multilayer perceptron :math:`W_n\,\sigma(\dots\sigma(W_1 x + b_1)) + b_n`.

    The activation is SiLU unless told otherwise: it is smooth, so that the density of a flow has continuous gradients,
    on which path gradients and NUTS rely, and it does not saturate as tanh does.

    Args:
        in_dim: Size of the input.
        out_dim: Size of the output.
        hidden_dims: Widths of the hidden layers; may be empty.
        activation: The function :math:`\sigma`. It must have a name that pickle finds; a lambda has none.
        zero_init: Start the last layer at zero, so that the output is zero.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> MLP(3, 2, (16,), zero_init=True)(torch.ones(5, 3)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        activation: Activation = nn.functional.silu,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim)
        widths = (in_dim, *check_hidden_dims(hidden_dims), out_dim)
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        if zero_init:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, in_dim)`` to ``(*, out_dim)``."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
