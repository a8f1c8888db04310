"""Pixels between 0 and 1, as values on the line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_flows.solvers.mode import is_eager

from .core import FlowTransform
from .event_shape import check_event_shape


class LogitPreprocessing(FlowTransform):
    r"""From the line to pixels :math:`y = (\sigma(x) - \alpha) / (1 - 2 \alpha)`, of which those between 0 and 1 are data.

    Its inverse :math:`x = \operatorname{logit}(\alpha + (1 - 2 \alpha) y)` is the usual preprocessing of images, here with its
    Jacobian :math:`\log|\det dy/dx| = \sum_i \log \sigma(x_i) + \log \sigma(-x_i) - \log(1 - 2 \alpha)`, so that densities are
    those of the pixels.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803, section 4.1

    Args:
        event_shape: Shape of an event, ``(C, H, W)`` for instance.
        alpha: Half of what is taken off the interval, from 0 to below 1/2.

    Raises:
        ValueError: If ``alpha`` is out of range, or a pixel is outside of the image of the line.

    Example:
        >>> LogitPreprocessing((2,)).inv(torch.tensor([0.5, 1.0]))
        tensor([0.0000, 2.9444])
    """

    def __init__(self, event_shape: Sequence[int], alpha: float = 0.05) -> None:
        shape = check_event_shape(event_shape)
        super().__init__(math.prod(shape))
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be from 0 to below 0.5, got {alpha}")
        self.event_shape = shape
        self.alpha = float(alpha)
        self._width = 1 - 2 * self.alpha
        low, high = -self.alpha / self._width, (1 - self.alpha) / self._width
        self.domain = constraints.independent(constraints.real, len(shape))
        self.codomain = constraints.independent(constraints.interval(low, high), len(shape))

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, alpha={self.alpha}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return pixels ``(*, C, H, W)`` and the log-determinant ``(*)``."""
        return (x.sigmoid() - self.alpha) / self._width, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return values on the line ``(*, C, H, W)`` and the log-determinant of the inverse ``(*)``."""
        share = self.alpha + self._width * y
        if is_eager() and not bool(((share > 0) & (share < 1)).all()):
            low, high, most = float(y.detach().min()), float(y.detach().max()), (1 - self.alpha) / self._width
            raise ValueError(
                f"y must hold pixels inside ({1 - most:.4g}, {most:.4g}), got values from {low:.6g} to {high:.6g}; "
                f"bring pixels to the unit interval, by Dequantization for instance"
            )
        x = share.log() - torch.log1p(-share)
        return x, -self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        softplus = nn.functional.softplus
        log_slope = -softplus(x) - softplus(-x) - math.log(self._width)
        dims = len(self.event_shape)
        return log_slope.sum(tuple(range(-dims, 0))) if dims else log_slope
