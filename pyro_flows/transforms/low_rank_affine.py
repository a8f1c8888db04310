"""Affine map whose matrix is a diagonal and a few directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .context_parameters import ContextParameters
from .core import FlowTransform
from .triangular import matvec


class LowRankAffine(FlowTransform):
    r"""Affine map :math:`y = e^{s} \odot (x + U U^\top x) + b` with ``rank`` columns of :math:`U`.

    The matrix :math:`I + U U^\top` is positive definite, so the map is invertible whatever :math:`U` is:
    :math:`\log|\det dy/dx| = \sum_i s_i + \log\det(I_R + U^\top U)`, and the inverse is Woodbury's, :math:`(I + U U^\top)^{-1} =
    I - U (I_R + U^\top U)^{-1} U^\top`. Both directions cost :math:`O(D R + R^3)`. A standard normal becomes a normal whose
    covariance is a diagonal and R directions. Starts near the identity: columns are small and random, for at zero nothing would
    move them.

    References:
        Ong, Nott, Smith (2018), *Gaussian variational approximation with a factor covariance structure*,
        https://arxiv.org/abs/1701.03208

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        rank: Number R of directions; default: about the square root of ``D``.
        hidden_dims: Hidden layers of the network from the context to the offsets of the parameters.

    Raises:
        ValueError: If ``rank`` is not between 1 and ``D``.

    Example:
        >>> layer = LowRankAffine(9)
        >>> layer.rank
        3
    """

    def __init__(
        self, input_dim: int, context_dim: int = 0, *, rank: int | None = None, hidden_dims: Sequence[int] = (64,)
    ) -> None:
        super().__init__(input_dim, context_dim)
        rank = max(1, round(input_dim**0.5)) if rank is None else rank
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= input_dim:
            raise ValueError(f"rank must be an integer between 1 and input_dim = {input_dim}, got {rank!r}")
        self.rank = rank
        start = {
            "bias": torch.zeros(input_dim),
            "log_scale": torch.zeros(input_dim),
            "directions": 0.05 * torch.randn(input_dim, rank) / input_dim**0.5,
        }
        self.params = ContextParameters(start, context_dim, hidden_dims)

    def extra_repr(self) -> str:
        return f"rank={self.rank}"

    def _inner(self, directions: Tensor) -> Tensor:
        """The factor of :math:`I_R + U^T U`."""
        eye = torch.eye(self.rank, dtype=directions.dtype, device=directions.device)
        return torch.linalg.cholesky(eye + directions.mT @ directions)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bias, log_scale, directions = self.params(context)
        y = log_scale.exp() * (x + matvec(directions, matvec(directions.mT, x))) + bias
        log_det = log_scale.sum(-1) + 2 * self._inner(directions).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return y, log_det.expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bias, log_scale, directions = self.params(context)
        factor = self._inner(directions)
        scaled = (y - bias) * (-log_scale).exp()
        projected = matvec(directions.mT, scaled)
        solved = torch.cholesky_solve(projected.unsqueeze(-1), factor.expand(*projected.shape[:-1], *factor.shape[-2:])).squeeze(-1)
        log_det = -log_scale.sum(-1) - 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return scaled - matvec(directions, solved), log_det.expand(y.shape[:-1])
