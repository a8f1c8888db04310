"""A fixed reordering of the variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .column_transform import ColumnTransform, Needs, Record


class Permutation(ColumnTransform):
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

    def arithmetic(
        self, columns: Tensor, context: Tensor | None, parameters: Sequence[Tensor], inverse: bool
    ) -> tuple[Tensor, Tensor]:
        order = self.inverse_permutation if inverse else self.permutation
        return columns.index_select(0, order), columns.new_zeros(columns.shape[1])

    def through(self, columns: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, None, Record]:
        orders = self.permutation, self.inverse_permutation
        record = Order(*(orders[::-1] if inverse else orders))
        return record.pushed(columns), None, record


class Order(NamedTuple):
    """An order of rows, and the way back.

    Args:
        order: Which row stands where, ``(D,)``.
        back_again: The inverse of it.

    Example:
        >>> Order(torch.tensor([1, 0]), torch.tensor([1, 0])).pushed(torch.tensor([[1.0], [2.0]])).flatten()
        tensor([2., 1.])
    """

    order: Tensor
    back_again: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """None: buffers are not changed."""
        return []

    def holding(self, tensors: Sequence[Any]) -> Order:
        """This."""
        return self

    def spent(self) -> Order:
        """This."""
        return self

    def back(self, g_columns: Tensor, g_log_det: Tensor, needs: Needs) -> tuple[Tensor, None, tuple[()]]:
        """Gradients return in the order before."""
        return g_columns.index_select(0, self.back_again), None, ()

    def pushed(self, score: Tensor) -> Tensor:
        """The score in this order."""
        return score.index_select(0, self.order)
