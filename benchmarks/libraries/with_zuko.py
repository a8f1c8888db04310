"""zuko."""

from __future__ import annotations

import torch
from torch import Tensor
from zuko.flows import MAF, NSF, UnconditionalDistribution
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.lazy import Flow as LazyFlow
from zuko.lazy import LazyInverse
from zuko.transforms import MonotonicRQSTransform

from .common import Flow, Shape


def make(shape: Shape) -> Flow:
    """Its MAF and NSF; its couplings with an alternating mask."""
    hidden = {"hidden_features": (shape.hidden, shape.hidden)}
    if shape.is_coupling:
        masks = [torch.arange(shape.dim) % 2 == i % 2 for i in range(shape.layers)]
        spline = {
            "univariate": lambda *phi: MonotonicRQSTransform(*phi, bound=shape.bound),
            "shapes": [(shape.bins,), (shape.bins,), (shape.bins - 1,)],
        }
        options = {**hidden, **(spline if shape.is_spline else {})}
        layers = [GeneralCouplingTransform(shape.dim, 0, mask, **options) for mask in masks]
        flow = LazyFlow(layers, _normal(shape.dim))
    elif shape.is_spline:
        flow = NSF(shape.dim, transforms=shape.layers, bins=shape.bins, **hidden)
    else:
        flow = MAF(shape.dim, transforms=shape.layers, **hidden)
    if shape.role == "guide" and not shape.is_coupling:
        flow = LazyFlow([LazyInverse(layer) for layer in flow.transform.transforms], _normal(shape.dim))

    def draw(count: int) -> tuple[Tensor, Tensor]:
        return flow().rsample_and_log_prob((count,))  # type: ignore[no-any-return]

    return Flow(flow, lambda x: flow().log_prob(x), draw)


def _normal(dim: int) -> UnconditionalDistribution:
    from zuko.distributions import DiagNormal

    return UnconditionalDistribution(DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True)
