"""Every transform under test, one line each: ``name -> (input_dim, context_dim) -> FlowTransform``."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from pyro_flows import flows
from pyro_flows import transforms as t
from pyro_flows.nn import FirstNumbers, LipschitzNetwork, ProximalNetwork, VelocityField, VelocityMLP

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
    "Elementwise(HeavyTails)": lambda d, c: t.Elementwise(d, t.HeavyTails(), c, hidden_dims=(8,)),
    "Elementwise(CircularSpline)": lambda d, c: t.Elementwise(d, t.CircularSpline(4), c, hidden_dims=(8,)),
    "Elementwise(NonCompactProjection)": lambda d, c: t.Elementwise(d, t.NonCompactProjection(), c, hidden_dims=(8,)),
    "Elementwise(MoebiusMixture)": lambda d, c: t.Elementwise(d, t.MoebiusMixture(3), c, hidden_dims=(8,)),
    "Coupling(CircularSpline)": lambda d, c: t.Coupling(d, t.CircularSpline(4), c, hidden_dims=(8,)),
    "Autoregressive(HeavyTails)": lambda d, c: t.Autoregressive(d, t.HeavyTails(), c, hidden_dims=(8,)),
    "AffineTril": t.AffineTril,
    "BlockAutoregressive": lambda d, c: t.BlockAutoregressive(d, c, hidden_factor=3, num_hidden=2),
    "CNF(own field, adjoint)": lambda d, c: t.CNF(Saturating(d, c), gradient="adjoint", tolerance=2e-6),
    "CNF(rk4)": lambda d, c: t.CNF(VelocityMLP(d, c, (8,), time="concat"), solver="rk4", num_steps=16, tolerance=1e-8),
    "ConvexPotential": lambda d, c: t.ConvexPotential(d, c, hidden_dims=(8, 8)),
    "FreeForm": lambda d, c: t.FreeForm(d, c, hidden_dims=(6,)),
    "LowRankAffine": t.LowRankAffine,
    "LULinear": t.LULinear,
    "Orthogonal(cayley)": t.Orthogonal,
    "Orthogonal(exponential)": lambda d, c: t.Orthogonal(d, c, method="exponential"),
    "Householder": t.Householder,
    "Planar": t.Planar,
    "Radial": t.Radial,
    "Residual(Lipschitz)": lambda d, c: t.Residual(LipschitzNetwork(d, c, (8, 8))),
    "Residual(proximal)": lambda d, c: t.Residual(ProximalNetwork(d, c, (8, 8))),
    "Sylvester": t.Sylvester,
    "TruncatedRegression": lambda d, c: unbounded_regression(d, c),
    "RegressionFlow": lambda d, c: t.RegressionFlow(flows.get("real_nvp")(d, c), unbounded_regression(d, c)),
}


class Saturating(VelocityField):
    """A field of a user's own, without a Jacobian in closed form."""

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__(dim, context_dim)
        self.inner = torch.nn.Linear(dim + context_dim + 1, 6)
        self.outer = torch.nn.Linear(6, dim)

    def forward(self, t, x, context=None):
        parts = [x, t.expand(x.shape[:-1])[..., None]]
        parts += [] if context is None else [context.expand(*x.shape[:-1], -1)]
        return 0.1 * self.outer(self.inner(torch.cat(parts, -1)).sigmoid())


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
    "BatchNorm, evaluating": lambda d, c: t.BatchNorm(d).eval(),
    "Elementwise(SoftClip)": lambda d, c: t.Elementwise(d, t.SoftClip(1e6)),
    "Elementwise(LogSoftExtension)": lambda d, c: t.Elementwise(d, t.LogSoftExtension(1e4)),
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
    "cnf": {"hidden_dims": (16, 16), "tolerance": 2e-6},
    "convex_potential": {"num_layers": 2, "hidden_dims": (16, 16)},
    "gaussianization": {"num_layers": 2, "num_components": 3},
    "naf": {"num_layers": 2, "num_units": 4},
    "proximal_residual": {"num_layers": 2, "hidden_dims": (16, 16)},
    "residual": {"num_layers": 2, "hidden_dims": (16, 16)},
    "sospf": {"num_layers": 2, "degree": 2, "num_polynomials": 2},
    "umnn": {"num_layers": 2, "embedding_dim": 3, "integrand_dims": (8,)},
}
FLOWS: dict[str, Factory] = {name: flows.get(name) for name in flows.names()}
FLOWS_FOR_LAWS: dict[str, Factory] = {name: functools.partial(flow, **SMALLER.get(name, {})) for name, flow in FLOWS.items()}


class Flattened(t.FlowTransform):
    """A transform of images as one of vectors, for laws about these."""

    def __init__(self, transform: t.FlowTransform) -> None:
        super().__init__(transform.input_dim, transform.context_dim)
        self.transform = transform

    def forward_and_log_det(self, x, context=None):
        y, log_det = self.transform.forward_and_log_det(x.unflatten(-1, self.transform.event_shape), context)
        return y.flatten(-3), log_det

    def inverse_and_log_det(self, y, context=None):
        x, log_det = self.transform.inverse_and_log_det(y.unflatten(-1, self.transform.output_shape), context)
        return x.flatten(-3), log_det


# Of images of 16 pixels in all.
IMAGES: dict[str, Callable[[int], t.FlowTransform]] = {
    "Squeeze": lambda c: t.Squeeze((1, 4, 4)),
    "PerPixel(LULinear)": lambda c: t.PerPixel((2, 2, 4), t.LULinear(2, c)),
    "InvertibleConv1x1": lambda c: t.InvertibleConv1x1((4, 2, 2), c),
    "ImageCoupling(channels)": lambda c: t.ImageCoupling((4, 2, 2), t.Affine(), c, hidden_channels=4),
    "ImageCoupling(checkerboard)": lambda c: t.ImageCoupling(
        (1, 4, 4), t.RationalQuadraticSpline(3), c, mask="checkerboard", hidden_channels=4
    ),
    "Split": lambda c: t.Split(t.ImageCoupling((2, 2, 2), t.Affine(), c, hidden_channels=4), hidden_channels=4),
    **{
        name: lambda c, name=name: flows.get(name)((1, 4, 4), c, num_steps=2, hidden_channels=4)  # type: ignore[misc]
        for name in flows.names("image")
    },
}
