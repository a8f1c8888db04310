"""A rational-quadratic spline with its gradient in closed form: few passes over memory, and little kept for the way back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .closed_form import MappedPoints
from .rational_quadratic_bins import LOG_2, Bin, Options, forward_in_bin, inverse_in_bin


def evaluate(at: Tensor, raw: Tensor, inverse: bool, options: Options) -> MappedPoints:
    """Value and log-slope at points ``(*)`` with raw parameters ``(3 K - 1, *)``.

    Example:
        >>> evaluate(torch.tensor([0.5]), torch.zeros(5, 1), False, Options(2, 1.0, 1e-3, 1e-3)).value
        tensor([0.5000])
    """
    num_bins, bound, min_bin, min_slope = options
    inside = at.clamp(-bound, bound)
    outside = inside != at
    buffer = _with_shares(raw, num_bins)
    knots = _knots(_shares(buffer, num_bins), bound, min_bin)
    right = (inside >= knots[int(inverse), 1:-1]).view(torch.uint8)
    counter = torch.uint8 if num_bins <= 256 else torch.int64  # a wider one costs a copy
    left = right.sum(0, keepdim=True, dtype=counter).to(torch.int64)
    pair = torch.cat([left, left + 1])
    (x0, x1), (y0, y1) = knots.gather(1, pair.expand(2, *pair.shape))
    ends = torch.cat([left == 0, left == num_bins - 1])
    which = pair.sub_(1).clamp_(0, num_bins - 2)
    slopes = raw[2 * num_bins :].gather(0, which)
    d0, d1 = F.softplus(slopes, beta=LOG_2).mul_(1 - min_slope).add_(min_slope).masked_fill_(ends, 1.0)
    bin_ = Bin(x0, x1.sub_(x0), y0, y1.sub_(y0), d0, d1)
    value, log_slope, theta = (inverse_in_bin if inverse else forward_in_bin)(inside, bin_)
    saved = (left, which, ends, slopes, theta, outside, *bin_)
    return MappedPoints(at, raw, inverse, torch.where(outside, at, value), log_slope.masked_fill_(outside, 0.0), saved, buffer)


def pullback(
    done: MappedPoints, options: Options, g_value: Tensor, g_log_slope: Tensor, *, to_raw: bool, last: bool
) -> tuple[Tensor, Tensor | None]:
    r"""Gradients of points and raw parameters.

    With :math:`p = \theta b + \bar\theta a` in the notation of
    :class:`~pyro_flows.transforms.univariate.RationalQuadraticSpline`, the derivatives of value and log-slope are

    .. math::
        \frac{\partial y}{\partial s} &= h\,\theta\bar\theta\,\frac{\theta b - \bar\theta a}{q^2},\quad
        \frac{\partial y}{\partial d_0} = h\,\frac{\theta\bar\theta^2 b}{q^2},\quad
        \frac{\partial y}{\partial d_1} = -h\,\frac{\theta^2\bar\theta a}{q^2},\\
        \frac{\partial L}{\partial s} &= \frac 2s - 2\,\frac{\theta^2 + \bar\theta^2}{q} + \frac{2\theta\bar\theta}{p},\quad
        \frac{\partial L}{\partial d_0} = \frac{\bar\theta^2}{p} - \frac{2\theta\bar\theta}{q},\quad
        \frac{\partial L}{\partial d_1} = \frac{\theta^2}{p} - \frac{2\theta\bar\theta}{q}.

    A bin's left end depends on the shares of the bins before it, its size on its own, which leaves a sum that is known for the
    softmax. The inverse has its gradient from the implicit function theorem. Derivatives of higher order are those of autograd.

    Example:
        >>> options = Options(2, 1.0, 1e-3, 1e-3)
        >>> done = evaluate(torch.tensor([0.5]), torch.zeros(5, 1), False, options)
        >>> pullback(done, options, torch.ones(1), torch.zeros(1), to_raw=False, last=True)[0]
        tensor([1.])
    """
    raw, inverse = done.raw, done.inverse
    left, which, ends, slopes, theta, outside, *sizes = done.saved
    num_bins, bound, min_bin, min_slope = options
    x0, w, y0, h, d0, d1 = sizes
    s, rest = h / w, 1 - theta
    a, b = torch.lerp(d0, s, theta), torch.lerp(s, d1, theta)
    by_p, by_q = torch.lerp(a, b, theta).reciprocal_(), torch.lerp(b, a, theta).reciprocal_()
    both, rising, falling, step = theta * rest, d1 - s, s - d0, b - a
    # Derivative of the log-slope to the place in the bin.
    of_theta = torch.lerp(falling, rising, theta).add_(step).mul_(by_p)
    of_theta.addcmul_(torch.lerp(rising, falling, theta).sub_(step), by_q, value=-2)
    g_y, g_log = g_value.masked_fill(outside, 0.0), g_log_slope.expand(outside.shape).masked_fill(outside, 0.0)
    slope = (s * by_q).square_().div_(by_p)
    if inverse:
        # The value x solves y(x) = const, so that dx = (dy - what the parameters do to y at a fixed x) / slope.
        g_log.neg_()
        g_at = torch.addcdiv(g_y, g_log * of_theta, w).div_(slope)
        g_y = -g_at
    g_theta = (g_log * of_theta).addcmul_(g_y, slope.mul_(w))
    if not inverse:
        g_at = g_theta / w
    g_at = torch.where(outside, g_value, g_at)
    if not to_raw:
        return g_at, None
    bend = (g_y * h).mul_(both).mul_(by_q).mul_(by_q)
    both_q = (both * by_q).mul_(2)
    g_s = (theta * b).addcmul_(rest, a, value=-1).mul_(bend)
    g_s.addcmul_(g_log, (both * by_p).sub_(by_q).add_(both_q).add_(s.reciprocal()), value=2)
    g_slopes = torch.stack([rest, theta])
    g_slopes.square_().mul_(by_p).sub_(both_q).mul_(g_log)
    g_slopes[0].addcmul_(bend, rest * b)
    g_slopes[1].addcmul_(bend, theta * a, value=-1)
    g_slopes.mul_(torch.sigmoid(slopes.mul(LOG_2))).mul_(1 - min_slope).masked_fill_(ends, 0.0)
    g_place = torch.stack([g_theta / w, g_y])
    g_place[0].neg_()
    g_size = torch.stack([(g_s * s).addcmul_(g_theta, theta).div_(w).neg_(), (g_y * theta).mul_(a).mul_(by_q).addcdiv_(g_s, w)])
    smallest, free = 2 * bound * min_bin, 2 * bound * (1 - num_bins * min_bin)
    own = torch.stack([w, h]).sub_(smallest).mul_(g_size)  # what the share of its own bin brings
    mean = torch.stack([x0, y0]).add_(left.to(w.dtype), alpha=-smallest).add_(bound).mul_(g_place).add_(own)
    g_place.mul_(free)
    # The gradient takes the place of the shares where it may; they are made anew should they be asked for again.
    buffer = _with_shares(raw, num_bins) if done.scratch is None else done.scratch
    g_raw = buffer if last else torch.empty_like(buffer)
    given, shares, no_mean = _shares(buffer, num_bins), _shares(g_raw, num_bins), mean.neg_()
    for k in range(num_bins):
        torch.mul(given[:, k], torch.addcmul(no_mean, (left > k).to(w.dtype), g_place), out=shares[:, k])
    shares.scatter_add_(1, left.expand(2, *left.shape), own[:, None])
    g_raw[2 * num_bins :].zero_().scatter_add_(0, which, g_slopes)
    return g_at, g_raw


def _with_shares(raw: Tensor, num_bins: int) -> Tensor:
    """A tensor like ``raw``, with the softmax of widths and of heights in their rows, and nothing in the others."""
    buffer = torch.empty_like(raw, memory_format=torch.contiguous_format)
    torch.softmax(_shares(raw, num_bins), 1, out=_shares(buffer, num_bins))
    return buffer


def _shares(raw: Tensor, num_bins: int) -> Tensor:
    """The rows of widths and heights, ``(2, K, *)``."""
    return raw[: 2 * num_bins].unflatten(0, (2, num_bins))


def _knots(shares: Tensor, bound: float, min_bin: float) -> Tensor:
    """Knots ``(2, K + 1, *)`` of shares ``(2, K, *)``; the ends are exact."""
    num_bins = shares.shape[1]
    knots = shares.new_empty(2, num_bins + 1, *shares.shape[2:])
    inner = knots[:, 1:-1]
    torch.cumsum(shares[:, :-1], 1, out=inner)
    smallest, free = 2 * bound * min_bin, 2 * bound * (1 - num_bins * min_bin)
    grid = torch.arange(1, num_bins, device=shares.device, dtype=shares.dtype).mul_(smallest).sub_(bound)
    torch.add(grid.reshape(-1, *(1,) * (shares.dim() - 2)), inner, alpha=free, out=inner)
    knots[:, 0], knots[:, -1] = -bound, bound
    return knots
