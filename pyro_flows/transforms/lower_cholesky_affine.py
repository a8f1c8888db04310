"""Fixed affine map by a location and a Cholesky factor, which carries a guide from whitened to model coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from .core import FlowTransform
from .triangular import triangular_solve


class LowerCholeskyAffine(FlowTransform):
    r"""Fixed affine map :math:`y = L x + \mu` with a lower triangular :math:`L` of positive diagonal.

    :math:`\log|\det \partial y/\partial x| = \sum_i \log L_{ii}`. Location and factor are buffers: nothing here is learned, but
    everything is saved. Both directions cost one triangular product or solve, or one multiplication where :math:`L` is diagonal.

    Args:
        loc: Location :math:`\mu`, ``(D,)``.
        scale_tril: Factor :math:`L`, ``(D, D)``, or its diagonal, ``(D,)``.

    Raises:
        ValueError: If the shapes do not fit or the diagonal is not positive and finite.

    Example:
        >>> t = LowerCholeskyAffine(torch.zeros(2), torch.tensor([1.0, 10.0]))
        >>> t(torch.ones(2))
        tensor([ 1., 10.])
    """

    loc: Tensor
    scale_tril: Tensor

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        if loc.dim() != 1:
            raise ValueError(f"loc must have shape (D,), got {tuple(loc.shape)}")
        super().__init__(loc.shape[0])
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale_tril", self._validated(scale_tril))

    def _validated(self, scale_tril: Tensor) -> Tensor:
        if scale_tril.dim() == 1:
            scale_tril = scale_tril.diag()
        if scale_tril.shape != (self.input_dim, self.input_dim):
            raise ValueError(
                f"scale_tril must have shape ({self.input_dim}, {self.input_dim}) or ({self.input_dim},), "
                f"got {tuple(scale_tril.shape)}"
            )
        diagonal = scale_tril.diagonal()
        if not bool((torch.isfinite(diagonal) & (diagonal > 0)).all()):
            raise ValueError(f"scale_tril must have a positive finite diagonal, got {diagonal.tolist()}")
        return scale_tril.detach().tril().clone()

    @torch.no_grad()
    def set(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Replace location, ``(D,)``, and factor, ``(D, D)`` or its diagonal ``(D,)``, in place.

        Raises:
            ValueError: As the constructor.
        """
        if loc.shape != self.loc.shape:
            raise ValueError(f"loc must have shape {tuple(self.loc.shape)}, got {tuple(loc.shape)}")
        self.scale_tril.copy_(self._validated(scale_tril))
        self.loc.copy_(loc)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = self.scale_tril.diagonal().log().sum()
        return x @ self.scale_tril.mT + self.loc, log_det.expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = -self.scale_tril.diagonal().log().sum()
        x = triangular_solve(self.scale_tril, y - self.loc, upper=False)
        return x, log_det.expand(y.shape[:-1])
