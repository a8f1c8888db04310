"""Invertible linear map by its LU factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .context_parameters import ContextParameters
from .core import FlowTransform
from .permutation import Permutation
from .triangular import matvec, strictly_lower_index, triangular_solve, unpack


class LULinear(FlowTransform):
    r"""Linear map :math:`y = P L (U + \mathrm{diag}(e^{s})) x + b`.

    :math:`P` is a fixed permutation, :math:`L` unit lower and :math:`U` strictly upper triangular;
    :math:`\log|\det dy/dx| = \sum_i s_i`. Both directions cost :math:`O(D^2)`. It mixes the variables between
    couplings. Starts at the identity (at :math:`P`, where a permutation is given).

    References:
        Kingma, Dhariwal (2018), *Glow*, https://arxiv.org/abs/1807.03039

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        permutation: Order that :math:`P` gives to the variables; default: the identity.
        hidden_dims: Hidden layers of the network from the context to the offsets of the parameters.

    Raises:
        ValueError: If ``permutation`` is not a permutation of ``0 … D-1``.

    Example:
        >>> linear = LULinear(3)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(linear(x), x)
        True
    """

    index: Tensor

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        permutation: Sequence[int] | Tensor | None = None,
        hidden_dims: Sequence[int] = (64,),
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.permutation = Permutation(list(range(input_dim)) if permutation is None else permutation)
        if self.permutation.input_dim != input_dim:
            raise ValueError(f"permutation must have {input_dim} entries, got {self.permutation.input_dim}")
        packed = input_dim * (input_dim - 1) // 2
        self.params = ContextParameters(
            {
                "bias": torch.zeros(input_dim),
                "log_diagonal": torch.zeros(input_dim),
                "lower": torch.zeros(packed),
                "upper": torch.zeros(packed),
            },
            context_dim,
            hidden_dims,
        )
        self.register_buffer("index", strictly_lower_index(input_dim), persistent=False)

    @property
    def sign(self) -> int:
        """The sign of the Jacobian determinant, that of the permutation."""
        return self.permutation.sign

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        bias, log_diagonal, lower, upper = self.params(context)
        h = matvec(unpack(upper, self.index.mT), x) + log_diagonal.exp() * x
        h = matvec(unpack(lower, self.index), h) + h
        y = h[..., self.permutation.permutation] + bias
        return y, log_diagonal.sum(-1).expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        bias, log_diagonal, lower, upper = self.params(context)
        h = (y - bias)[..., self.permutation.inverse_permutation]
        h = triangular_solve(unpack(lower, self.index), h, upper=False, unit_diagonal=True)
        x = triangular_solve(unpack(upper, self.index.mT) + torch.diag_embed(log_diagonal.exp()), h, upper=True)
        return x, -log_diagonal.sum(-1).expand(y.shape[:-1])
