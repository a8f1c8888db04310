"""Surjections: likelihoods that are densities, bounds that are bounds, draws that fit them, and clear refusals."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import Normal, SoftplusTransform, biject_to, constraints

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.transforms import (
    Abs,
    Affine,
    AffineTril,
    Augmentation,
    Compose,
    Dequantization,
    Elementwise,
    Max,
    Slice,
    Sort,
    TorchTransform,
)

F64 = torch.float64


def moved(transform, scale=0.1):
    """With parameters away from their start."""
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return transform


def grid(*axes):
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    return points, cell


POSITIVE = lambda d: TorchTransform(SoftplusTransform(), (d,))  # noqa: E731
ORDERED = lambda d: TorchTransform(pyro_constraints.ordered_vector, (d,))  # noqa: E731
EXACT = {
    "Abs": (lambda c: [AffineTril(2, c), POSITIVE(2), Abs(2, c)], 2),
    "Abs, with a network": (lambda c: [AffineTril(2, c), POSITIVE(2), Abs(2, c, symmetric=False)], 2),
    "Sort": (lambda c: [AffineTril(2, c), ORDERED(2), Sort(2)], 2),
    "Max": (lambda c: [AffineTril(1, c), Max(1, 2, c)], 2),
    "Slice": (lambda c: [AffineTril(1, c), Slice(1, 1, c)], 2),
    "Slice, with a flow": (lambda c: [AffineTril(1, c), Slice(1, 1, c, rest=flows.nsf_coupling(1, 1 + c, num_layers=2))], 2),
}


def distribution(name, context_dim=0):
    parts, dim = EXACT[name][0](context_dim), EXACT[name][1]
    flow = moved(Compose(parts)).double()
    assert (flow.output_shape, flow.bijective, flow.log_det_kind) == ((dim,), False, "exact")
    return pf.FlowDistribution(flow)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("context_dim", [0, 3])
def test_an_exact_likelihood_is_a_density_and_that_of_the_draws(name, context_dim):
    """Shares of draws in 16 cells against the integral over them; false alarms: 5 standard errors, 1e-5."""
    q = distribution(name, context_dim)
    q = q if not context_dim else q.condition(torch.ones(context_dim, dtype=F64))
    draws = q.sample((20_000,))
    low, high = draws.min(0).values - 2, draws.max(0).values + 2
    axes = [torch.linspace(a, b, 601, dtype=F64) for a, b in zip(low, high, strict=True)]
    points, cell = grid(*axes)
    density = torch.cat([q.log_prob(part).detach() for part in points.split(100_000)]).exp()
    density = density.nan_to_num()  # points on the seams
    assert abs(float(density.sum()) * cell - 1) < 0.01
    edges = torch.quantile(draws, torch.tensor([0.25, 0.5, 0.75], dtype=F64), dim=0)
    which = lambda x: sum((x[:, i : i + 1] > edges[:, i]).sum(-1) * 4**i for i in range(2))  # noqa: E731
    expected = torch.zeros(16, dtype=F64).index_add(0, which(points), density * cell)
    found = torch.bincount(which(draws), minlength=16) / len(draws)
    assert ((found - expected).abs() < 5 * (expected / len(draws)).sqrt() + 0.01).all(), (found - expected).abs().max()


def test_signs_and_orders_do_not_matter():
    q = distribution("Abs")
    y = torch.randn(5, 2, dtype=F64)
    torch.testing.assert_close(q.log_prob(y), q.log_prob(y * torch.tensor([1.0, -1.0], dtype=F64)))
    q = distribution("Sort")
    torch.testing.assert_close(q.log_prob(y), q.log_prob(y.flip(-1)))


def test_sorting_independent_normals_changes_nothing():
    """Latents with the density of sorted normal values, D! times the product."""

    class Sorted(torch.distributions.Distribution):
        arg_constraints, support, has_rsample = {}, pyro_constraints.ordered_vector, True

        def __init__(self):
            super().__init__(event_shape=(3,), validate_args=False)

        def rsample(self, shape=()):
            return torch.randn(*shape, 3).sort(-1).values

        def log_prob(self, x):
            return Normal(0.0, 1.0).log_prob(x).sum(-1) + math.lgamma(4)

    y = torch.randn(10, 3)
    torch.testing.assert_close(pf.FlowDistribution(Sort(3), Sorted()).log_prob(y), Normal(0.0, 1.0).log_prob(y).sum(-1))


def test_augmentation_has_the_marginal_in_the_mean():
    """Noise that a linear map mixes: the marginal is known, and the mean of exp(log_prob) is it. False alarms: 5 se."""
    linear = moved(AffineTril(3), 0.5).double()
    flow = Compose([linear, moved(Augmentation(2, 1)).double()])
    assert (flow.log_det_kind, flow.event_shape, flow.output_shape) == ("bound", (3,), (2,))
    q = pf.FlowDistribution(flow)
    origin = torch.zeros(3, dtype=F64)
    loc = linear(origin).detach()
    scale = torch.autograd.functional.jacobian(linear, origin)
    truth = torch.distributions.MultivariateNormal(loc[:2], (scale @ scale.T)[:2, :2])
    y = truth.sample()
    many = q.log_prob(y.expand(40_000, 2)).detach()
    ratio = (many - truth.log_prob(y)).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 200
    assert many.mean() < truth.log_prob(y)


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("num_bins", [None, 4])
def test_dequantisation_bounds_the_probability(variational, num_bins):
    """Probabilities of cells of a normal variable, by differences of its distribution function. False alarms: 5 standard errors."""
    noise = moved(flows.nsf_coupling(1, 1, num_layers=1)).double() if variational else None
    to_unit = [] if num_bins is None else [TorchTransform(biject_to(constraints.unit_interval), (1,))]
    flow = Compose([*to_unit, Dequantization((1,), num_bins, noise=noise)]) if to_unit else Dequantization((1,), noise=noise)
    q = pf.FlowDistribution(flow, pf.distributions.StandardNormal((1,), dtype=F64))
    assert q.transform.log_det_kind == "bound"
    for value in (0.0, 1.0) if num_bins else (-1.0, 0.0, 2.0):
        edges = torch.tensor([value, value + 1], dtype=F64)
        edges = edges if num_bins is None else (edges / num_bins).logit()
        truth = Normal(0.0, 1.0).cdf(edges).diff().log()
        many = q.log_prob(torch.full((40_000, 1), value, dtype=F64)).detach()
        ratio = (many - truth).exp()
        assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 200
        assert many.mean() < truth
    draws = q.sample((20_000,))
    share = (draws == 0.0).double().mean()
    edges = torch.tensor([0.0, 1.0], dtype=F64) if num_bins is None else (torch.tensor([0.0, 1.0], dtype=F64) / num_bins).logit()
    assert abs(share - Normal(0.0, 1.0).cdf(edges).diff()) < 5 * 0.5 / len(draws) ** 0.5


def test_latents_of_whole_numbers_stay_in_their_cell():
    layer = Dequantization((1,), 256)
    y = torch.arange(256.0)[:, None].expand(256, 500).reshape(-1, 1)
    x, _ = layer.inverse_and_log_det(y)
    assert bool((x < 1).all()) and torch.equal(layer(x), y)


def test_a_surjection_is_a_likelihood_in_pyro():
    """The scale of symmetric data, learned through Pyro's SVI with a conditional surjective flow."""
    torch.manual_seed(0)
    x = torch.rand(400, 1)
    y = (x + 0.5) * torch.exp(0.3 * torch.randn(400, 1)) * (2 * torch.randint(0, 2, (400, 1)) - 1)
    to_positive = TorchTransform(constraints.positive, (1,))
    flow = Compose([Elementwise(1, Affine(), 1, hidden_dims=(16,)), to_positive, Abs(1)])

    def model():
        pyro.module("flow", flow)
        with pyro.plate("n", len(x)):
            pyro.sample("y", pf.FlowDistribution(flow).condition(x), obs=y)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step() for _ in range(300)]
    truth = -(Normal((x + 0.5).log(), 0.3).log_prob(y.abs().log()) - y.abs().log() - math.log(2)).sum()
    assert abs(losses[-1] - truth) < 8  # two parameters and a network: some nats below to some above


def test_fit_density_takes_surjections():
    data = torch.randn(400, 2).abs() + 1
    data = data * (2 * torch.randint(0, 2, data.shape) - 1)
    flow = Compose([flows.nsf_coupling(2, num_layers=2), POSITIVE(2), Abs(2)])
    fit = pf.fit_density(flow, data, max_epochs=20, seed=0, progress=False)
    torch.testing.assert_close(fit.log_prob(data), fit.log_prob(-data))
    counts = (torch.randn(300, 2) * 2).round()
    fit = pf.fit_density(Compose([AffineTril(2), Dequantization((2,))]), counts, max_epochs=30, lr=0.05, seed=0, progress=False)
    assert -fit.log_prob(counts).mean() < 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(2)) + 0.2


@pytest.mark.parametrize("kind", ["counts", "exchangeable", "symmetric"])
def test_flows_of_other_data_start_from_the_data(kind):
    torch.manual_seed(0)
    normal = torch.randn(600, 2) @ torch.tensor([[2.0, 1.5], [0.0, 1.0]])
    data = {"counts": (normal + 20).round(), "exchangeable": normal.sort(-1).values.gather(-1, torch.rand(600, 2).argsort(-1))}
    rows = data.get(kind, (normal.abs() + 3) * (2 * torch.randint(0, 2, (600, 2)) - 1))
    flow = getattr(flows, f"of_{kind}")(flows.affine(2))
    fit = pf.fit_density(flow, rows, max_epochs=25, lr=1e-2, seed=0, progress=False)
    draws = fit.sample(4000, seed=0)
    assert ((draws.mean(0) - rows.mean(0)).abs() < 0.5).all()
    assert ((draws.std(0) / rows.std(0) - 1).abs() < 0.4).all()


def test_whole_numbers_are_warned_about_and_flows_must_fit_surjections():
    with pytest.warns(UserWarning, match="whole numbers"):
        pf.fit_density("affine", torch.randn(50, 2).round(), max_epochs=1, seed=0, progress=False)
    with pytest.raises(ValueError, match="Sort, takes values in .* gives values in"):
        Compose([flows.affine(2), Sort(2)])
    with pytest.raises(ValueError, match="Abs, takes values in"):
        Compose([flows.affine(2), Abs(2)])
    with pytest.raises(ValueError, match="flow must be a FlowTransform"):
        flows.of_counts("maf")
    with pytest.raises(ValueError, match="one of vectors"):
        flows.of_symmetric(flows.glow((1, 4, 4), num_steps=1))


def test_draws_have_no_gradient_and_guides_refuse_them():
    q = distribution("Abs")
    assert not q.has_rsample
    value, log_prob = q.rsample_and_log_prob((5,))
    torch.testing.assert_close(q.log_prob(value), log_prob)
    with pytest.raises(ValueError, match="surjections"):
        q.rsample_with_score((5,))

    def model():
        pyro.sample("x", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="surjections"):
        pf.AutoFlow(model, lambda d, c: Compose([POSITIVE(d), Abs(d)])).setup()


def test_what_is_drawn_is_drawn_anew():
    q = pf.FlowDistribution(Dequantization((3,)))
    y = torch.zeros(3)
    assert q.log_prob(y) != q.log_prob(y)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Dequantization((2,), 256).inverse_and_log_det(torch.tensor([-1.0, 3.0])), "numbers from 0 to 255 .*got -1 to 3"),
        (lambda: Dequantization((2,), 256).inverse_and_log_det(torch.tensor([256.0, 3.0])), "got 3 to 256"),
        (lambda: Dequantization((2,)).inverse_and_log_det(torch.tensor([0.5, 3.0])), "whole numbers"),
        (lambda: Dequantization((2,)).inverse_and_log_det(torch.tensor([torch.nan, 3.0])), "whole numbers"),
        (lambda: Dequantization((2,), 1), "num_bins"),
        (lambda: Dequantization((2,), 4, noise=flows.affine(2)), "noise must be a transform of 2 variables with context_dim=2"),
        (lambda: Slice(2, 3, rest=flows.affine(2, 2)), "rest must be a transform of 3 variables"),
        (lambda: Slice(2, 0), "num_rest"),
        (lambda: Augmentation(2, 0), "num_more"),
        (lambda: Max(2, 1), "group_size"),
        (lambda: TorchTransform(torch.distributions.AbsTransform(), (2,)), "bijective"),
        (lambda: TorchTransform(biject_to(constraints.simplex), ()), "at least 1 dimensions"),
    ],
)
def test_bad_input_is_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("constraint", [constraints.positive, constraints.simplex, constraints.interval(2.0, 3.0)])
def test_a_transform_of_torch_is_one_of_ours(constraint):
    transform = TorchTransform(constraint, (3,))
    assert transform.codomain.event_dim == 1 and transform.codomain.check(transform(torch.zeros(3))).all()
    flow = Compose([AffineTril(3).double(), transform])
    q = pf.FlowDistribution(flow)
    y, log_prob = q.rsample_and_log_prob((6,))
    assert bool(constraint.check(y).all()) and q.event_shape == transform.output_shape
    torch.testing.assert_close(q.log_prob(y.detach()), log_prob)
    expected = torch.distributions.TransformedDistribution(
        Normal(torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)).expand((3,)), [biject_to(constraint)]
    )
    expected = torch.distributions.Independent(expected, 1 - len(expected.event_shape)) if not expected.event_shape else expected
    torch.testing.assert_close(log_prob, expected.log_prob(y))
    assert flow.inv.forward_shape((6, *transform.output_shape)) == (6, 3)
