"""Monotone rational-quadratic spline of one variable, the map of neural spline flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Params, UnivariateMap


class RationalQuadraticSpline(UnivariateMap):
    r"""Monotone rational-quadratic spline on :math:`[-B, B]`, the identity outside.

    Within a bin of width :math:`w`, height :math:`h`, slope :math:`s = h/w`, end slopes :math:`d_0, d_1` and place
    :math:`\theta = (x - x_k)/w`,

    .. math:: y = y_k + h\,\frac{s\theta^2 + d_0\theta(1-\theta)}{s + (d_0 + d_1 - 2s)\,\theta(1-\theta)}.

    The slope is exactly 1 at :math:`\pm B`, so the map is continuously differentiable on the line. Both directions cost the same.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), *Neural spline flows*, https://arxiv.org/abs/1906.04032

    Args:
        num_bins: Number of bins K, at least 2.
        bound: Half-width B of the interval.
        min_bin: Smallest width and height of a bin, as a share of the interval.
        min_slope: Smallest slope at an inner knot.

    Raises:
        ValueError: If an argument is out of range, or ``num_bins * min_bin`` reaches 1.

    Example:
        >>> spline = RationalQuadraticSpline(num_bins=4)
        >>> x = torch.tensor([-9.0, 0.5])
        >>> y, log_det = spline.forward_and_log_det(x, spline.split(torch.zeros(2, spline.param_count)))
        >>> y
        tensor([-9.0000,  0.5000])
    """

    def __init__(self, num_bins: int = 8, bound: float = 5.0, *, min_bin: float = 1e-3, min_slope: float = 1e-3) -> None:
        super().__init__()
        if not isinstance(num_bins, int) or num_bins < 2:
            raise ValueError(f"num_bins must be an integer of at least 2, got {num_bins!r}")
        if not bound > 0:
            raise ValueError(f"bound must be positive, got {bound}")
        if not (min_bin > 0 and num_bins * min_bin < 1):
            raise ValueError(f"min_bin must be positive and num_bins * min_bin below 1, got min_bin={min_bin}, num_bins={num_bins}")
        if not 0 < min_slope < 1:
            raise ValueError(f"min_slope must lie between 0 and 1, got {min_slope}")
        self.num_bins, self.bound, self.min_bin, self.min_slope = num_bins, bound, min_bin, min_slope
        self.param_shapes = ((num_bins,), (num_bins,), (num_bins - 1,))  # widths, heights, inner slopes

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}, bound={self.bound}"

    def _knots(self, raw: Tensor) -> Tensor:
        """Knots ``(*, K + 1)`` from raw sizes ``(*, K)``; the ends are exactly -B and B."""
        sizes = self.min_bin + (1 - self.min_bin * self.num_bins) * torch.softmax(raw, -1)
        inner = self.bound * (2 * sizes[..., :-1].cumsum(-1) - 1)
        return F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)

    def _slopes(self, raw: Tensor) -> Tensor:
        slopes = self.min_slope + (1 - self.min_slope) * F.softplus(raw + math.log(math.e - 1))
        return F.pad(slopes, (1, 1), value=1.0)

    def _bin(self, at: Tensor, search: Tensor, params: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Left knots, sizes and end slopes of the bin of each point."""
        index = (at.unsqueeze(-1) >= search[..., 1:-1]).sum(-1, keepdim=True)
        pair = torch.cat([index, index + 1], -1)
        (x0, x1), (y0, y1), (d0, d1) = (knots.gather(-1, pair).unbind(-1) for knots in params)
        return x0, x1 - x0, y0, y1 - y0, d0, d1

    def _spline(self, params: Params, batch: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        xs, ys, ds = self._knots(params[0]), self._knots(params[1]), self._slopes(params[2])
        shape = (*batch, self.num_bins + 1)
        return xs.expand(shape), ys.expand(shape), ds.expand(shape)

    @staticmethod
    def _log_slope(theta: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        rest = theta * (1 - theta)
        numerator = d1 * theta.square() + 2 * s * rest + d0 * (1 - theta).square()
        denominator = s + (d0 + d1 - 2 * s) * rest
        return 2 * (s.log() - denominator.log()) + numerator.log()

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        spline = self._spline(params, x.shape)
        inside = x.abs() < self.bound
        # The clamp comes first: the branch that `where` discards then has finite gradients.
        at = x.clamp(-self.bound, self.bound)
        x0, w, y0, h, d0, d1 = self._bin(at, spline[0], spline)
        s, theta = h / w, ((at - x0) / w).clamp(0, 1)
        rest = theta * (1 - theta)
        y = y0 + h * (s * theta.square() + d0 * rest) / (s + (d0 + d1 - 2 * s) * rest)
        log_slope = self._log_slope(theta, s, d0, d1)
        return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(log_slope))

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        spline = self._spline(params, y.shape)
        inside = y.abs() < self.bound
        at = y.clamp(-self.bound, self.bound)
        x0, w, y0, h, d0, d1 = self._bin(at, spline[1], spline)
        s, rise = h / w, at - y0
        curve = rise * (d0 + d1 - 2 * s)
        a, b, c = h * (s - d0) + curve, h * d0 - curve, -s * rise
        root = (b.square() - 4 * a * c).clamp_min(torch.finfo(y.dtype).tiny).sqrt()
        theta = (2 * c / (-b - root)).clamp(0, 1)
        log_slope = self._log_slope(theta, s, d0, d1)
        return torch.where(inside, x0 + w * theta, y), torch.where(inside, -log_slope, torch.zeros_like(log_slope))
