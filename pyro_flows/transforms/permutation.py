"""A fixed reordering of the variables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .columns import from_columns, permute_rows, to_columns
from .core import FlowTransform


class Permutation(FlowTransform):
    r"""Reorder the variables, :math:`y_i = x_{\pi(i)}`; the log-determinant is zero.

    The order is a buffer, so that ``state_dict`` carries it: a random permutation survives saving and loading.

    Args:
        permutation: The order :math:`\pi`, each of ``0 … D-1`` once.

    Raises:
        ValueError: If ``permutation`` is not a permutation.

    Example:
        >>> Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))
        tensor([12., 10., 11.])
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: Sequence[int] | Tensor) -> None:
        device = permutation.device if isinstance(permutation, Tensor) else None
        order = permutation.tolist() if isinstance(permutation, Tensor) else list(permutation)
        size = len(order) if isinstance(order, list) else 0
        if not isinstance(order, list) or any(isinstance(i, list) for i in order) or sorted(order) != list(range(size)):
            raise ValueError(f"permutation must hold each of 0 … {max(size - 1, 0)} once in one dimension, got {order}")
        super().__init__(size)
        self.register_buffer("permutation", torch.tensor(order, device=device, dtype=torch.long))
        self.register_buffer(
            "inverse_permutation", torch.tensor([order.index(i) for i in range(size)], device=device, dtype=torch.long)
        )

    @classmethod
    def reverse(cls, input_dim: int) -> Permutation:
        """The reversed order.

        Args:
            input_dim: Number of variables.
        """
        return cls(list(range(input_dim - 1, -1, -1)))

    @classmethod
    def random(cls, input_dim: int, generator: torch.Generator | None = None) -> Permutation:
        """A random order.

        Args:
            input_dim: Number of variables.
            generator: Source of randomness; default: torch's own.
        """
        device = "cpu" if generator is None else generator.device
        return cls(torch.randperm(input_dim, generator=generator, device=device))

    @property
    def sign(self) -> int:
        """The sign of the Jacobian determinant: +1 for an even permutation, -1 for an odd one."""
        order = self.permutation.tolist()
        seen: set[int] = set()
        cycles = 0
        for first in order:
            cycles += first not in seen
            while first not in seen:
                seen.add(first)
                first = order[first]
        return -1 if (len(order) - cycles) % 2 else 1

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and zeros of shape ``(*)``."""
        return self._reorder(x, self.permutation, self.inverse_permutation), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and zeros of shape ``(*)``."""
        return self._reorder(y, self.inverse_permutation, self.permutation), y.new_zeros(y.shape[:-1])

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        score = score.detach().expand(x.shape)
        return y, log_det, self._reorder(score, self.permutation, self.inverse_permutation)

    @staticmethod
    def _reorder(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        return from_columns(permute_rows(to_columns(x), order, back), x.shape[:-1])
