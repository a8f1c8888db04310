"""Map that gives a normal variable tails like those of Student's t."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.solvers import attach_gradient

from .base import Params, UnivariateMap

_START = -5.5  # the logit of a weight of 0.004, by which a normal variable has hardly changed
_GAIN = 10.0  # so that a step of training moves a weight by some per cent


class HeavyTails(UnivariateMap):
    r"""Tail transform: a normal variable gets tails of polynomial order, of a learnable weight on either side.

    .. math:: y = x\,e^{h x^2 / 2}, \qquad h = h_- \text{ or } h_+ \text{ for } x < 0 \text{ or } x > 0,\quad 0 < h < 1

    For a standard normal x the density of y falls like :math:`|y|^{-1 - 1/h}`, as that of Student's t with :math:`1 / h` degrees of
    freedom does: a flow of lighter maps alone keeps the tails of its base. The inverse is :math:`x = y\,e^{-W(h y^2) / 2}` with
    Lambert's function W. Beyond :math:`|x| = 8`, where a normal variable never is, it goes on as a line.

    It starts at h = 0.004, where it is the identity to 2 % at two standard deviations.

    References:
        Goerg (2015), *The Lambert way to Gaussianize heavy-tailed data*, https://doi.org/10.1155/2015/909231;
        Hickling, Prangle (2024), *Flexible tails for normalizing flows*, https://arxiv.org/abs/2406.16971

    Example:
        >>> tails = HeavyTails()
        >>> y, _ = tails.forward_and_log_det(torch.tensor([-4.0, 0.5, 4.0]), (torch.full((3,), -2.0), torch.full((3,), 0.6)))
        >>> [round(value, 2) for value in y.tolist()]
        [-4.0, 0.54, 581.71]
    """

    END = 8.0

    def __init__(self) -> None:
        super().__init__()
        self.param_shapes = ((), ())

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        weight = _weight(x, params)
        inside = x.clamp(-self.END, self.END)
        power = weight * inside.square()
        growth = (0.5 * power).exp()
        log_slope = 0.5 * power + power.log1p()
        return growth * (inside + (x - inside) * (1 + power)), log_slope

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        weight = _weight(y, params)
        last = weight * self.END**2
        end = self.END * (0.5 * last).exp()
        inside = torch.maximum(torch.minimum(y, end), -end)
        power = _lambert_w(weight * inside.square())
        beyond = (y - inside) * (-0.5 * last).exp() / (1 + last)
        return inside * (-0.5 * power).exp() + beyond, -0.5 * power - power.log1p()


def _weight(at: Tensor, params: Params) -> Tensor:
    """Of the side on which a point is."""
    left, right = (torch.sigmoid(_START + _GAIN * raw) for raw in params)
    return torch.where(at < 0, left, right)


def _lambert_w(t: Tensor) -> Tensor:
    """Root w of w e^w = t, for t from 0 to e^70."""

    def value_and_slope(w: Tensor) -> tuple[Tensor, Tensor]:
        growth = w.exp()
        return w * growth, (1 + w) * growth

    with torch.no_grad():
        near = t.log1p()
        log_t = t.clamp(min=3.0).log()
        w = torch.where(t < 3.0, near * (1 - near / (2 + near)), log_t - log_t.log())
        for _ in range(5):  # Halley's steps, of third order
            residual = w - t * (-w).exp()
            w = w - residual / (w + 1 - (w + 2) * residual / (2 * w + 2))
    return attach_gradient(value_and_slope, t, w)
