"""Pyro's own transforms."""

from __future__ import annotations

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.distributions.transforms import affine_autoregressive, affine_coupling, spline_autoregressive, spline_coupling
from torch import Tensor, nn

from .common import Flow, Shape, UnsupportedError


def make(shape: Shape) -> Flow:
    """By its factories, with permutations between."""
    hidden = [shape.hidden, shape.hidden]
    spline = {"count_bins": shape.bins, "bound": shape.bound}  # linear rational: its factories allow no quadratic one
    flip = torch.arange(shape.dim).flip(0)
    transforms = []
    for _ in range(shape.layers):
        if shape.kind == "affine coupling":
            layer = affine_coupling(shape.dim, hidden)
        elif shape.kind == "spline coupling":
            layer = spline_coupling(shape.dim, hidden_dims=hidden, **spline)
        elif shape.kind == "affine autoregressive":
            layer = affine_autoregressive(shape.dim, hidden)
        else:
            layer = spline_autoregressive(shape.dim, hidden, **spline)
        transforms += [layer, T.Permute(flip)]
    module = nn.ModuleList(t for t in transforms if isinstance(t, nn.Module))
    if shape.role == "density" and not shape.is_coupling:
        transforms = [t.inv for t in reversed(transforms)]
    distribution = dist.TransformedDistribution(dist.Normal(torch.zeros(shape.dim), 1.0).to_event(1), transforms)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        if shape.role == "density" and shape.kind == "spline autoregressive":
            raise UnsupportedError("its spline autoregressive has no inverse")
        draws = distribution.rsample((count,))
        return draws, distribution.log_prob(draws)

    return Flow(module, distribution.log_prob, draw)
