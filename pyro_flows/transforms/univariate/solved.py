"""Univariate maps whose inverse is found by a solver."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.solvers import bracketed_newton, is_eager

from .base import Params, UnivariateMap

#: Log of e - 1, of which the softplus is 1.
LOG_E_MINUS_1 = 0.541324854612918


class SolvedMap(UnivariateMap):
    r"""A map whose inverse is the root of :math:`u(x; p) = y`, by bracketed Newton steps and with implicit gradients.

    A subclass writes ``forward_and_log_det``, which must increase and reach every number.

    Example:
        >>> from pyro_flows.transforms.univariate import DeepSigmoid
        >>> DeepSigmoid().inverse_kind
        'solved'
    """

    inverse_kind = "solved"

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = self.forward_and_log_det(x, params)
            return value, log_slope.exp()

        x = bracketed_newton(
            value_and_slope, y, y.detach(), residual_tolerance=torch.finfo(y.dtype).eps, max_iterations=most_iterations()
        )
        return x, -self.forward_and_log_det(x, params)[1]


def most_iterations() -> int:
    """Iterations of a solver: outside of eager mode all of them are made and unrolled, and some twelve are enough but on plateaus.

    Example:
        >>> most_iterations()
        100
    """
    return 100 if is_eager() else 60


def gains(count: int) -> Tensor:
    """Factors of alternating signs and different sizes, by which units that start alike become different.

    Example:
        >>> gains(3)
        tensor([ 0.5000, -1.0000,  1.5000])
    """
    return torch.linspace(0.5, 1.5, count) * (1 - 2 * (torch.arange(count) % 2))


def check_least_slope(value: float) -> float:
    """The value, if it lies between 0 and 1.

    Raises:
        ValueError: If it does not.

    Example:
        >>> check_least_slope(0.5)
        0.5
    """
    if not 0 < value < 1:
        raise ValueError(f"min_slope must be between 0 and 1, got {value}")
    return value


def with_least_slope(x: Tensor, mapped: tuple[Tensor, Tensor], least: float) -> tuple[Tensor, Tensor]:
    r"""Of a map and its log-slope: those of :math:`\epsilon x + (1 - \epsilon) u(x)`, which has no plateau.

    Example:
        >>> with_least_slope(torch.ones(1), (torch.zeros(1), torch.full((1,), -1e4)), 0.5)
        (tensor([0.5000]), tensor([-0.6931]))
    """
    value, log_slope = mapped
    slope = (log_slope + math.log1p(-least)).logaddexp(torch.full_like(log_slope, math.log(least)))
    return least * x + (1 - least) * value, slope


def soft_bound(raw: Tensor, bound: float = 10.0) -> Tensor:
    r""":math:`a / \sqrt{1 + (a / b)^2}`: raw parameters of a conditioner that is far from all it has seen stay of ordinary size.

    Example:
        >>> soft_bound(torch.tensor([0.0, 1e6]))
        tensor([ 0., 10.])
    """
    return raw * torch.rsqrt(1 + (raw / bound).square())


def aligned(parameter: Tensor, x: Tensor) -> Tensor:
    """Parameters ``(K, *)`` with dimensions of size one behind the first, so that their ``*`` broadcasts against points.

    Example:
        >>> aligned(torch.zeros(2, 4), torch.zeros(3, 5, 4)).shape
        torch.Size([2, 1, 1, 4])
    """
    missing = x.dim() + 1 - parameter.dim()
    return parameter.reshape(parameter.shape[0], *(1,) * missing, *parameter.shape[1:]) if missing > 0 else parameter


def along(values: Tensor, like: Tensor) -> Tensor:
    """A vector ``(K,)`` as a factor of parameters ``(K, *)``.

    Example:
        >>> along(torch.ones(2), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    return values.reshape(-1, *(1,) * (like.dim() - 1))
