"""Spline of an angle."""

from __future__ import annotations

import math

from torch import Tensor

from .base import Params, UnivariateMap
from .circle_maps import turns
from .rational_quadratic_bins import check_bins, forward_in_bin, inverse_in_bin, pick_bin


class CircularSpline(UnivariateMap):
    r"""Rational-quadratic spline of an angle, and a shift: a map of the line with :math:`u(x + 2\pi) = u(x) + 2\pi`.

    On :math:`[-\pi, \pi)` it is :math:`x \mapsto s(x) + \phi`, where the spline s has the same slope at both ends, so that angles
    that differ by a turn have images that do, and the map of the circle has no seam. It is a map of the line and leaves wrapping
    to whoever wants angles in one interval.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428

    Args:
        num_bins: Number of bins K, at least 2. There are ``3 * K + 1`` raw parameters: the shift, K widths, K heights, K slopes.
        min_bin: Smallest width and height of a bin, as a share of the circle.
        min_slope: Smallest slope at a knot.

    Raises:
        ValueError: If an argument is out of range, or ``num_bins * min_bin`` reaches 1.

    Example:
        >>> spline = CircularSpline(4)
        >>> params = spline.split(torch.linspace(-1, 1, spline.param_count)[:, None])
        >>> here, turned = (spline.forward_and_log_det(x, params)[0] for x in torch.tensor([[0.5], [0.5 + 2 * math.pi]]))
        >>> round((turned - here).item(), 4)
        6.2832
    """

    def __init__(self, num_bins: int = 8, *, min_bin: float = 1e-3, min_slope: float = 1e-3) -> None:
        super().__init__()
        check_bins(num_bins, min_bin, min_slope)
        self.num_bins, self.min_bin, self.min_slope = num_bins, min_bin, min_slope
        self.param_shapes = ((), (3 * num_bins,))

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        value, log_slope = self._mapped(x, params[1], False)
        return value + params[0], log_slope

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._mapped(y - params[0], params[1], True)

    def _mapped(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        whole = turns(at)
        inside = (at - whole).clamp(-math.pi, math.pi)
        bin_ = pick_bin(inside, raw, inverse, self.num_bins, math.pi, self.min_bin, self.min_slope)
        value, log_slope = (inverse_in_bin if inverse else forward_in_bin)(inside, bin_)[:2]
        return value + whole, log_slope
