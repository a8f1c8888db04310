"""Fixed rotation of a sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import SphereTransform


class Rotation(SphereTransform):
    r"""Rotation or reflection :math:`y = Q x` by a fixed orthogonal matrix; :math:`\log R = 0`.

    Args:
        matrix: The matrix Q, ``(n, n)``.

    Raises:
        ValueError: If the matrix is not orthogonal as far as its dtype allows.

    Example:
        >>> Rotation(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))(torch.tensor([1.0, 0.0]))
        tensor([0., 1.])
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        super().__init__(len(matrix))
        error = float((matrix @ matrix.mT - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)).abs().max())
        if not error <= 1e3 * torch.finfo(matrix.dtype).eps:
            raise ValueError(
                f"matrix must be orthogonal, and Q Q' is off the identity by {error:.3g}; take Q of its QR decomposition"
            )
        self.register_buffer("matrix", matrix.detach().clone())

    @property
    def sign(self) -> int:
        """Minus one for a reflection."""
        return 1 if float(torch.linalg.det(self.matrix)) > 0 else -1

    def on_sphere(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        y = at @ (self.matrix if inverse else self.matrix.mT)
        return y / y.norm(dim=-1, keepdim=True), at.new_zeros(at.shape[:-1])
