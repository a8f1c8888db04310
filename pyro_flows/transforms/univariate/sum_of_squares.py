"""Map by the integral of a sum of squared polynomials."""

from __future__ import annotations

import torch
from torch import Tensor

from ...nn.arguments import check_positive
from .base import Params
from .raw_parameters import aligned, along, check_bound, check_least_slope, gains, soft_bound
from .solved import SolvedMap


class SumOfSquares(SolvedMap):
    r"""Integral of a sum of squared polynomials; a line beyond :math:`[-B, B]`, with the slope of the polynomial there.

    .. math:: y = c + \int_0^x \epsilon + (1 - \epsilon) \sum_k \big(\sum_l a_{kl} (t / B)^l\big)^2\,dt

    The integral is a polynomial of degree :math:`2L + 1`, in closed form; the integrand is the slope. The inverse is solved.
    Raw coefficients are softly bounded by 10, and have gains of their own, without which all polynomials would stay alike.

    References:
        Jaini, Selby, Yu (2019), *Sum-of-squares polynomial flow*, https://arxiv.org/abs/1905.02325

    Args:
        degree: Degree L of the squared polynomials.
        num_polynomials: Number of them.
        bound: The bound B. Must be positive.
        min_slope: The least slope :math:`\epsilon`. Between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> u = SumOfSquares(1, 1, bound=1.0)
        >>> y, log_slope = u.forward_and_log_det(torch.tensor([0.5]), (torch.zeros(1), torch.zeros(2, 1)))
        >>> round(y.item(), 4), round(log_slope.item(), 4)
        (0.5, 0.0)
    """

    gain: Tensor

    def __init__(self, degree: int = 4, num_polynomials: int = 3, bound: float = 6.0, min_slope: float = 1e-3) -> None:
        super().__init__()
        check_positive(degree=degree, num_polynomials=num_polynomials)
        check_bound(bound)
        check_least_slope(min_slope)
        self.degree, self.num_polynomials, self.bound, self.min_slope = degree, num_polynomials, bound, min_slope
        self.param_shapes = ((), (num_polynomials * (degree + 1),))
        by_polynomial = gains(num_polynomials)[:, None].expand(-1, degree + 1).clone()
        by_polynomial[:, 0] = by_polynomial[:, 0].abs()
        self.register_buffer("gain", by_polynomial.reshape(-1))

    def extra_repr(self) -> str:
        return f"degree={self.degree}, num_polynomials={self.num_polynomials}, bound={self.bound}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        shift, raw = params[0], soft_bound(aligned(params[1], x))
        coefficients = (along(self.gain, raw) * raw).unflatten(0, (self.num_polynomials, self.degree + 1))
        squared: list[Tensor | float] = [0.0] * (2 * self.degree + 1)
        for i in range(self.degree + 1):
            for j in range(self.degree + 1):
                first, second = (coefficients[:, k] + self.num_polynomials**-0.5 if k == 0 else coefficients[:, k] for k in (i, j))
                squared[i + j] = squared[i + j] + (first * second).sum(0)
        inside = x.clamp(-self.bound, self.bound)
        u = inside / self.bound
        slope, integral = torch.zeros_like(u), torch.zeros_like(u)
        for m in range(2 * self.degree, -1, -1):
            slope = slope * u + squared[m]
            integral = integral * u + squared[m] / (m + 1)
        slope = self.min_slope + (1 - self.min_slope) * slope
        integral = inside * (self.min_slope + (1 - self.min_slope) * integral)
        return shift + integral + slope * (x - inside), slope.log()
