"""Every transform under test, one line each: ``name -> (input_dim, context_dim) -> FlowTransform``."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from pyro_flows import flows
from pyro_flows import transforms as t
from pyro_flows.nn import FirstNumbers

Factory = Callable[[int, int], t.FlowTransform]

TRANSFORMS: dict[str, Factory] = {
    "Elementwise(Shift)": lambda d, c: t.Elementwise(d, t.Shift(), c, hidden_dims=(8,)),
    "Elementwise(Affine)": lambda d, c: t.Elementwise(d, t.Affine(), c, hidden_dims=(8,)),
    "Elementwise(RQS)": lambda d, c: t.Elementwise(d, t.RationalQuadraticSpline(), c, hidden_dims=(8,)),
    "Coupling(Shift)": lambda d, c: t.Coupling(d, t.Shift(), c, hidden_dims=(8,)),
    "Coupling(Affine)": lambda d, c: t.Coupling(d, t.Affine(), c, hidden_dims=(8,)),
    "Coupling(RQS)": lambda d, c: t.Coupling(d, t.RationalQuadraticSpline(), c, hidden_dims=(8,)),
    "Autoregressive(Shift)": lambda d, c: t.Autoregressive(d, t.Shift(), c, hidden_dims=(8,)),
    "Autoregressive(Affine)": lambda d, c: t.Autoregressive(d, t.Affine(), c, hidden_dims=(8,)),
    "Autoregressive(RQS)": lambda d, c: t.Autoregressive(d, t.RationalQuadraticSpline(), c, hidden_dims=(8,)),
    "Elementwise(DeepSigmoid)": lambda d, c: t.Elementwise(d, t.DeepSigmoid(3), c, hidden_dims=(8,)),
    "Coupling(MixtureCDF, logistic)": lambda d, c: t.Coupling(d, t.MixtureCDF(3), c, hidden_dims=(8,)),
    "Elementwise(MixtureCDF, gaussian)": lambda d, c: t.Elementwise(d, t.MixtureCDF(3, "gaussian"), c, hidden_dims=(8,)),
    "Coupling(Bernstein)": lambda d, c: t.Coupling(d, t.Bernstein(5), c, hidden_dims=(8,)),
    "Coupling(SumOfSquares)": lambda d, c: t.Coupling(d, t.SumOfSquares(2, 2), c, hidden_dims=(8,)),
    "Coupling(MonotonicNetwork)": lambda d, c: t.Coupling(d, t.MonotonicNetwork(3, (8,)), c, hidden_dims=(8,)),
    "AffineTril": t.AffineTril,
    "BlockAutoregressive": lambda d, c: t.BlockAutoregressive(d, c, hidden_factor=3, num_hidden=2),
    "LowRankAffine": t.LowRankAffine,
    "LULinear": t.LULinear,
    "Orthogonal(cayley)": t.Orthogonal,
    "Orthogonal(exponential)": lambda d, c: t.Orthogonal(d, c, method="exponential"),
    "Householder": t.Householder,
    "Planar": t.Planar,
    "Radial": t.Radial,
    "Sylvester": t.Sylvester,
    "TruncatedRegression": lambda d, c: unbounded_regression(d, c),
    "RegressionFlow": lambda d, c: t.RegressionFlow(flows.get("real_nvp")(d, c), unbounded_regression(d, c)),
}


def unbounded_regression(dim: int, context_dim: int) -> t.TruncatedRegression:
    """Without bounds, for the laws are about maps of the whole space."""
    return t.TruncatedRegression(torch.full((dim,), -torch.inf), torch.full((dim,), torch.inf), context_dim)


def non_centring(dim: int) -> t.NonCentring:
    """Every variable hangs on all earlier ones, with data on every other one."""
    weight = torch.ones(dim, dim).tril(-1)
    precision = torch.arange(dim) % 2 / 2
    return t.NonCentring(torch.ones(dim), 0.3 * weight, torch.full((dim,), -0.2), 0.2 * weight, precision, torch.full((dim,), 2.0))


# These take no context.
UNCONDITIONAL: dict[str, Factory] = {
    "ActNorm": lambda d, c: t.ActNorm(d),
    "Permutation": lambda d, c: t.Permutation(torch.arange(d).flip(0)),
    "NonCentring": lambda d, c: non_centring(d),
    "LowerCholeskyAffine": lambda d, c: t.LowerCholeskyAffine(torch.ones(d), torch.eye(d) + 0.1 * torch.ones(d, d).tril()),
}

# These need a context of their own, beside what they are given.
TOLD: dict[str, Factory] = {
    "PartialCentring": lambda d, c: t.PartialCentring(d, 2 * d + c),
    "ContextMap": lambda d, c: t.ContextMap(t.AffineTril(d, d + c), FirstNumbers(d + c), 2 * d + c),
}

# Those that take long have fewer layers and smaller maps.
SMALLER: dict[str, dict[str, object]] = {
    "bernstein": {"num_layers": 2, "degree": 5},
    "bnaf": {"num_layers": 2, "hidden_factor": 4},
    "gaussianization": {"num_layers": 2, "num_components": 3},
    "naf": {"num_layers": 2, "num_units": 4},
    "sospf": {"num_layers": 2, "degree": 2, "num_polynomials": 2},
    "umnn": {"num_layers": 2, "embedding_dim": 3, "integrand_dims": (8,)},
}
FLOWS: dict[str, Factory] = {name: flows.get(name) for name in flows.names()}
FLOWS_FOR_LAWS: dict[str, Factory] = {name: functools.partial(flow, **SMALLER.get(name, {})) for name, flow in FLOWS.items()}
