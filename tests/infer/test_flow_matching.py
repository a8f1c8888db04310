"""Continuous flows trained by flow matching and by maximum likelihood with regularisers."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows import FlowDistribution, flows
from pyro_flows.infer import flow_matching_loss
from pyro_flows.infer.flow_matching import _paired
from pyro_flows.transforms import AffineTril, record_costs

QUICK = {"seed": 0, "progress": False}
SMALL = {"hidden_dims": (32, 32)}


def two_moons(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(count, generator=generator)
    side = torch.randint(2, (count,), generator=generator).float()
    x = torch.stack([angle.cos() + side - 0.5, (1 - 2 * side) * angle.sin() + 0.25 * (2 * side - 1)], -1)
    return x + 0.1 * torch.randn(count, 2, generator=generator)


@pytest.fixture(scope="module")
def moons():
    """Flow matching on two moons."""
    return pf.fit_density(
        "cnf", two_moons(4000), objective="flow_matching", lr=1e-2, max_epochs=40, batch_size=256, patience=40, **QUICK
    )


def test_a_trained_density_integrates_to_one(moons):
    axis = torch.linspace(-3.5, 3.5, 201)
    grid = torch.cartesian_prod(axis, axis)
    total = float(moons.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2)
    assert total == pytest.approx(1, abs=1e-3)


def test_draws_and_densities_of_a_trained_field_are_those_of_any_flow(moons):
    fresh = two_moons(4000, seed=1)
    # The entropy of two moons of this noise is about 1.1 nats; a normal distribution has 2.2.
    assert float(moons.log_prob(fresh).mean()) > -1.4
    assert moons.held_out == pytest.approx(float(moons.log_prob(fresh).mean()), abs=0.15)
    draws = moons.sample(4000, seed=0)
    assert (draws.mean(0) - fresh.mean(0)).abs().max() < 0.1
    assert (draws.std(0) / fresh.std(0) - 1).abs().max() < 0.1
    assert "by flow_matching" in str(moons)


def test_round_trip_of_a_trained_field_within_ten_times_its_tolerance(moons):
    flow = moons.distribution.transform
    noise = torch.randn(500, 2)
    with torch.no_grad():
        back = flow.inv(flow(noise).clone())
    assert float(((back - noise).abs() / (1 + noise.abs())).max()) < 10 * flow.accuracy


@pytest.mark.parametrize("path", ["linear", "variance_preserving", "optimal_transport"])
def test_every_path_finds_a_normal_distribution(path):
    torch.manual_seed(0)
    truth = dist.MultivariateNormal(torch.tensor([3.0, -1.0]), torch.tensor([[4.0, 1.8], [1.8, 1.0]]))
    options = {"flow_options": SMALL, "objective": "flow_matching", "path": path, "lr": 1e-2, "max_epochs": 30, **QUICK}
    fit = pf.fit_density("cnf", truth.sample((3000,)), **options)
    fresh = truth.sample((4000,))
    gap = truth.log_prob(fresh) - fit.log_prob(fresh)
    assert float(gap.mean()) < 0.05


def test_a_conditional_density_follows_its_context():
    torch.manual_seed(0)
    x = torch.rand(3000, 1) * 4 - 2
    y = torch.cat([x.sin(), -x], -1) + torch.tensor([0.1, 0.5]) * torch.randn(3000, 2)
    fit = pf.fit_density("cnf", y, x, flow_options=SMALL, objective="flow_matching", lr=1e-2, max_epochs=40, patience=40, **QUICK)
    at = torch.tensor([[-1.5], [0.0], [1.5]])
    draws = fit.sample(2000, at, seed=0)
    assert (draws.mean(0) - torch.cat([at.sin(), -at], -1)).abs().max() < 0.15
    assert (draws.std(0) / torch.tensor([0.1, 0.5]) - 1).abs().max() < 0.35


def test_pairs_of_optimal_transport_are_nearest_in_sum_and_lose_nothing():
    torch.manual_seed(0)
    starts, ends = torch.randn(64, 2), torch.randn(64, 2) + 1
    flow = flows.get("cnf")(2)
    paired = _paired(starts, ends, flow)
    assert torch.equal(paired.sort(0)[0], starts.sort(0)[0])
    cost = (paired - ends).square().sum()
    assert all(cost <= (starts[torch.randperm(64)] - ends).square().sum() for _ in range(50))
    # In one dimension the pairing is that of the ranks.
    assert torch.equal(_paired(starts[:, :1], ends[:, :1], flow)[:, 0].argsort(), ends[:, 0].argsort())


def test_the_loss_is_that_of_the_field_and_the_same_in_evaluation_mode():
    q = FlowDistribution(flows.get("cnf")(2))
    loss, points = flow_matching_loss(q), torch.randn(20_000, 2) * 3
    # The field is zero at the start: what is left is E |x1 - x0|^2, 2 (9 + 1), within 4 standard errors.
    assert float(loss(points).detach()) == pytest.approx(20, abs=4 * 20 / math.sqrt(20_000) * 1.5)
    assert float(loss(points).detach()) != float(loss(points).detach())
    q.eval()
    state = torch.get_rng_state()
    assert float(loss(points).detach()) == float(loss(points).detach())
    assert torch.equal(state, torch.get_rng_state())


def test_times_of_the_flow_are_those_of_its_field():
    # The same field on the times 1 to 3 moves half as fast for as long again.
    from pyro_flows.nn import VelocityField
    from pyro_flows.transforms import CNF

    class Constant(VelocityField):
        def __init__(self):
            super().__init__(1)
            self.speed = torch.nn.Parameter(torch.zeros(1))

        def forward(self, t, x, context=None):
            return self.speed.expand(x.shape)

    flow = CNF(Constant(), t0=1.0, t1=3.0)
    loss = flow_matching_loss(FlowDistribution(flow))
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
    torch.manual_seed(0)
    for _ in range(200):
        optimiser.zero_grad()
        loss(torch.randn(200, 1) + 4).backward()
        optimiser.step()
    assert float(flow.velocity.speed.detach()) == pytest.approx(2, abs=0.1)
    assert float(flow(torch.zeros(1)).detach()) == pytest.approx(4, abs=0.2)


def test_flows_for_flows_take_one_density_to_another():
    # A base that is a flow itself, fitted to one set; the map from it is fitted to another.
    first = pf.fit_density("nsf_coupling", two_moons(2000), max_epochs=20, lr=1e-2, **QUICK).distribution
    first.requires_grad_(False)
    turned = two_moons(2000, seed=3) @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]]) + 1
    q = FlowDistribution(flows.get("cnf")(2), first)
    before = {name: p.clone() for name, p in first.named_parameters()}
    options = {"standardise": False, "lr": 1e-2, "max_epochs": 40, "patience": 40, **QUICK}
    fit = pf.fit_density(q, turned, objective="flow_matching", path="optimal_transport", **options)
    assert fit.held_out > -1.95  # a normal density has -2.3
    assert all(torch.equal(before[name], p) for name, p in first.named_parameters())
    by_likelihood = pf.fit_density(
        FlowDistribution(AffineTril(2), first), two_moons(2000, seed=3) * 2 + 1, standardise=False, max_epochs=20, lr=3e-2, **QUICK
    )
    assert by_likelihood.held_out > -1.4 - 2 * math.log(2)


def test_regularisers_make_fields_slower_and_smoother():
    data = two_moons(1000)
    costs = []
    for weights in (None, {"kinetic_energy": 0.1, "jacobian_norm": 0.1}):
        options = {"flow_options": {**SMALL, "tolerance": 1e-3}, "regularise": weights, "lr": 1e-2, "max_epochs": 8, **QUICK}
        fit = pf.fit_density("cnf", data, **options)
        with torch.no_grad(), record_costs() as found:
            fit.log_prob(data)
        costs.append(found)
    assert float(costs[1].kinetic_energy) < float(costs[0].kinetic_energy)
    assert float(costs[1].jacobian_norm) < float(costs[0].jacobian_norm)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: pf.fit_density("maf", x, objective="flow_matching"), "innermost layer"),
        (lambda x: pf.fit_density("cnf", x, objective="flow_matching", path="curved"), "path must be one of"),
        (
            lambda x: pf.fit_density("cnf", x, x, objective="flow_matching", path="optimal_transport"),
            "pairs rows of other contexts",
        ),
        (lambda x: pf.fit_density("cnf", x, objective="score_matching"), "objective must be"),
        (lambda x: pf.fit_density("cnf", x, regularise={"energy": 1.0}), "regularise must have weights"),
        (lambda x: pf.fit_density("maf", x, regularise={"kinetic_energy": 1.0}), "regularise is for continuous flows"),
        (lambda x: pf.fit_density("cnf", x, regularise={"kinetic_energy": -1.0}), "not negative"),
        (
            lambda x: pf.fit_density("cnf", x, objective="flow_matching", regularise={"kinetic_energy": 1.0}),
            "regularise is for objective",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(50, 2))


def test_a_field_that_cannot_be_solved_ends_training_with_its_reason():
    flow = flows.get("cnf")(2, tolerance=1e-3)
    with torch.no_grad():
        flow.velocity.last.weight += 1e6
    with pytest.raises(ArithmeticError, match="did not reach time"):
        pf.fit_density(flow, torch.randn(200, 2), max_epochs=2, **QUICK)
