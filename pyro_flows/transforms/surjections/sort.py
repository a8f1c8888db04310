"""Sorting."""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows.solvers.mode import is_eager

from .base import Surjection


class Sort(Surjection):
    r"""Exchangeable data: the latents are the sorted values, :math:`V = -\log D!`.

    The density of the data does not change when variables are permuted. The likelihood is exact. Latents increase: before it stands
    a flow to increasing vectors, for instance one that ends with ``TorchTransform(constraints.ordered_vector, (D,))`` of
    ``pyro.distributions.constraints``; ``flows.of_exchangeable`` puts one there.

    References:
        Nielsen et al. (2020), *SurVAE flows*, https://arxiv.org/abs/2007.02731, table 2

    Args:
        input_dim: Number of variables D.

    Example:
        >>> Sort(3).inverse_and_log_det(torch.tensor([2.0, 1.0, 3.0]))
        (tensor([1., 2., 3.]), tensor(-1.7918))
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.domain = constraints.ordered_vector

    def generate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x.gather(-1, torch.rand_like(x).argsort(-1))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return sorted values ``(*, D)`` and the log-probability of their order ``(*)``."""
        x = y.sort(-1).values
        if is_eager() and bool((x.diff(dim=-1) == 0).any()):
            raise ValueError("y has ties, which have no order; drop these rows, or add noise of the size of their rounding")
        return x, y.new_full(y.shape[:-1], -math.lgamma(self.input_dim + 1))
