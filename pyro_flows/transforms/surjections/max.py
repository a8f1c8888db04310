"""Largest of a group."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...nn.arguments import check_positive
from ...nn.mlp import MLP
from .base import Surjection
from .noise import joined


class Max(Surjection):
    r"""Data in groups, of each of which the latent is the largest value, :math:`x_g = \max_k y_{gk}`.

    .. math:: V = \sum_g \Big[ -\log K + \sum_{k \ne k^*} \big(\log \lambda_{g} - \lambda_{g} (x_g - y_{gk})\big) \Big]

    Which of the K is the largest is drawn evenly, the others lie below by exponential gaps, whose rates a network tells from
    latents and context. The likelihood is exact.

    References:
        Nielsen et al. (2020), *SurVAE flows*, https://arxiv.org/abs/2007.02731, table 2

    Args:
        input_dim: Number of groups G, that of the latents.
        group_size: Number K of values in a group, at least 2. Data have ``G * K`` variables, those of a group next to each other.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the network.

    Raises:
        ValueError: If ``group_size`` is below 2.

    Example:
        >>> Max(2, 3).inverse_and_log_det(torch.tensor([1.0, 5.0, 2.0, 0.0, -1.0, -1.0]))[0]
        tensor([5., 0.])
    """

    def __init__(self, input_dim: int, group_size: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(input_dim, context_dim)
        check_positive(group_size=group_size)
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2, got {group_size}")
        self.group_size = group_size
        self.output_shape = torch.Size((input_dim * group_size,))
        self.network = MLP(input_dim + context_dim, input_dim, hidden_dims, zero_init=True)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}"

    def _rate(self, x: Tensor, context: Tensor | None) -> Tensor:
        return nn.functional.softplus(self.network(joined(x, context)), beta=math.log(2)) + 1e-6

    def generate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        gaps = x.new_empty(*x.shape, self.group_size).exponential_() / self._rate(x, context)[..., None]
        largest = torch.rand_like(gaps).argmax(-1, keepdim=True)
        return (x[..., None] - gaps.scatter(-1, largest, 0.0)).flatten(-2)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the largest values ``(*, G)`` and the log-density of the others ``(*)``."""
        groups = y.unflatten(-1, (self.input_dim, self.group_size))
        x = groups.amax(-1)
        rate = self._rate(x, context)
        gaps = (x[..., None] - groups).sum(-1)
        each = (self.group_size - 1) * rate.log() - rate * gaps - math.log(self.group_size)
        return x, each.sum(-1)
