"""Normalisation by the moments of batches, with a defined evaluation mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .core import FlowTransform


class BatchNorm(FlowTransform):
    r"""Batch normalisation :math:`y = e^{\gamma} (x - m) / \sqrt{v + \epsilon} + \beta` of every variable.

    :math:`\log|\det dy/dx| = \sum_i \gamma_i - \tfrac12 \log(v_i + \epsilon)`.

    In evaluation mode m and v are running moments, rows do not depend on each other, and this is a transform like any other. In
    training mode the forward direction takes mean and variance of the batch at hand, and the running moments follow them; what it
    then gives is no density of single rows. The inverse takes the running moments in either mode. A flow from noise to data that is
    trained by maximum likelihood therefore contains ``BatchNorm(D).inv``, whose scoring direction normalises. It starts as the
    identity in evaluation mode.

    ActNorm does the same from one batch, without two modes, and is the better choice in most flows.

    References:
        Ioffe, Szegedy (2015), *Batch normalization*, https://arxiv.org/abs/1502.03167;
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803, section 3.7

    Args:
        input_dim: Number ``D`` of variables.
        momentum: Share of a batch in the running moments. Above 0, at most 1.
        eps: Added to variances. Must be positive.

    Raises:
        ValueError: If an argument is out of range, or, in training mode, a batch has fewer than two rows.

    Example:
        >>> norm = BatchNorm(1)
        >>> y = norm(torch.tensor([[1.0], [3.0]]))
        >>> [round(value, 3) for value in y.flatten().tolist()]
        [-1.0, 1.0]
        >>> bool(torch.equal(norm.eval()(torch.ones(1)), norm(torch.tensor([[1.0], [9.0]]))[0]))
        True
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, input_dim: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(input_dim)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1, got {momentum}")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {eps}")
        self.momentum, self.eps = momentum, eps
        self.log_gain = nn.Parameter(torch.zeros(input_dim))
        self.bias = nn.Parameter(torch.zeros(input_dim))
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("variance", torch.full((input_dim,), 1 - eps))

    @property
    def caches(self) -> bool:
        """Not in training mode, in which the two directions are not each other's inverse."""
        return not self.training

    def extra_repr(self) -> str:
        return f"{self.input_dim}, momentum={self.momentum}, eps={self.eps}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        mean, variance = self._batch_moments(x) if self.training else (self.mean, self.variance)
        log_scale = self.log_gain - 0.5 * (variance + self.eps).log()
        return (x - mean) * log_scale.exp() + self.bias, log_scale.sum(-1).expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``, by the running moments."""
        log_scale = 0.5 * (self.variance + self.eps).log() - self.log_gain
        return (y - self.bias) * log_scale.exp() + self.mean, log_scale.sum(-1).expand(y.shape[:-1])

    def _batch_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, self.input_dim)
        if len(rows) < 2:
            raise ValueError(
                f"x must hold at least two rows in training mode, got shape {tuple(x.shape)}; call .eval() to score few"
            )
        mean, variance = rows.mean(0), rows.var(0, correction=0)
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance, self.momentum)
        return mean, variance
