"""Coordinates of the simplex without a distinguished component."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.transforms.core import FlowTransform

from .geometry import SIMPLEX, check_on_simplex, helmert, log_volume


class IsometricLogRatio(FlowTransform):
    r"""From the plane to the simplex, :math:`p = \mathrm{softmax}(V^\top z)`; its inverse are the coordinates :math:`z = V \log p`.

    V is an orthonormal basis of the vectors that sum to zero; :math:`\log|\det| = \sum_i \log p_i + \tfrac12 \log n`, for
    densities with regard to all but one of the p, as that of a Dirichlet distribution. With a flow before it, it is a flow on the
    simplex.

    References:
        Egozcue, Pawlowsky-Glahn, Mateu-Figueras, Barceló-Vidal (2003), *Isometric logratio transformations for compositional data
        analysis*, https://doi.org/10.1023/A:1023818214614

    Args:
        num_components: Number n of components, at least 2. Noise has ``n - 1`` variables.

    Raises:
        ValueError: If ``num_components`` is below 2, or a point is off the simplex or has an exact zero.

    Example:
        >>> IsometricLogRatio(3)(torch.zeros(2))
        tensor([0.3333, 0.3333, 0.3333])
    """

    codomain = SIMPLEX

    def __init__(self, num_components: int) -> None:
        if not isinstance(num_components, int) or isinstance(num_components, bool) or num_components < 2:
            raise ValueError(f"num_components must be an integer of at least 2, got {num_components!r}")
        super().__init__(num_components - 1)
        self.output_shape = torch.Size((num_components,))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return p of shape ``(*, n)`` and the log-determinant of shape ``(*)``."""
        log_p = (x @ helmert(self.input_dim + 1, x)).log_softmax(-1)
        return log_p.exp(), log_p.sum(-1) + 0.5 * torch.log(torch.full_like(log_p[..., 0], log_p.shape[-1]))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z of shape ``(*, n - 1)`` and the log-determinant of the inverse, shape ``(*)``."""
        check_on_simplex(y, "y")
        return y.log() @ helmert(self.input_dim + 1, y).mT, -log_volume(y)
