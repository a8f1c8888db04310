"""Map by a Bernstein polynomial with increasing coefficients."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...nn.arguments import check_positive
from .base import Params
from .raw_parameters import LOG_E_MINUS_1, aligned, check_bound, soft_bound
from .solved import SolvedMap


class Bernstein(SolvedMap):
    r"""Bernstein polynomial with increasing coefficients; a line beyond :math:`[-B, B]`, with the slope of the polynomial there.

    .. math:: y = \sum_{k=0}^n \theta_k \binom{n}{k} t^k (1 - t)^{n-k}, \quad t = (x + B) / 2B, \quad
        dy/dx = \frac{n}{2B} \sum_{k=0}^{n-1} (\theta_{k+1} - \theta_k) \binom{n-1}{k} t^k (1 - t)^{n-1-k} > 0.

    Raw parameters are a shift and, by softplus, the increments, softly bounded by 10. The inverse is solved.

    References:
        Ramasinghe, Fernando, Khan, Barnes (2021), *Robust normalizing flows using Bernstein-type polynomials*,
        https://arxiv.org/abs/2102.03509;
        Sick, Hothorn, Dürr (2020), *Deep transformation models*, https://arxiv.org/abs/2004.00464

    Args:
        degree: Degree n of the polynomial, at most 60.
        bound: The bound B. Must be positive.
        min_increment: Least increment, relative to that of the identity. Between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> u = Bernstein(3, bound=2.0)
        >>> u.forward_and_log_det(torch.tensor([-1.0, 5.0]), (torch.zeros(2), torch.zeros(3, 2)))[0]
        tensor([-1.,  5.])
    """

    binomial: Tensor

    def __init__(self, degree: int = 12, bound: float = 6.0, min_increment: float = 1e-3) -> None:
        super().__init__()
        check_positive(degree=degree)
        if degree > 60:
            raise ValueError(f"degree must be at most 60, beyond which binomials lose their digits; got {degree}")
        check_bound(bound)
        if not 0 < min_increment < 1:
            raise ValueError(f"min_increment must be between 0 and 1, got {min_increment}")
        self.degree, self.bound, self.min_increment = degree, bound, min_increment
        self.param_shapes = ((), (degree,))
        self.register_buffer("binomial", torch.tensor([float(math.comb(degree - 1, k)) for k in range(degree)]))

    def extra_repr(self) -> str:
        return f"degree={self.degree}, bound={self.bound}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        shift, raw = params
        n, bound = self.degree, self.bound
        # Increments relative to those of the identity, 2 B / n.
        increments = self.min_increment + (1 - self.min_increment) * F.softplus(soft_bound(aligned(raw, x)) + LOG_E_MINUS_1)
        inside = x.clamp(-bound, bound)
        t = 0.5 + inside / (2 * bound)
        powers, rests = _powers(t, n), _powers(1 - t, n)
        # Basis of degree n - 1, of which the basis of degree n is made: b_{k,n} = (1 - t) b_{k,n-1} + t b_{k-1,n-1}.
        basis = [self.binomial[k] * powers[k] * rests[n - 1 - k] for k in range(n)]
        excess: Tensor | float = 0.0  # of a coefficient over that of the identity
        value, slope = torch.zeros_like(t), torch.zeros_like(t)
        for k in range(n):
            following = excess + (increments[k] - 1)
            value = value + basis[k] * ((1 - t) * excess + t * following)
            slope = slope + basis[k] * increments[k]
            excess = following
        return shift + inside + (2 * bound / n) * value + slope * (x - inside), slope.log()


def _powers(t: Tensor, count: int) -> list[Tensor]:
    """Powers 0 … count - 1."""
    powers = [torch.ones_like(t)]
    for _ in range(count - 1):
        powers.append(powers[-1] * t)
    return powers
