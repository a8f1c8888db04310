"""Residual perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from .arguments import check_positive
from .mlp import Activation
from .recorded import Recorded


class ResidualNet(Recorded, nn.Module):
    r"""Residual perceptron :math:`W_2\,(h_B \circ \dots \circ h_1)(W_1 x)` with :math:`h(x) = x + V_2\,\sigma(V_1\,\sigma(x))`.

    Deeper than a plain perceptron without being harder to train; its blocks start at the identity.

    Args:
        in_dim: Size of the input.
        out_dim: Size of the output.
        hidden_dim: Width of the blocks.
        num_blocks: Number of blocks B, at least one.
        activation: The function :math:`\sigma`. It must have a name that pickle finds; a lambda has none.

    Raises:
        ValueError: If a size is not a positive integer.

    References:
        He, Zhang, Ren, Sun (2016), *Identity mappings in deep residual networks*, https://arxiv.org/abs/1603.05027

    Example:
        >>> ResidualNet(3, 2, hidden_dim=16)(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 64,
        num_blocks: int = 2,
        *,
        activation: Activation = nn.functional.silu,
    ) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, num_blocks=num_blocks)
        self.activation = activation
        self.first = nn.Linear(in_dim, hidden_dim)
        self.inner = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(num_blocks))
        self.outer = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(num_blocks))
        self.last = nn.Linear(hidden_dim, out_dim)
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, in_dim)`` to ``(*, out_dim)``."""
        x = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(self.activation(inner(self.activation(x))))
        return self.last(x)
