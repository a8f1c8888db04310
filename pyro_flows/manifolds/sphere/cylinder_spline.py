"""Recursive spline flow on the cylinder coordinates of a sphere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_flows.nn.mlp import MLP
from pyro_flows.transforms.univariate import CircularSpline, RationalQuadraticSpline

from .base import SphereTransform


class CylinderSpline(SphereTransform):
    r"""Recursive flow of splines: an angle, then one height after the other, each given the direction below it.

    A point of :math:`S^d` is :math:`x = (\sqrt{1 - h^2}\,s, h)` with a height h and :math:`s \in S^{d-1}`. A circular spline maps
    the angle of :math:`S^1`, and rational-quadratic splines of [-1, 1] the heights, with parameters by networks of the image of s
    and of the context. The area is :math:`(1 - h^2)^{(d-2)/2} dh\,ds`, so that

    .. math:: \log R = \log|\theta'| + \sum_{d=2}^{n-1} \log\Big|\frac{dh_d'}{dh_d}\Big|
        + \tfrac{d - 2}{2} \log\frac{1 - h_d'^2}{1 - h_d^2}.

    Both directions take one pass. Poles :math:`h = \pm 1` stay where they are. ``axis`` chooses the coordinate that is the last
    height, so that layers with different axes have no common pole. Starts at the identity.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428, section 2.3.2

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.
        num_bins: Number of bins of each spline.
        hidden_dims: Hidden layers of the networks.
        axis: Coordinate of the last height, from 0 to n - 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> flow = CylinderSpline(4)
        >>> x = torch.tensor([0.5, 0.5, 0.5, 0.5])
        >>> flow(x).detach()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        num_bins: int = 8,
        hidden_dims: Sequence[int] = (64, 64),
        axis: int = -1,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if not isinstance(axis, int) or not -input_dim <= axis < input_dim:
            raise ValueError(f"axis must be an integer from 0 to {input_dim - 1}, got {axis!r}")
        self.axis = axis % input_dim
        self.circle = CircularSpline(num_bins)
        self.height = RationalQuadraticSpline(num_bins, 1.0)
        self.of_circle = (
            MLP(context_dim, self.circle.param_count, hidden_dims, zero_init=True)
            if context_dim
            else _Constant(self.circle.param_count)
        )
        self.of_heights = nn.ModuleList(
            MLP(d + context_dim, self.height.param_count, hidden_dims, zero_init=True) for d in range(2, input_dim)
        )

    def extra_repr(self) -> str:
        return f"{self.input_dim}, axis={self.axis}"

    def on_sphere(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        at = at.roll(self.input_dim - 1 - self.axis, -1)
        tiny = torch.finfo(at.dtype).tiny ** 0.5
        raw = self.of_circle(context if context is not None else at[..., :1]).movedim(-1, 0)
        direction = self.circle.inverse_and_log_det if inverse else self.circle.forward_and_log_det
        angle, log_ratio = direction(_angle(at[..., 0], at[..., 1]), self.circle.split(raw))
        given = _below(at[..., :2], tiny)
        made = torch.stack([angle.cos(), angle.sin()], -1)
        for d, network in enumerate(self.of_heights, start=2):
            # The direction below, on the side of y in either direction.
            below = given if inverse else made
            seen = below if context is None else torch.cat([below, context.expand(*below.shape[:-1], -1)], -1)
            raw = network(seen).movedim(-1, 0)
            parts = at[..., : d + 1]
            length = parts.norm(dim=-1).clamp(min=tiny)
            h = (parts[..., d] / length).clamp(-1, 1)
            ring = parts[..., :d].norm(dim=-1) / length
            map_ = self.height.inverse_and_log_det if inverse else self.height.forward_and_log_det
            new, log_slope = map_(h, self.height.split(raw))
            # The distance to a pole, to all its digits; near the pole a spline is the line of its slope there.
            gap = ring.square() / (1 + h.abs())
            near = gap < 0.1 * torch.finfo(at.dtype).eps ** 0.5
            new_gap = torch.where(near, log_slope.exp() * gap, 1 - new.abs()).clamp(0, 1)
            new = torch.where(near, torch.sign(h) * (1 - new_gap), new).clamp(-1, 1)
            new_ring = torch.where(near, new_gap * (2 - new_gap), (1 - new) * (1 + new)).clamp(min=tiny**2).sqrt()
            ratio = torch.where(near, torch.ones_like(ring), new_ring) / torch.where(near, torch.ones_like(ring), ring)
            log_ring = torch.where(near, 0.5 * log_slope, ratio.log())
            log_ratio = log_ratio + log_slope + (d - 2) * log_ring
            given = _below(parts, tiny)
            made = torch.cat([new_ring[..., None] * made, new[..., None]], -1)
        made = made / made.norm(dim=-1, keepdim=True)
        return made.roll(self.axis + 1 - self.input_dim, -1), log_ratio


class _Constant(nn.Module):
    """Parameters that depend on nothing."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(count))

    def forward(self, like: Tensor) -> Tensor:
        return self.raw.expand(*like.shape[:-1], -1)


def _angle(x: Tensor, y: Tensor) -> Tensor:
    """Angle of a vector; that of zero is zero, with gradients that are zero."""
    origin = (x == 0) & (y == 0)
    return torch.atan2(y, torch.where(origin, torch.ones_like(x), x))


def _below(parts: Tensor, tiny: float) -> Tensor:
    """The direction of the first coordinates, or some direction where these vanish."""
    length = parts.norm(dim=-1, keepdim=True)
    first = torch.zeros_like(parts)
    first = torch.cat([torch.ones_like(parts[..., :1]), first[..., 1:]], -1)
    return torch.where(length <= tiny, first, parts / length.clamp(min=tiny))
