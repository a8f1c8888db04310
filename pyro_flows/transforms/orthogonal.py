"""Learnable rotation by the Cayley map or the matrix exponential."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .context_parameters import ContextParameters
from .core import FlowTransform
from .triangular import matvec, strictly_lower_index, unpack


class Orthogonal(FlowTransform):
    r"""Rotation :math:`y = Q x` with :math:`Q = (I - A)^{-1} (I + A)` (Cayley) or :math:`Q = e^A`, for a skew-symmetric :math:`A`.

    The log-determinant is zero and the inverse the transpose. The exponential reaches every rotation, the Cayley map all but those
    that turn something by half a turn. Starts at the identity.

    References:
        Golinski, Lezcano-Casado, Rainforth (2019), *Improving normalizing flows via better orthogonal parameterizations*,
        https://invertibleworkshop.github.io/INNF_2019/accepted_papers/pdfs/INNF_2019_paper_30.pdf;
        Lezcano-Casado, Martínez-Rubio (2019), *Cheap orthogonal constraints in neural networks*, https://arxiv.org/abs/1901.08428

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        method: ``"cayley"`` or ``"exponential"``.
        hidden_dims: Hidden layers of the network from the context to the offsets of the matrix.

    Raises:
        ValueError: If ``method`` is neither.

    Example:
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(Orthogonal(3)(x), x)
        True
    """

    index: Tensor

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        method: Literal["cayley", "exponential"] = "cayley",
        hidden_dims: Sequence[int] = (64,),
    ) -> None:
        super().__init__(input_dim, context_dim)
        if method not in ("cayley", "exponential"):
            raise ValueError(f'method must be "cayley" or "exponential", got {method!r}')
        self.method = method
        packed = input_dim * (input_dim - 1) // 2
        self.params = ContextParameters({"lower": torch.zeros(packed)}, context_dim if packed else 0, hidden_dims)
        self.register_buffer("index", strictly_lower_index(input_dim), persistent=False)

    def extra_repr(self) -> str:
        return f"method={self.method!r}"

    def matrix(self, context: Tensor | None = None) -> Tensor:
        """The matrix :math:`Q`, ``(D, D)`` or ``(*, D, D)``.

        Args:
            context: Shape ``(*, C)``, or None where ``context_dim`` is 0.
        """
        (packed,) = self.params(context)
        lower = unpack(packed, self.index)
        skew = lower - lower.mT
        if self.method == "exponential":
            return torch.linalg.matrix_exp(skew)
        eye = torch.eye(self.input_dim, dtype=skew.dtype, device=skew.device)
        return torch.linalg.inv(eye - skew) @ (eye + skew)  # torch's solve is wrong under vmap of forward mode

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and zeros of shape ``(*)``."""
        return matvec(self.matrix(context), x), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and zeros of shape ``(*)``."""
        return matvec(self.matrix(context).mT, y), y.new_zeros(y.shape[:-1])
