"""normflows."""

from __future__ import annotations

import normflows as nf
from torch import nn

from .common import Flow, Shape


def make(shape: Shape) -> Flow:
    """Its blocks; those of splines have residual networks, with one block for the two hidden layers."""
    layers: list[nn.Module] = []
    for i in range(shape.layers):
        one_block = {"num_blocks": 1, "num_hidden_channels": shape.hidden}
        spline = {"num_bins": shape.bins, "tail_bound": shape.bound, "num_input_channels": shape.dim}
        if shape.kind == "spline coupling":
            layers.append(nf.flows.CoupledRationalQuadraticSpline(**one_block, **spline, reverse_mask=i % 2 == 1))
            continue
        if shape.kind == "affine coupling":
            half = shape.dim // 2
            layers.append(nf.flows.AffineCouplingBlock(nf.nets.MLP([half, shape.hidden, shape.hidden, 2 * (shape.dim - half)])))
        elif shape.is_spline:
            layer = nf.flows.AutoregressiveRationalQuadraticSpline(**one_block, **spline)
            layers.append(layer if shape.role == "density" else nf.flows.Reverse(layer))
        else:
            layer = nf.flows.MaskedAffineAutoregressive(shape.dim, shape.hidden, num_blocks=1, use_residual_blocks=False)
            layers.append(layer if shape.role == "guide" else nf.flows.Reverse(layer))
        layers.append(nf.flows.Permute(shape.dim, mode="swap"))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(shape.dim, trainable=False), layers)
    return Flow(flow, flow.log_prob, flow.sample)
