"""Variables that leave the flow, with a density given the others."""

from __future__ import annotations

import torch
from torch import Tensor

from ...nn.arguments import check_positive
from ..core import FlowTransform
from .base import Surjection
from .noise import FlowNoise, joined


class Slice(Surjection):
    r"""Data :math:`y = (x, z)` of which the first variables are latents and the rest have a density given these.

    .. math:: V = \log p(z \mid x, c)

    So that a flow is as wide as what it has to learn. The likelihood is exact.

    References:
        Nielsen et al. (2020), *SurVAE flows*, https://arxiv.org/abs/2007.02731, table 1

    Args:
        input_dim: Number of latents D.
        num_rest: Number of the other variables.
        context_dim: Size of the context; 0 for none.
        rest: Flow from noise to these, ``(num_rest,)`` with ``context_dim`` of ``D + context_dim``; normal if None.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> Slice(2, 3).inverse_and_log_det(torch.arange(5.0))[0]
        tensor([0., 1.])
    """

    def __init__(self, input_dim: int, num_rest: int, context_dim: int = 0, *, rest: FlowTransform | None = None) -> None:
        super().__init__(input_dim, context_dim)
        check_positive(num_rest=num_rest)
        self.output_shape = torch.Size((input_dim + num_rest,))
        self.rest = FlowNoise("rest", num_rest, input_dim + context_dim, rest)

    def generate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.cat([x, self.rest.draw(joined(x, context))[0]], -1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the first variables ``(*, D)`` and the log-density of the others ``(*)``."""
        x, rest = y[..., : self.input_dim], y[..., self.input_dim :]
        return x, self.rest.log_prob(rest, joined(x, context))
