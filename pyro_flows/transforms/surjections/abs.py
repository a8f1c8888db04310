"""Absolute value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_flows.solvers.mode import is_eager

from ...nn.mlp import MLP
from .base import Surjection
from .noise import joined


class Abs(Surjection):
    r"""Data whose absolute values are the latents, :math:`x = |y|`, with signs drawn given these.

    .. math:: V = \sum_i \log p(s_i \mid x, c), \qquad y_i = s_i x_i

    Symmetric data need half the flow. The likelihood is exact. Latents are positive: before it stands a flow to positive values,
    for instance one that ends with ``TorchTransform(constraints.positive, (D,))``; ``flows.of_symmetric``
    puts one there.

    References:
        Nielsen et al. (2020), *SurVAE flows*, https://arxiv.org/abs/2007.02731, table 2

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        symmetric: Whether both signs are equally likely; else a network of latents and context tells.
        hidden_dims: Hidden layers of that network.

    Example:
        >>> Abs(2).inverse_and_log_det(torch.tensor([-1.0, 3.0]))
        (tensor([1., 3.]), tensor(-1.3863))
    """

    def __init__(self, input_dim: int, context_dim: int = 0, *, symmetric: bool = True, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(input_dim, context_dim)
        self.domain = constraints.independent(constraints.positive, 1)
        self.network = None if symmetric else MLP(input_dim + context_dim, input_dim, hidden_dims, zero_init=True)

    def _logits(self, x: Tensor, context: Tensor | None) -> Tensor:
        return torch.zeros_like(x) if self.network is None else self.network(joined(x, context))

    def generate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.where(torch.rand_like(x) < self._logits(x, context).sigmoid(), x, -x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return absolute values ``(*, D)`` and the log-probability of the signs ``(*)``."""
        if is_eager() and bool((y == 0).any()):
            raise ValueError("y has exact zeros, which have no sign; drop these rows, or add noise of the size of their rounding")
        x = y.abs()
        logits = self._logits(x, context)
        return x, nn.functional.logsigmoid(torch.where(y < 0, -logits, logits)).sum(-1)
