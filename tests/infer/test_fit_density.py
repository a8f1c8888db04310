"""fit_density: maximum likelihood of flows, against closed forms; standardisation, contexts, early stop and bad input."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from tqdm import tqdm

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.distributions import FlowDistribution, FlowMixture
from pyro_flows.infer.maximum_likelihood import maximise_likelihood
from pyro_flows.manifolds import TorusFreeForm
from pyro_flows.nn import ColumnMLP
from pyro_flows.transforms import ActNorm, Affine, Compose, Elementwise, FreeForm


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)


def skewed(count, seed):
    """A banana in units far from one: x ~ N(0, 1), y = x^2 + N(0, 0.5), shifted and scaled; and its exact entropy in nats."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    y = x**2 + 0.5 * torch.randn(count, generator=generator)
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e) + math.log(0.5) + math.log(100.0) + math.log(0.01)
    return torch.stack([100.0 * x + 1000.0, 0.01 * y - 5.0], -1), entropy


@pytest.mark.parametrize("flow", ["nsf_coupling", "naf"])
def test_a_banana_in_odd_units_is_fitted_to_its_entropy(flow):
    """Held-out nats: 4,000 rows, standard error 0.016; a normal is 0.5 nats behind."""
    data, entropy = skewed(4000, 1)
    fit = pf.fit_density(flow, data, max_epochs=30, seed=0, progress=False)
    fresh, _ = skewed(4000, 2)
    assert abs(float(-fit.log_prob(fresh).mean()) - entropy) < 0.12
    draws = fit.sample(4000, seed=0)
    assert abs(draws.mean(0)[0] - 1000.0) < 10.0 and abs(draws.std(0)[0] / 100.0 - 1) < 0.1
    assert fit.run.best_epoch > 0 and len(fit.validation_losses) == len(fit.losses) + 1


def test_gaussianization_leaves_its_start():
    """Eight normals on a circle: with components that start as one a flow stays as good as a normal, 0.8 nats behind.

    Held-out nats of 2,000 rows, standard error 0.03; with components that coincide, and with rotations that start at the identity
    alone, 150 steps gain less than 0.1."""

    def eight_normals(count):
        angle = torch.randint(8, (count,)) * math.pi / 4
        return 4 * torch.stack([angle.cos(), angle.sin()], -1) + 0.5 * torch.randn(count, 2)

    data, fresh = eight_normals(5000), eight_normals(2000)
    options = {"flow_options": {"num_layers": 3}, "max_epochs": 5, "lr": 1e-2, "seed": 0, "progress": False}
    nats = pf.fit_density("gaussianization", data, **options).log_prob(fresh).mean()
    normal = dist.MultivariateNormal(data.mean(0), torch.cov(data.T)).log_prob(fresh).mean()
    assert nats > normal + 0.4


@pytest.mark.parametrize(
    ("rows", "steep", "expected"), [(1200, None, True), (400, None, False), (400, True, True), (1200, False, False)]
)
def test_networks_start_steep_where_rows_are_plenty(rows, steep, expected):
    """Weights of units of one or more inputs start within 1 of zero, or with a standard deviation of 2.8 / n."""
    options = {"flow_options": {"num_layers": 1}, "max_epochs": 1, "lr": 1e-6, "validation_share": 0.1}
    fit = pf.fit_density("maf", torch.randn(rows, 2), steep=steep, seed=0, progress=False, **options)
    (network,) = {m for m in fit.distribution.modules() if isinstance(m, ColumnMLP)}
    assert (network.weights.abs().max() > 1.1).item() is expected


def test_an_affine_flow_finds_the_maximum_likelihood_normal():
    data = torch.randn(2000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.3]]) + torch.tensor([5.0, -2.0])
    fit = pf.fit_density("affine", data, validation=(data,), max_epochs=100, lr=5e-2, batch_size=500, seed=0, progress=False)
    best = dist.MultivariateNormal(data.mean(0), torch.cov(data.T)).log_prob(data).mean()
    assert abs(fit.log_prob(data).mean() - best) < 2e-3


def test_a_conditional_density_follows_its_context():
    """y | c ~ N(sin c, 0.1 + 0.1 c^2) contexts in units of a thousand; nats against the truth, standard error 0.02."""
    context = 2 * torch.randn(4000, 1)
    scale = 0.1 + 0.1 * context**2
    y = context.sin() + scale * torch.randn(4000, 1)
    fit = pf.fit_density(
        "nsf_autoregressive", y, 1000 * context, flow_options={"num_layers": 2}, max_epochs=40, seed=0, progress=False
    )
    new = 2 * torch.randn(2000, 1)
    truth = dist.Normal(new.sin(), 0.1 + 0.1 * new**2)
    draws = truth.sample()
    assert float((truth.log_prob(draws)[:, 0] - fit.log_prob(draws, 1000 * new)).mean()) < 0.12
    assert fit.sample(5, torch.zeros(3, 1)).shape == (5, 3, 1)
    assert fit.log_prob(draws[0], 1000 * new[0]).shape == ()
    with pytest.raises(ValueError, match="context_dim=1, got none"):
        fit.log_prob(draws)


@pytest.mark.parametrize("inverse", [False, True])
def test_actnorm_starts_from_what_reaches_it(inverse):
    layers = Compose([ActNorm(2), Elementwise(2, Affine()), ActNorm(2)])
    data = torch.randn(500, 2) * torch.tensor([3.0, 0.2]) + 7.0
    flow = layers.inv if inverse else layers
    fit = pf.fit_density(flow, data, standardise=False, max_epochs=1, lr=1e-8, seed=0, progress=False)
    noise = fit.distribution.transform.inv(data)
    assert all(bool(part.initialized) for part in layers if isinstance(part, ActNorm))
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), atol=0.2, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.ones(2), atol=0.2, rtol=0)


def test_training_is_reproducible_stops_early_and_keeps_the_best_state():
    data = torch.randn(200, 3)
    options = {"max_epochs": 60, "patience": 5, "lr": 2e-2, "batch_size": 64, "seed": 3, "progress": False}
    state = torch.get_rng_state()
    fits = [pf.fit_density("real_nvp", data, **options) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    assert fits[0].validation_losses == fits[1].validation_losses
    assert fits[0].stop_reason == "no_progress" and len(fits[0].losses) < 60
    assert fits[0].validation_losses[fits[0].run.best_epoch] == min(fits[0].validation_losses)
    assert not fits[0].distribution.training
    assert torch.equal(fits[0].sample(3, seed=1), fits[1].sample(3, seed=1))


def test_a_base_of_its_own_and_double_precision():
    data = dist.StudentT(2.0).sample((1000, 2)).double()
    base = pf.distributions.StudentTBase(2, df=5.0).double()
    flow = pf.FlowDistribution(flows.affine(2).double(), base)
    before = base.df.detach().clone()
    fit = pf.fit_density(flow, data, max_epochs=20, lr=3e-2, seed=0, progress=False)
    assert fit.distribution.base is base and (base.df < before).all()
    assert fit.log_prob(data).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": torch.zeros(20, 2).long()}, "data must be a tensor of float32 or float64, got a tensor of torch.int64"),
        ({"data": torch.randn(20)}, r"data must have shape \(N, D\) with N at least 10, got \(20,\)"),
        ({"data": torch.randn(5, 2)}, r"with N at least 10, got \(5, 2\)"),
        ({"data": torch.full((20, 2), torch.nan)}, "data has NaN or infinity in 20 of 20 rows"),
        ({"data": torch.ones(20, 2)}, r"data has columns \[0, 1\] that do not vary"),
        ({"context": torch.randn(19, 1)}, "data and context must have the same rows and dtype"),
        ({"context": torch.randn(20, 1).double()}, "data and context must have the same rows and dtype"),
        (
            {"validation": (torch.randn(5, 3),)},
            r"validation must have rows of the shapes and dtypes \[\(\(2,\), torch.float32\)\], as data and context, got \[\(\(3,",
        ),
        ({"flow": "no_such_flow"}, "no flow is named 'no_such_flow'"),
        ({"flow": flows.affine(3)}, r"flow gives events of shape \(3,\) with context_dim=0; rows of data have shape \(2,\)"),
        (
            {"flow": flows.affine(2), "flow_options": {"a": 1}},
            r"flow_options and steep are for a flow by name or factory, got .*'a'",
        ),
        ({"flow": flows.affine(2), "steep": True}, "flow_options and steep are for a flow by name or factory, got .*steep=True"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"validation_share": 1.0}, "validation_share must lie between 0 and 1"),
        ({"max_epochs": 0}, "max_epochs must be a positive integer"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        pf.fit_density(**{"flow": "affine", "data": torch.randn(20, 2), "progress": False, **change})


def test_what_would_fail_in_the_end_is_refused_before_training():
    angles, short = 6.28 * torch.rand(100, 2), torch.ones(100, 3)
    options = {"max_epochs": 1, "progress": False}
    for flow, objective in (("torus_cnf", "flow_matching"), ("torus", "likelihood"), (TorusFreeForm(2), "free_form")):
        with pytest.raises(ValueError, match=r"data must lie in .*rows do not; bring angles there"):
            pf.fit_density(flow, angles, objective=objective, **options)
    with pytest.raises(ValueError, match="divide by their length"):
        pf.fit_density("sphere_cnf", short, objective="flow_matching", **options)
    x = torch.randn(100, 2)
    with pytest.raises(ValueError, match="a column at least"):
        pf.fit_density("affine", x, x[:, :0], **options)
    pair = FlowMixture([FlowDistribution(pf.flows.get("cnf")(2)) for _ in range(2)])
    for objective in ("flow_matching", "free_form"):
        with pytest.raises(ValueError, match="is for one flow, got a FlowMixture"):
            pf.fit_density(pair, x, objective=objective, **options)
    with pytest.raises(ValueError, match="path is for"):
        pf.fit_density("affine", x, path="variance_preserving", **options)
    with pytest.raises(ValueError, match="float32 or float64"):
        pf.fit_density("affine", x.half(), **options)
    with pytest.raises(ValueError, match="validation must have rows of the shapes and dtypes"):
        pf.fit_density("affine", x, validation=(x.double(),), **options)
    with pytest.raises(ValueError, match="no parameter to train"):
        pf.fit_density(pf.flows.affine(2).requires_grad_(False), x, **options)


def test_data_that_want_gradient_are_taken_without():
    x = torch.randn(200, 2, requires_grad=True)
    pf.fit_density("affine", x, max_epochs=2, progress=False)
    assert x.grad is None


def test_an_epoch_that_is_nan_on_rows_held_out_is_not_the_best():
    layer, seen = torch.nn.Linear(1, 1), iter([5.0, 1.0, math.nan, 3.0, math.nan])

    def loss(x):
        value = layer(x).square().mean()
        return value if layer.training else value * 0 + next(seen)

    rows = (torch.randn(8, 1),)
    layer.train()
    options = {"lr": 0.1, "batch_size": 8, "max_epochs": 4, "patience": 4, "limit": None, "hint": ""}
    assert maximise_likelihood(layer, loss, rows, rows, bar=tqdm(disable=True), **options).best_epoch == 1


def test_a_flow_whose_base_was_left_behind_by_a_change_of_dtype():
    flow = FreeForm(2, hidden_dims=(4,))
    q = FlowDistribution(flow)
    flow.double()
    fit = pf.fit_density(q, torch.randn(50, 2).double(), objective="free_form", max_epochs=1, progress=False)
    assert fit.sample(3).dtype == torch.float64
