"""nflows."""

from __future__ import annotations

from nflows.distributions import StandardNormal
from nflows.flows import Flow as NFlow
from nflows.nn.nets import MLP
from nflows.transforms import CompositeTransform, InverseTransform, ReversePermutation
from nflows.transforms.autoregressive import (
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
)
from nflows.transforms.coupling import AffineCouplingTransform, PiecewiseRationalQuadraticCouplingTransform
from nflows.utils import create_alternating_binary_mask
from torch import Tensor, nn

from .common import Flow, Shape


class _MLP(MLP):  # type: ignore[misc]
    """Its couplings pass a context too."""

    def forward(self, inputs: Tensor, context: None = None) -> Tensor:
        return super().forward(inputs)  # type: ignore[no-any-return]


def make(shape: Shape) -> Flow:
    """Its transforms with perceptrons of the same widths."""
    layers: list[nn.Module] = []
    spline = {"num_bins": shape.bins, "tails": "linear", "tail_bound": shape.bound}
    masked = {"features": shape.dim, "hidden_features": shape.hidden, "num_blocks": 1, "use_residual_blocks": False}
    for i in range(shape.layers):
        if shape.is_coupling:
            mask = create_alternating_binary_mask(shape.dim, even=i % 2 == 0)
            kind = PiecewiseRationalQuadraticCouplingTransform if shape.is_spline else AffineCouplingTransform
            layers.append(kind(mask, lambda a, b: _MLP((a,), (b,), [shape.hidden] * 2), **(spline if shape.is_spline else {})))
        elif shape.is_spline:
            layers.append(MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**masked, **spline))
        else:
            layers.append(MaskedAffineAutoregressiveTransform(**masked))
        if not shape.is_coupling:
            layers.append(ReversePermutation(shape.dim))
    transform = CompositeTransform(layers)
    if shape.role == "guide" and not shape.is_coupling:
        transform = InverseTransform(transform)
    flow = NFlow(transform, StandardNormal([shape.dim]))

    def draw(count: int) -> tuple[Tensor, Tensor]:
        noise, log_prob = flow._distribution.sample_and_log_prob(count)
        draws, log_det = flow._transform.inverse(noise)
        return draws, log_prob - log_det

    return Flow(flow, flow.log_prob, draw)
