"""Learnable rotation as a product of reflections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .context_parameters import ContextParameters
from .core import FlowTransform
from .reflections import reflect


class Householder(FlowTransform):
    r"""Orthogonal map :math:`y = H_1 \cdots H_K x` with reflections :math:`H_k = I - 2 v_k v_k^\top / |v_k|^2`.

    The log-determinant is zero and the inverse the transpose. Neighbours start with equal vectors, so that each pair is
    the identity; an odd number of reflections cannot be, and starts as a single reflection. With ``D`` reflections (or
    one more) every rotation can be reached.

    References:
        Tomczak, Welling (2016), *Improving variational auto-encoders using Householder flow*,
        https://arxiv.org/abs/1611.09630

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        num_reflections: Number ``K`` of reflections; default: ``D``, rounded up to an even number.
        hidden_dims: Hidden layers of the network from the context to the offsets of the vectors.

    Raises:
        ValueError: If ``num_reflections`` is not positive.

    Example:
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(Householder(3)(x), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        num_reflections: int | None = None,
        hidden_dims: Sequence[int] = (64,),
    ) -> None:
        super().__init__(input_dim, context_dim)
        if num_reflections is None:
            num_reflections = input_dim + input_dim % 2
        if num_reflections < 1:
            raise ValueError(f"num_reflections must be at least 1, got {num_reflections}")
        self.num_reflections = num_reflections
        pairs = torch.randn((num_reflections + 1) // 2, input_dim)
        pairs = pairs / torch.linalg.vector_norm(pairs, dim=-1, keepdim=True)
        vectors = pairs.repeat_interleave(2, dim=0)[:num_reflections]
        self.params = ContextParameters({"vectors": vectors}, context_dim, hidden_dims)

    @property
    def sign(self) -> int:
        """The sign of the Jacobian determinant, that of the number of reflections."""
        return -1 if self.num_reflections % 2 else 1

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and zeros of shape ``(*)``."""
        (vectors,) = self.params(context)
        return reflect(x, vectors), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and zeros of shape ``(*)``."""
        (vectors,) = self.params(context)
        return reflect(y, vectors, transpose=True), y.new_zeros(y.shape[:-1])
