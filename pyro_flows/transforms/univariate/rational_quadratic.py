"""Monotone rational-quadratic spline of one variable, the map of neural spline flows."""

from __future__ import annotations

from torch import Tensor

from pyro_flows.solvers.mode import takes_closed_forms

from .base import Params
from .closed_form import ClosedFormFunction, ClosedFormMap, MappedPoints
from .rational_quadratic_bins import Options, check_bins, spline
from .rational_quadratic_gradient import evaluate, pullback
from .raw_parameters import check_bound


class RationalQuadraticSpline(ClosedFormMap):
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
        >>> y, log_det = spline.forward_and_log_det(x, spline.split(torch.zeros(spline.param_count, 2)))
        >>> y
        tensor([-9.0000,  0.5000])
    """

    def __init__(self, num_bins: int = 8, bound: float = 5.0, *, min_bin: float = 1e-3, min_slope: float = 1e-3) -> None:
        super().__init__()
        check_bins(num_bins, min_bin, min_slope)
        check_bound(bound)
        self.num_bins, self.bound, self.min_bin, self.min_slope = num_bins, float(bound), min_bin, min_slope
        self.param_shapes = ((3 * num_bins - 1,),)

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}, bound={self.bound}"

    @property
    def options(self) -> Options:
        """What its arithmetic needs to know."""
        return Options(self.num_bins, self.bound, self.min_bin, self.min_slope)

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._mapped(x, params[0], False)

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._mapped(y, params[0], True)

    def _mapped(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.closed_form and takes_closed_forms() and raw.shape[1:] == at.shape:
            return ClosedFormFunction.apply(at, raw, inverse, self)  # type: ignore[no-any-return, no-untyped-call]
        return spline(at, raw, inverse, self.options)

    def arithmetic(self, at: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return spline(at, raw, inverse, self.options)

    def evaluate(self, at: Tensor, raw: Tensor, inverse: bool) -> MappedPoints:
        return evaluate(at, raw, inverse, self.options)

    def pullback(
        self, done: MappedPoints, g_value: Tensor, g_log_slope: Tensor, *, to_raw: bool = True, last: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        return pullback(done, self.options, g_value, g_log_slope, to_raw=to_raw, last=last)
