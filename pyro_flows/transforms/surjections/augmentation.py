"""Variables that a flow has and data have not."""

from __future__ import annotations

import torch
from torch import Tensor

from ...nn.arguments import check_positive
from ..core import FlowTransform
from .base import Surjection
from .noise import FlowNoise, joined


class Augmentation(Surjection):
    r"""Data y that are the first of the latents :math:`x = (y, e)`; the others are drawn from :math:`q(e \mid y, c)`.

    .. math:: V = -\log q(e \mid y, c)

    A wider flow can take apart what a bijection of the data's own dimension cannot. The likelihood is a lower bound, in one draw.

    References:
        Huang, Dinh, Courville (2020), *Augmented normalizing flows*, https://arxiv.org/abs/2002.07101;
        Nielsen et al. (2020), *SurVAE flows*, https://arxiv.org/abs/2007.02731, table 1

    Args:
        output_dim: Number of variables of the data.
        num_more: Number of the others.
        context_dim: Size of the context; 0 for none.
        more: Flow from noise to the others, ``(num_more,)`` with ``context_dim`` of ``output_dim + context_dim``; normal if None.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> Augmentation(2, 3)(torch.arange(5.0))
        tensor([0., 1.])
    """

    log_det_kind = "bound"

    def __init__(self, output_dim: int, num_more: int, context_dim: int = 0, *, more: FlowTransform | None = None) -> None:
        check_positive(output_dim=output_dim, num_more=num_more)
        super().__init__(output_dim + num_more, context_dim)
        self.output_shape = torch.Size((output_dim,))
        self.more = FlowNoise("more", num_more, output_dim + context_dim, more)

    def generate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x[..., : self.output_shape[0]]

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return data and drawn variables ``(*, D)``, and minus the log-density of the latter ``(*)``."""
        more, log_prob = self.more.draw(joined(y, context))
        return torch.cat([y, more], -1), -log_prob
