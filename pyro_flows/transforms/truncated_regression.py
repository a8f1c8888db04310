"""Normal regression on a context, truncated to bounds: where a conditional density of bounded parameters starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.special import log_ndtr, ndtri

from .core import FlowTransform

#: How far outside its bounds a location may lie, in scales; beyond, the tail's probability would underflow.
_FARTHEST = 25.0


def ndtr(x: Tensor) -> Tensor:
    r"""The normal distribution function :math:`\Phi`; torch's own is zero where it falls below the spacing of numbers at 1.

    Example:
        >>> bool(ndtr(torch.tensor(-20.0, dtype=torch.float64)) > 0)
        True
    """
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)


class TruncatedRegression(FlowTransform):
    r"""Elementwise map that makes a standard normal one truncated to :math:`[l_i, u_i]`, with a location linear in a context.

    With :math:`\mu = W c + b`, scales :math:`s`, and :math:`\alpha = \Phi((l - \mu)/s)`, :math:`\beta = \Phi((u - \mu)/s)`,

    .. math:: y = \mu + s\,\Phi^{-1}\bigl(\alpha + (\beta - \alpha)\,\Phi(x)\bigr),

    and :math:`y = \mu + s\,x` where there are no bounds. A uniform prior with a normal likelihood has exactly such posteriors, with
    sharp edges and nothing outside, where a logistic map to the interval would ask a flow to bend its tails. The arithmetic is done
    in float64. Locations farther than 25 scales outside the bounds are taken as that far. Starts at the identity if unbounded.

    Args:
        lower: Lower bounds :math:`l`, ``(D,)``; minus infinity for none.
        upper: Upper bounds :math:`u`, ``(D,)``; infinity for none.
        context_dim: Size C of the context; 0 for none.

    Raises:
        ValueError: If the bounds are no vectors of one size, or a lower one is not below its upper one.

    Example:
        >>> t = TruncatedRegression(torch.tensor([0.0]), torch.tensor([1.0]))
        >>> [round(y, 4) for y in t(torch.tensor([[-9.0], [0.0], [9.0]])).flatten().tolist()]
        [0.0, 0.4418, 1.0]
    """

    lower: Tensor
    upper: Tensor
    bounded: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, lower: Tensor, upper: Tensor, context_dim: int = 0) -> None:
        if lower.dim() != 1 or lower.shape != upper.shape:
            raise ValueError(f"lower and upper must have one shape (D,), got {tuple(lower.shape)} and {tuple(upper.shape)}")
        if not bool((lower < upper).all()):
            raise ValueError(f"every lower bound must be below its upper bound, got {lower.tolist()} and {upper.tolist()}")
        super().__init__(lower.shape[0], context_dim)
        self.register_buffer("lower", lower.detach().clone())
        self.register_buffer("upper", upper.detach().clone())
        self.register_buffer("bounded", torch.isfinite(self.lower) | torch.isfinite(self.upper))
        self.weight = nn.Parameter(lower.new_zeros(self.input_dim, context_dim)) if context_dim else None
        self.bias = nn.Parameter(torch.zeros_like(self.lower))
        self.log_scale = nn.Parameter(torch.zeros_like(self.lower))
        self._any_bounded = bool(self.bounded.any())
        self.register_buffer("low", torch.isfinite(self.lower).nonzero()[:, 0])
        self.register_buffer("high", torch.isfinite(self.upper).nonzero()[:, 0])
        if self._any_bounded:
            self.codomain = constraints.independent(constraints.interval(self.lower, self.upper), 1)

    def location(self, context: Tensor | None) -> Tensor:
        """Location before truncation, ``(*, D)``, of contexts ``(*, C)``."""
        if self.weight is None or context is None:
            return self.bias
        return context @ self.weight.T + self.bias

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        location, scale = self.location(context), self.log_scale.exp()
        y, log_det = location + scale * x, self.log_scale.expand(x.shape)
        if self._any_bounded:
            bounded_y, bounded_log_det = self._truncated(x, location)
            y, log_det = torch.where(self.bounded, bounded_y, y), torch.where(self.bounded, bounded_log_det, log_det)
        return y, log_det.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        location, scale = self.location(context), self.log_scale.exp()
        x, log_det = (y - location) / scale, -self.log_scale.expand(y.shape)
        if self._any_bounded:
            bounded_x, bounded_log_det = self._untruncated(y, location)
            x, log_det = torch.where(self.bounded, bounded_x, x), torch.where(self.bounded, bounded_log_det, log_det)
        return x, log_det.sum(-1)

    def _ends(self, location: Tensor) -> tuple[Tensor, ...]:
        """Location, scale and standardised bounds in float64; mirrored where the upper tail matters, which has few digits."""
        # Entries without bounds are computed too and thrown away; they get harmless numbers.
        lower = torch.where(self.bounded, self.lower, -torch.ones_like(self.lower)).double()
        upper = torch.where(self.bounded, self.upper, torch.ones_like(self.upper)).double()
        scale = self.log_scale.double().exp()
        location = location.double().clamp(lower - _FARTHEST * scale, upper + _FARTHEST * scale)
        a, b = (lower - location) / scale, (upper - location) / scale
        mirror = torch.where(a + b > 0, -1.0, 1.0).to(a)
        return location, scale, torch.where(mirror < 0, -b, a), torch.where(mirror < 0, -a, b), mirror

    def _truncated(self, x: Tensor, location: Tensor) -> tuple[Tensor, Tensor]:
        location, scale, a, b, mirror = self._ends(location)
        at = mirror * torch.where(self.bounded, x, torch.zeros_like(x)).double()
        mass = ndtr(b) - ndtr(a)
        below = ndtr(a) + mass * ndtr(at)
        above = ndtr(-b) + mass * ndtr(-at)
        is_low = below < 0.5
        z = ndtri(torch.where(is_low, below, above).clamp_min(1e-300))
        z = torch.where(is_low, z, -z)
        log_det = 0.5 * (z.square() - at.square()) + mass.log() + scale.log()
        y = torch.minimum(torch.maximum((location + scale * mirror * z).to(x), self.lower), self.upper)
        return y, log_det.to(x)

    def _untruncated(self, y: Tensor, location: Tensor) -> tuple[Tensor, Tensor]:
        location, scale, a, b, mirror = self._ends(location)
        inside = torch.where(self.bounded, y, torch.zeros_like(y)).double()
        z = mirror * (inside - location) / scale
        mass = ndtr(b) - ndtr(a)
        below = (ndtr(z) - ndtr(a)) / mass
        above = torch.where(z > 0, ndtr(-z) - ndtr(-b), ndtr(b) - ndtr(z)) / mass
        is_low = below < 0.5
        x = ndtri(torch.where(is_low, below, above).clamp(1e-60, 0.5))
        x = torch.where(is_low, x, -x)
        log_det = 0.5 * (x.square() - z.square()) - mass.log() - scale.log()
        return (mirror * x).to(y), log_det.to(y)

    @property
    def num_outside(self) -> int:
        """Number of columns of :meth:`outside`."""
        return len(self.low) + len(self.high)

    def outside(self, context: Tensor | None = None) -> Tensor:
        """Mass of the normal before truncation beyond each finite bound, lower ones first.

        Args:
            context: Context, ``(*, C)``.

        Returns:
            Probabilities, ``(*, num_outside)``.

        Example:
            >>> TruncatedRegression(torch.tensor([0.0]), torch.tensor([torch.inf])).outside().tolist()
            [0.5]
        """
        location, scale = self.location(context), self.log_scale.exp()
        below = (self.lower[self.low] - location.index_select(-1, self.low)) / scale[self.low]
        above = (location.index_select(-1, self.high) - self.upper[self.high]) / scale[self.high]
        return torch.cat([ndtr(below), ndtr(above)], -1)

    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        r"""Set location and scale to those of greatest likelihood, variable by variable.

        The likelihood is concave in :math:`(W/s, b/s, 1/s)`, truncated or not, so that there is one answer.

        Args:
            y: Values, ``(N, D)``.
            context: Their contexts, ``(N, C)``.

        Raises:
            ValueError: If there are not more rows than coefficients.

        Example:
            >>> t = TruncatedRegression(torch.tensor([-torch.inf]), torch.tensor([torch.inf]), 1)
            >>> c = torch.linspace(-1, 1, 50)[:, None]
            >>> t.initialize(2 * c + 0.1 * torch.randn(50, 1), c)
            >>> bool((t.weight - 2).abs() < 0.2)
            True
        """
        y, context = self._check(y, context, "initialize")
        ones = torch.ones(len(y), 1, dtype=torch.float64, device=y.device)
        design = ones if context is None else torch.cat([context.detach().double(), ones], -1)
        if len(y) <= design.shape[1] + 1:
            raise ValueError(f"initialize needs more than {design.shape[1] + 1} rows, got {len(y)}")
        values = y.detach().double()
        with torch.no_grad():
            # A touch of ridge, for features that are constant or repeat each other.
            gram = design.T @ design + 1e-8 * len(y) * torch.eye(design.shape[1], dtype=design.dtype, device=design.device)
            coefficients = torch.linalg.solve(gram, design.T @ values).T
            scale = (values - design @ coefficients.T).square().mean(0).sqrt().clamp_min(1e-6)
        if self._any_bounded:
            coefficients, scale = self._greatest_likelihood(values, design, coefficients, scale)
        with torch.no_grad():
            if self.weight is not None:
                self.weight.copy_(coefficients[:, :-1])
            self.bias.copy_(coefficients[:, -1])
            self.log_scale.copy_(scale.log())

    @torch.enable_grad()
    def _greatest_likelihood(self, y: Tensor, design: Tensor, coefficients: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.cat([coefficients / scale[:, None], scale.reciprocal().log()[:, None]], 1)
        point = start.clone().requires_grad_()
        lower, upper = self.lower.double(), self.upper.double()
        infinite = torch.full_like(lower, math.inf)
        # A scale beyond the width is a uniform or exponential density to all intents, and would only cost digits.
        least = torch.where(torch.isfinite(upper - lower), -(upper - lower).log(), -infinite)

        def loss() -> Tensor:
            precision = point[:, -1].maximum(least).exp()
            shift = design @ point[:, :-1].T
            low = torch.where(torch.isfinite(lower), lower * precision - shift, -infinite)
            high = torch.where(torch.isfinite(upper), upper * precision - shift, infinite)
            low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)
            # Where only one side is bounded the sums above are infinite and the sides come out right too.
            log_high = log_ndtr(high.clamp(-1e6, 40.0))
            log_mass = log_high + torch.log(-torch.expm1((log_ndtr(low.clamp(-1e6, 40.0)) - log_high).clamp_max(-1e-12)))
            return (0.5 * (y * precision - shift).square() + log_mass - precision.log()).mean(0).sum()

        optimiser = torch.optim.LBFGS([point], max_iter=100, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            value = loss()
            value.backward()
            return value

        optimiser.step(closure)
        found = point.detach()
        if not bool(torch.isfinite(found).all()):
            found = start
        scale = (-found[:, -1].maximum(least)).exp()
        return found[:, :-1] * scale[:, None], scale
