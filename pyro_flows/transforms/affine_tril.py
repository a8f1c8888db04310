"""Affine map with a lower triangular matrix: a Gaussian with full covariance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .context_parameters import ContextParameters
from .core import FlowTransform
from .triangular import matvec, strictly_lower_index, triangular_solve, unpack


class AffineTril(FlowTransform):
    r"""Affine map :math:`y = L x + b` with :math:`L = e^{s}\,(I + \Lambda)`, lower triangular of positive diagonal.

    :math:`\log|\det dy/dx| = \sum_i s_i`. :math:`\Lambda` is relative to the diagonal, so that a step of an optimiser changes the
    correlations by as much whatever the scale. A standard normal becomes the normal with mean :math:`b` and covariance
    :math:`L L^\top`; with a context, mean and covariance are functions of it. Starts at the identity.

    References:
        Kucukelbir et al. (2017), *Automatic differentiation variational inference* (full-rank form),
        https://arxiv.org/abs/1603.00788

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        hidden_dims: Hidden layers of the network from the context to the offsets of the parameters.

    Raises:
        ValueError: If ``input_dim`` or ``context_dim`` is out of range.

    Example:
        >>> affine = AffineTril(2)
        >>> affine(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    index: Tensor

    def __init__(self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(input_dim, context_dim)
        self.params = ContextParameters(
            {
                "bias": torch.zeros(input_dim),
                "log_diagonal": torch.zeros(input_dim),
                "lower": torch.zeros(input_dim * (input_dim - 1) // 2),
            },
            context_dim,
            hidden_dims,
        )
        self.register_buffer("index", strictly_lower_index(input_dim), persistent=False)

    def matrix(self, context: Tensor | None = None) -> Tensor:
        """The matrix :math:`L`.

        Args:
            context: Shape ``(*, C)``, or None where ``context_dim`` is 0.

        Returns:
            Shape ``(D, D)``, with the batch shape of the context in front.
        """
        _, log_diagonal, lower = self.params(context)
        relative = unpack(lower, self.index)
        return log_diagonal.exp().unsqueeze(-1) * (
            relative + torch.eye(self.input_dim, dtype=relative.dtype, device=relative.device)
        )

    @torch.no_grad()
    def initialize(self, y: Tensor) -> None:
        """Take a standard normal to the mean and covariance of data, with the context's share as it is.

        Args:
            y: Data, ``(N, D)``.

        Raises:
            ValueError: If their covariance is not positive definite.

        Example:
            >>> affine = AffineTril(2)
            >>> affine.initialize(torch.randn(100, 2) + 5.0)
            >>> bool((affine(torch.zeros(2)) - 5.0).abs().max() < 1.0)
            True
        """
        covariance = torch.cov(y.detach().double().T).reshape(self.input_dim, self.input_dim)
        factor, info = torch.linalg.cholesky_ex(covariance)
        if int(info):
            raise ValueError(f"the covariance of {len(y)} data is not positive definite; give more, or drop constant variables")
        rows, columns = torch.tril_indices(self.input_dim, self.input_dim, offset=-1, device=y.device)
        bias, log_diagonal, lower = self.params()
        bias.copy_(y.detach().mean(0))
        log_diagonal.copy_(factor.diagonal().log())
        lower.copy_(factor[rows, columns] / factor.diagonal()[rows])

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        bias, log_diagonal, lower = self.params(context)
        y = log_diagonal.exp() * (matvec(unpack(lower, self.index), x) + x) + bias
        return y, log_diagonal.sum(-1).expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        bias, log_diagonal, lower = self.params(context)
        x = triangular_solve(unpack(lower, self.index), (y - bias) * (-log_diagonal).exp(), upper=False, unit_diagonal=True)
        return x, -log_diagonal.sum(-1).expand(y.shape[:-1])
