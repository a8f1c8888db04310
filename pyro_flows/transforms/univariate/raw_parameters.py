"""What a conditioner gives, made into parameters of a map: bounded, with gains, with a least slope."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.nn.arguments import is_between

#: Log of e - 1, of which the softplus is 1.
LOG_E_MINUS_1 = 0.541324854612918


def gains(count: int) -> Tensor:
    """Factors of alternating signs and different sizes, by which units that start alike become different.

    Example:
        >>> gains(3)
        tensor([ 0.5000, -1.0000,  1.5000])
    """
    return torch.linspace(0.5, 1.5, count) * (1 - 2 * (torch.arange(count) % 2))


def check_bound(value: float) -> float:
    """The bound of a map, if it is positive and finite.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_bound(5.0)
        5.0
    """
    if not is_between(value, 0, math.inf):
        raise ValueError(f"bound must be positive and finite, got {value!r}")
    return value


def check_least_slope(value: float) -> float:
    """The value, if it lies between 0 and 1.

    Raises:
        ValueError: If it does not.

    Example:
        >>> check_least_slope(0.5)
        0.5
    """
    if not is_between(value, 0, 1):
        raise ValueError(f"min_slope must be between 0 and 1, got {value!r}")
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


def inverse_soft_bound(bounded: Tensor, bound: float = 10.0) -> Tensor:
    """What :func:`soft_bound` brings there.

    Example:
        >>> soft_bound(inverse_soft_bound(torch.tensor([8.0])))
        tensor([8.])
    """
    return bounded * torch.rsqrt(1 - (bounded / bound).square())


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
