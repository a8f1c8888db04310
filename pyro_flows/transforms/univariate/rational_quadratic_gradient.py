"""A rational-quadratic spline with its gradient in closed form: few passes over memory, and little kept for the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .rational_quadratic_bins import LOG_2, Bin, forward_in_bin, inverse_in_bin, pick_bin


class SplineFunction(torch.autograd.Function):
    r"""Value and log-slope of a spline at points ``(*)`` with raw parameters ``(3 K - 1, *)``, either way.

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
        >>> SplineFunction.apply(torch.tensor([0.5]), torch.zeros(5, 1), False, 2, 1.0, 1e-3, 1e-3)
        (tensor([0.5000]), tensor([0.]))
    """

    @staticmethod
    def forward(ctx: Any, at: Tensor, raw: Tensor, inverse: bool, *options: Any) -> tuple[Tensor, Tensor]:
        num_bins, bound, min_bin, min_slope = options
        inside = at.clamp(-bound, bound)
        outside = inside != at
        shares = raw[: 2 * num_bins].unflatten(0, (2, num_bins)).softmax(1)
        knots = _knots(shares, bound, min_bin)
        left = (inside >= knots[int(inverse), 1:-1]).sum(0, keepdim=True)
        pair = torch.cat([left, left + 1])
        (x0, x1), (y0, y1) = knots.gather(1, pair.expand(2, *pair.shape))
        slopes = raw[2 * num_bins :].gather(0, (pair - 1).clamp_(0, num_bins - 2))
        d0, d1 = (min_slope + (1 - min_slope) * F.softplus(slopes, beta=LOG_2)).masked_fill_(_is_end(pair, num_bins), 1.0)
        bin_ = Bin(x0, x1.sub_(x0), y0, y1.sub_(y0), d0, d1)
        value, log_slope, theta = (inverse_in_bin if inverse else forward_in_bin)(inside, bin_)
        ctx.save_for_backward(at, raw, shares, pair, slopes, theta, outside, *bin_)
        ctx.inverse, ctx.options = inverse, options
        return torch.where(outside, at, value), log_slope.masked_fill_(outside, 0.0)

    @staticmethod
    def backward(ctx: Any, g_value: Tensor, g_log_slope: Tensor) -> tuple[Tensor | None, ...]:
        at, raw, shares, pair, slopes, theta, outside, *ends = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # somebody asks for derivatives of these
            return (*_by_autograd(at, raw, ctx.inverse, ctx.options, (g_value, g_log_slope), needed), *(None,) * 5)
        num_bins, bound, min_bin, min_slope = ctx.options
        x0, w, y0, h, d0, d1 = ends
        s, rest = h / w, 1 - theta
        a, b = torch.lerp(d0, s, theta), torch.lerp(s, d1, theta)
        p, q = torch.lerp(a, b, theta), torch.lerp(b, a, theta)
        both, rising, falling = theta * rest, d1 - s, s - d0
        by_q, by_p = 1 / q, 1 / p
        slope = p * (s * by_q).square()
        of_theta = (b - a + torch.lerp(falling, rising, theta)) * by_p - 2 * (a - b + torch.lerp(rising, falling, theta)) * by_q
        g_y, g_log = g_value.masked_fill(outside, 0.0), g_log_slope.masked_fill(outside, 0.0)
        if ctx.inverse:
            # The value x solves y(x) = const, so that dx = (dy - what the parameters do to y at a fixed x) / slope.
            g_log = -g_log
            g_at = torch.addcdiv(g_y, g_log * of_theta, w) / slope
            g_y = -g_at
            g_theta = torch.addcmul(g_log * of_theta, g_y, w * slope)
        else:
            g_theta = torch.addcmul(g_log * of_theta, g_y, w * slope)
            g_at = g_theta / w
        g_at = torch.where(outside, g_value, g_at)
        if not needed[1]:
            return g_at, *(None,) * 6
        bend = g_y * h * both * by_q.square()
        twice = 2 * both * by_q
        g_s = bend * (theta * b - rest * a) + g_log * (2 / s + 2 * (both * by_p - by_q) + 2 * twice)
        g_d0 = bend * rest * b + g_log * (rest.square() * by_p - twice)
        g_d1 = g_log * (theta.square() * by_p - twice) - bend * theta * a
        left = pair[:1]
        g_place = torch.stack([-g_theta / w, g_y])
        g_size = torch.stack([-(g_s * s + g_theta * theta) / w, torch.addcdiv(g_y * theta * a * by_q, g_s, w)])
        smallest, free = 2 * bound * min_bin, 2 * bound * (1 - num_bins * min_bin)
        reached = torch.stack([x0, y0]) + (
            bound - smallest * left.to(x0.dtype)
        )  # what the bins before take beyond their smallest sizes
        mean = g_place * reached + g_size * (torch.stack([w, h]) - smallest)
        g_raw = torch.empty_like(raw)
        bins = torch.arange(num_bins, device=raw.device).reshape(-1, *(1,) * at.dim())
        g_shares = torch.where(bins < left, (free * g_place - mean)[:, None], -mean[:, None])
        g_shares.scatter_(1, left.expand(2, *left.shape), (free * g_size - mean)[:, None])
        torch.mul(g_shares, shares, out=g_raw[: 2 * num_bins].unflatten(0, (2, num_bins)))
        g_slopes = torch.stack([g_d0, g_d1]) * (1 - min_slope) * torch.sigmoid(LOG_2 * slopes)
        g_slopes.masked_fill_(_is_end(pair, num_bins), 0.0)
        g_raw[2 * num_bins :].zero_().scatter_add_(0, (pair - 1).clamp_(0, num_bins - 2), g_slopes)
        return g_at, g_raw, *(None,) * 5


def _knots(shares: Tensor, bound: float, min_bin: float) -> Tensor:
    """Knots ``(2, K + 1, *)`` of shares ``(2, K, *)``; the ends are exact."""
    num_bins = shares.shape[1]
    knots = shares.new_empty(2, num_bins + 1, *shares.shape[2:])
    inner = knots[:, 1:-1]
    torch.cumsum(shares[:, :-1], 1, out=inner)
    grid = torch.linspace(-bound, bound, num_bins + 1, device=shares.device, dtype=shares.dtype)
    moved = torch.arange(num_bins + 1, device=shares.device, dtype=shares.dtype) / num_bins
    free = 2 * bound * (1 - num_bins * min_bin)
    torch.add((grid - free * moved)[1:-1].reshape(-1, *(1,) * (shares.dim() - 2)), inner, alpha=free, out=inner)
    knots[:, 0], knots[:, -1] = -bound, bound
    return knots


def _is_end(pair: Tensor, num_bins: int) -> Tensor:
    """Whether a knot is one of the outermost."""
    return (pair == 0) | (pair == num_bins)


def _by_autograd(
    at: Tensor, raw: Tensor, inverse: bool, options: Any, gradients: tuple[Tensor, Tensor], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    bound = options[1]
    inside = at.clamp(-bound, bound)
    bin_ = pick_bin(inside, raw, inverse, *options)
    value, log_slope, _ = (inverse_in_bin if inverse else forward_in_bin)(inside, bin_)
    outside = inside != at
    results = [torch.where(outside, at, value), torch.where(outside, torch.zeros_like(log_slope), log_slope)]
    inputs = [tensor for tensor, wanted in zip((at, raw), needed, strict=True) if wanted]
    found = iter(torch.autograd.grad(results, inputs, gradients, create_graph=True, allow_unused=True))
    return [next(found) if wanted else None for wanted in needed]
