"""Rounding: whole numbers, such as the values of pixels, from a density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_flows.solvers.mode import is_eager

from ..core import FlowTransform
from ..event_shape import check_event_shape
from .base import Surjection
from .noise import FlowNoise, joined


class Dequantization(Surjection):
    r"""Whole numbers y from latents by rounding down, :math:`y = \lfloor x \rfloor`; latents are drawn within their cell.

    .. math:: x = y + u, \quad V = -\log q(u \mid y, c), \quad u \in [0, 1)

    Uniform dequantisation, where V is zero, unless a flow of the noise is given: that is variational dequantisation, with
    :math:`u = \sigma(f(\epsilon; y, c))`. With ``num_bins`` K, data are numbers from 0 to K - 1 and latents are scaled to the unit
    interval, :math:`x = (y + u) / K`, which adds :math:`-D \log K` to V. Without, they are any whole numbers.

    :math:`\log p(y) \ge \mathrm{E}_u [\log p(x) + V]`: one draw of a lower bound of the log-probability. A model with such a
    likelihood is trained by plain SVI; ``fit`` needs an exact density. ``flows.of_counts`` and ``flows.of_pixels`` put
    before it what it needs.

    References:
        Theis, van den Oord, Bethge (2016), *A note on the evaluation of generative models*, https://arxiv.org/abs/1511.01844;
        Ho et al. (2019), *Flow++: improving flow-based generative models with variational dequantization*,
        https://arxiv.org/abs/1902.00275

    Args:
        event_shape: Shape of an event, ``(D,)`` or ``(C, H, W)`` for instance.
        num_bins: Number K of values of a pixel, 256 for images of 8 bits; None for whole numbers without an end.
        context_dim: Size of the context; 0 for none.
        noise: Flow of the noise, of that event shape. Its context is the data as a vector, brought to [-1, 1] where ``num_bins``
            is known, with the context behind it.

    Raises:
        ValueError: If an argument is not as described, or data are no such numbers.

    Example:
        >>> bits = Dequantization((4,), 256)
        >>> x, contribution = bits.inverse_and_log_det(torch.tensor([0.0, 7.0, 128.0, 255.0]))
        >>> bits(x), round(contribution.item(), 3)
        (tensor([  0.,   7., 128., 255.]), -22.181)
    """

    log_det_kind = "bound"

    def __init__(
        self,
        event_shape: Sequence[int],
        num_bins: int | None = None,
        context_dim: int = 0,
        *,
        noise: FlowTransform | None = None,
    ) -> None:
        shape = check_event_shape(event_shape)
        super().__init__(math.prod(shape), context_dim)
        if num_bins is not None and (not isinstance(num_bins, int) or isinstance(num_bins, bool) or num_bins < 2):
            raise ValueError(f"num_bins must be an integer of at least 2, or None, got {num_bins!r}")
        self.event_shape, self.num_bins = shape, num_bins
        dims = len(shape)
        self.domain = constraints.independent(constraints.real, dims)
        whole = constraints.integer_interval(0, num_bins - 1) if num_bins else constraints.real
        self.codomain = constraints.independent(whole, dims)
        self.noise = None if noise is None else FlowNoise("noise", self.input_dim, self.input_dim + context_dim, noise)
        if self.noise is not None and self.noise.transform.event_shape != shape:
            raise ValueError(f"noise must be a flow of events {tuple(shape)}, got {tuple(self.noise.transform.event_shape)}")

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, num_bins={self.num_bins}"

    def generate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.num_bins is None:
            return x.floor()
        return (x * self.num_bins).floor().clamp(0, self.num_bins - 1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return latents of the shape of the data, and their contribution to the bound ``(*)``."""
        if is_eager() and y.numel():
            self._check_values(y)
        batch = y.shape[: y.dim() - len(self.event_shape)]
        if self.noise is None:
            u, contribution = torch.rand_like(y), y.new_zeros(batch)
        else:
            seen = y.reshape(*batch, -1)
            if self.num_bins is not None:
                seen = 2 * seen / (self.num_bins - 1) - 1
            raw, log_prob = self.noise.draw(joined(seen, context))
            softplus = nn.functional.softplus
            log_slope = (-softplus(raw) - softplus(-raw)).reshape(*batch, -1).sum(-1)
            u, contribution = raw.sigmoid(), log_slope - log_prob
        # Rounding must not carry a latent out of its cell, nor to the ends of the unit interval.
        if self.num_bins is None:
            return torch.minimum(y + u, torch.nextafter(y + 1, y)), contribution
        eps = torch.finfo(y.dtype).eps
        low, high = y / self.num_bins, (y + 1) / self.num_bins
        x = torch.minimum((y + u) / self.num_bins, high * (1 - 2 * eps))
        x = torch.maximum(x, (low * (1 + 2 * eps)).clamp(min=0.5 * eps))
        return x, contribution - self.input_dim * math.log(self.num_bins)

    def _check_values(self, y: Tensor) -> None:
        y = y.detach()
        low, high = float(y.min()), float(y.max())
        if not bool((y == y.floor()).all()):
            raise ValueError(f"y must hold whole numbers, got values from {low:.6g} to {high:.6g} with fractions; round them first")
        if self.num_bins is not None and (low < 0 or high > self.num_bins - 1):
            raise ValueError(
                f"y must hold numbers from 0 to {self.num_bins - 1} (num_bins={self.num_bins}), got {low:.6g} to {high:.6g}"
            )
