"""A rational-quadratic spline as arithmetic on single entries, which compilers fuse and autograd differentiates to any order."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_2 = math.log(2.0)


class Options(NamedTuple):
    """Of a spline.

    Args:
        num_bins: Number of bins K.
        bound: Half-width of the interval.
        min_bin: Smallest bin, as a share of the interval.
        min_slope: Smallest inner slope.

    Example:
        >>> Options(8, 5.0, 1e-3, 1e-3).num_bins
        8
    """

    num_bins: int
    bound: float
    min_bin: float
    min_slope: float


def check_bins(num_bins: int, min_bin: float, min_slope: float) -> None:
    """Refuse options of a spline that are out of range.

    Raises:
        ValueError: If one is.

    Example:
        >>> check_bins(8, 1e-3, 1e-3)
    """
    if not isinstance(num_bins, int) or num_bins < 2:
        raise ValueError(f"num_bins must be an integer of at least 2, got {num_bins!r}")
    if not (min_bin > 0 and num_bins * min_bin < 1):
        raise ValueError(f"min_bin must be positive and num_bins * min_bin below 1, got min_bin={min_bin}, num_bins={num_bins}")
    if not 0 < min_slope < 1:
        raise ValueError(f"min_slope must lie between 0 and 1, got {min_slope}")


class Bin(NamedTuple):
    """Left ends and sizes of a bin in x and in y, and the slopes at its two ends, each of the shape of the points.

    Example:
        >>> Bin(*torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])).w
        tensor(1.)
    """

    x0: Tensor
    w: Tensor
    y0: Tensor
    h: Tensor
    d0: Tensor
    d1: Tensor


def spline(at: Tensor, raw: Tensor, inverse: bool, options: Options) -> tuple[Tensor, Tensor]:
    """Value and log-slope at any points ``(*)``.

    Example:
        >>> spline(torch.tensor([3.0]), torch.zeros(5, 1), False, Options(2, 1.0, 1e-3, 1e-3))
        (tensor([3.]), tensor([0.]))
    """
    # The clamp comes first: the branch that `where` discards then has finite gradients.
    inside = at.clamp(-options.bound, options.bound)
    bin_ = pick_bin(inside, raw, inverse, *options)
    value, log_slope = (inverse_in_bin if inverse else forward_in_bin)(inside, bin_)[:2]
    outside = inside != at
    return torch.where(outside, at, value), torch.where(outside, torch.zeros_like(log_slope), log_slope)


def pick_bin(at: Tensor, raw: Tensor, inverse: bool, num_bins: int, bound: float, min_bin: float, min_slope: float) -> Bin:
    """The bin of each point.

    Args:
        at: Points in ``[-bound, bound]``, shape ``(*)``.
        raw: Raw widths, heights and inner slopes, ``(3 * num_bins - 1, *)``, or broadcastable to it; with one more row, which is
            the slope at both ends, where it is 1 otherwise.
        inverse: Whether points are values y.
        num_bins: Number of bins K.
        bound: Half-width of the interval.
        min_bin: Smallest bin, as a share of the interval.
        min_slope: Smallest inner slope.

    Example:
        >>> pick_bin(torch.tensor([0.1]), torch.zeros(5, 1), False, 2, 1.0, 1e-3, 1e-3).x0
        tensor([0.])
    """
    rows = raw.reshape(raw.shape[:1] + (1,) * (at.dim() + 1 - raw.dim()) + raw.shape[1:]).unbind(0)
    knots = [_knots(rows[i * num_bins : (i + 1) * num_bins], bound, min_bin) for i in range(2)]
    slopes = [min_slope + (1 - min_slope) * F.softplus(row, beta=LOG_2) for row in rows[2 * num_bins :]]
    end = slopes.pop() if len(slopes) == num_bins else torch.ones_like(slopes[0])
    slopes = [end, *slopes, end]
    (x0, y0), (x1, y1), d0, d1 = (axis[0] for axis in knots), (axis[1] for axis in knots), slopes[0], slopes[1]
    for k in range(1, num_bins):
        right = at >= knots[1 if inverse else 0][k]
        x0, x1 = torch.where(right, knots[0][k], x0), torch.where(right, knots[0][k + 1], x1)
        y0, y1 = torch.where(right, knots[1][k], y0), torch.where(right, knots[1][k + 1], y1)
        d0, d1 = torch.where(right, slopes[k], d0), torch.where(right, slopes[k + 1], d1)
    return Bin(x0, x1 - x0, y0, y1 - y0, d0, d1)


def _knots(rows: tuple[Tensor, ...], bound: float, min_bin: float) -> list[Tensor]:
    """Knots of one axis, the ends exactly."""
    highest = rows[0]
    for row in rows[1:]:
        highest = torch.maximum(highest, row)
    shares = [(row - highest.detach()).exp() for row in rows]
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    free = 2 * bound * (1 - len(rows) * min_bin) / total
    knots, so_far = [torch.full_like(total, -bound)], torch.zeros_like(total)
    for k, share in enumerate(shares[:-1]):
        so_far = so_far + share
        knots.append(2 * bound * min_bin * (k + 1) - bound + free * so_far)
    return [*knots, torch.full_like(total, bound)]


def forward_in_bin(x: Tensor, bin_: Bin) -> tuple[Tensor, Tensor, Tensor]:
    """Value, log-slope and place in the bin, from 0 to 1.

    Example:
        >>> forward_in_bin(torch.tensor(0.25), Bin(*torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])))[0]
        tensor(0.2500)
    """
    x0, w, y0, h, d0, d1 = bin_
    s, theta = h / w, (x - x0) / w
    a, b = torch.lerp(d0, s, theta), torch.lerp(s, d1, theta)
    q = torch.lerp(b, a, theta)
    return torch.addcmul(y0, h, theta * a / q), _log_slope(s, a, b, q, theta), theta


def inverse_in_bin(y: Tensor, bin_: Bin) -> tuple[Tensor, Tensor, Tensor]:
    """Value, log-slope of the inverse and place in the bin.

    Example:
        >>> inverse_in_bin(torch.tensor(0.25), Bin(*torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])))[0]
        tensor(0.2500)
    """
    x0, w, y0, h, d0, d1 = bin_
    s, below = h / w, y - y0
    above = h - below
    # The quadratic a θ² + b θ + c = 0 of the usual form has b = g + 2 s·below and the discriminant g² + 4 s² below·above, a sum of
    # squares; either sign of g has a form of θ with positive terms only.
    g = d0 * above - d1 * below
    s_below, s_above = s * below, s * above
    root = torch.addcmul(g.square(), s_below, s_above, value=4).sqrt()
    rising = g >= 0
    sum_ = root + torch.where(rising, g, -g)
    theta = torch.where(rising, 2 * s_below, sum_) / (sum_ + 2 * torch.where(rising, s_below, s_above))
    a, b = torch.lerp(d0, s, theta), torch.lerp(s, d1, theta)
    log_slope = _log_slope(s, a, b, torch.lerp(b, a, theta), theta)
    return torch.addcmul(x0, w, theta), -log_slope, theta


def _log_slope(s: Tensor, a: Tensor, b: Tensor, q: Tensor, theta: Tensor) -> Tensor:
    ratio = s / q
    return (torch.lerp(a, b, theta) * ratio * ratio).log()
