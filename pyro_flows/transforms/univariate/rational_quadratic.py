"""Monotone rational-quadratic spline of one variable, the map of neural spline flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Params, UnivariateMap

_LOG_2 = math.log(2.0)


class RationalQuadraticSpline(UnivariateMap):
    r"""Monotone rational-quadratic spline on :math:`[-B, B]`, the identity outside.

    Within a bin with left ends :math:`x_k, y_k`, width :math:`w`, height :math:`h`, slope :math:`s = h/w`, slopes
    :math:`d_0, d_1` at its ends and place :math:`\theta = (x - x_k)/w`, :math:`\bar\theta = 1 - \theta`,

    .. math:: y = y_k + h\,\frac{\theta a}{q},\quad \frac{dy}{dx} = \frac{s^2}{q^2}(\theta b + \bar\theta a),\quad
        a = s\theta + d_0\bar\theta,\ b = d_1\theta + s\bar\theta,\ q = \theta a + \bar\theta b.

    The slope is exactly 1 at :math:`\pm B`, so the map is continuously differentiable on the line. Both directions are
    sums of positive terms, without cancellation, and cost the same.

    References:
        Gregory, Delbourgo (1982), *Piecewise rational quadratic interpolation to monotonic data*,
        https://doi.org/10.1093/imanum/2.2.123;
        Durkan, Bekasov, Murray, Papamakarios (2019), *Neural spline flows*, https://arxiv.org/abs/1906.04032

    Args:
        num_bins: Number of bins K, at least 2. There are ``3 * K - 1`` raw parameters: K for the widths, K for the
            heights, K - 1 for the slopes at the inner knots.
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
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound}")
        if not (min_bin > 0 and num_bins * min_bin < 1):
            raise ValueError(f"min_bin must be positive and num_bins * min_bin below 1, got min_bin={min_bin}, num_bins={num_bins}")
        if not 0 < min_slope < 1:
            raise ValueError(f"min_slope must lie between 0 and 1, got {min_slope}")
        self.num_bins, self.bound, self.min_bin, self.min_slope = num_bins, float(bound), min_bin, min_slope
        self.param_shapes = ((3 * num_bins - 1,),)

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}, bound={self.bound}"

    def _knots(self, sizes: Tensor) -> Tensor:
        """Knots ``(2, K + 1, *)``, of x and of y; the ends are exactly -B and B."""
        K, B = self.num_bins, self.bound
        shares = sizes.unflatten(0, (2, K)).softmax(1)
        # How far each knot is from its place in the equidistant grid, which is 0 at both ends.
        moved = F.pad((shares - 1 / K).cumsum(1)[:, :-1], (0, 0) * (sizes.dim() - 1) + (1, 1))
        grid = torch.linspace(-B, B, K + 1, device=sizes.device, dtype=sizes.dtype)
        return torch.add(grid.reshape(-1, *(1,) * (sizes.dim() - 1)), moved, alpha=2 * B * (1 - K * self.min_bin))

    def _bin(self, at: Tensor, raw: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Left ends, sizes and end slopes of the bin of each point; ``axis`` 0 searches in x, 1 in y."""
        K = self.num_bins
        # Bins come first: reductions over a short last dimension are slow, softmax above all (20 times, K = 8).
        raw = raw[(None,) * (at.dim() + 1 - raw.dim())].movedim(-1, 0).contiguous()
        sizes, slopes = raw.split([2 * K, K - 1])
        knots = self._knots(sizes)
        left = (at >= knots[axis, 1:-1]).sum(0, keepdim=True)
        pair = torch.cat([left, left + 1])
        knots = knots.expand(2, K + 1, *at.shape).gather(1, pair.expand(2, 2, *at.shape))
        x0, x1, y0, y1 = knots.flatten(0, 1).unbind()
        # The padding is the raw value of slope 1. Picking before mapping leaves two slopes to compute instead of K + 1.
        slopes = F.pad(slopes, (0, 0) * at.dim() + (1, 1)).expand(K + 1, *at.shape).gather(0, pair)
        slopes = F.softplus(slopes, beta=_LOG_2)
        d0, d1 = torch.add(slopes, 1 - slopes, alpha=self.min_slope).unbind()
        return x0, x1 - x0, y0, y1 - y0, d0, d1

    @staticmethod
    def _log_slope(s: Tensor, a: Tensor, b: Tensor, q: Tensor, theta: Tensor) -> Tensor:
        ratio = s / q
        return (torch.lerp(a, b, theta) * ratio * ratio).log()

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        # The clamp comes first: the branch that `where` discards then has finite gradients.
        at = x.clamp(-self.bound, self.bound)
        outside = at != x
        x0, w, y0, h, d0, d1 = self._bin(at, params[0], 0)
        s, theta = h / w, (at - x0) / w
        a, b = torch.lerp(d0, s, theta), torch.lerp(s, d1, theta)
        q = torch.lerp(b, a, theta)
        y = torch.addcmul(y0, h, theta * a / q)
        return torch.where(outside, x, y), self._log_slope(s, a, b, q, theta).masked_fill(outside, 0.0)

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        at = y.clamp(-self.bound, self.bound)
        outside = at != y
        x0, w, y0, h, d0, d1 = self._bin(at, params[0], 1)
        s, below = h / w, at - y0
        above = h - below
        # The quadratic a θ² + b θ + c = 0 of the usual form has b = g + 2 s·below and the discriminant
        # g² + 4 s² below·above, a sum of squares; either sign of g has a form of θ with positive terms only.
        g = d0 * above - d1 * below
        s_below, s_above = s * below, s * above
        root = torch.addcmul(g.square(), s_below, s_above, value=4).sqrt()
        rising = g >= 0
        sum_ = root + torch.where(rising, g, -g)
        theta = torch.where(rising, 2 * s_below, sum_) / (sum_ + 2 * torch.where(rising, s_below, s_above))
        a, b = torch.lerp(d0, s, theta), torch.lerp(s, d1, theta)
        log_slope = self._log_slope(s, a, b, torch.lerp(b, a, theta), theta)
        return torch.where(outside, y, torch.addcmul(x0, w, theta)), -log_slope.masked_fill(outside, 0.0)
