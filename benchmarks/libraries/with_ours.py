"""pyro_flows."""

from __future__ import annotations

import pyro_flows as pf

from .common import Flow, Shape

_NAMES = {
    "affine coupling": "real_nvp",
    "affine autoregressive": "maf",
    "spline coupling": "nsf_coupling",
    "spline autoregressive": "nsf_autoregressive",
}


def make(shape: Shape) -> Flow:
    """By the factory of the kind."""
    options = {"num_layers": shape.layers, "hidden_dims": (shape.hidden, shape.hidden)}
    if shape.is_spline:
        options |= {"num_bins": shape.bins, "bound": shape.bound}
    transform = pf.flows.get(_NAMES[shape.kind])(shape.dim, **options)
    wanted = "inverse" if shape.role == "density" else "forward"
    if transform.cheap_direction not in ("both", wanted):
        transform = transform.inv
    distribution = pf.FlowDistribution(transform)
    return Flow(distribution, distribution.log_prob, lambda n: distribution.rsample_and_log_prob((n,)), distribution)
