"""Objectives against closed forms and quadrature on Gaussians, and against each other.

Means of many repetitions are compared within 4.5 standard errors, a false alarm in 150,000 per figure; seeds are fixed.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

import pyro_flows as pf
from pyro_flows.infer import DReGELBO, ForwardKLELBO, PathELBO, RenyiPathELBO

REPEATS = 2000
LOC, SCALE = 0.5, 0.8


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def standard():
    """A posterior N(0, 1) without evidence of its own."""
    pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def with_parameter():
    """A standard normal latent, observed at 1 with a learnable shift of 0.3."""
    shift = pyro.param("shift", torch.tensor(0.3))
    x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x + shift, 1.0).to_event(1), obs=torch.ones(1))


def gaussian_guide(model):
    """N(LOC, SCALE^2) as a flow; its parameters are the location and the log of the scale."""
    guide = pf.AutoFlow(model, flow="affine", init_scale=1.0).setup()
    with torch.no_grad():
        guide.whitening.set(torch.tensor([LOC]), torch.tensor([[SCALE]]))
    return guide


def gradients(loss, model, guide, repeats=REPEATS):
    """Mean gradients of the guide's two parameters and of the model's, and standard errors."""
    found = []
    for _ in range(repeats):
        for parameter in guide.parameters():
            parameter.grad = None
        store = pyro.get_param_store()
        if "shift" in store:
            store._params["shift"].grad = None
        loss.loss_and_grads(model, guide)
        row = [p.grad.reshape(-1) for p in guide.parameters() if p.grad is not None]
        if "shift" in store:
            row.append(store._params["shift"].grad.reshape(-1))
        found.append(torch.cat(row))
    stacked = torch.stack(found).double()
    return stacked.mean(0), stacked.std(0) / math.sqrt(repeats)


def bound_by_quadrature(alpha, log_joint, a, b, nodes=401):
    """The expected bound with two particles of N(LOC + SCALE a, (SCALE b)^2), by a grid over both."""
    e = torch.linspace(-8, 8, nodes, dtype=torch.float64)
    mass = (-0.5 * e.square()).softmax(0)
    z = LOC + SCALE * (a + b * e)
    log_w = log_joint(z) + 0.5 * e.square() + 0.5 * math.log(2 * math.pi) + math.log(SCALE) + b.log()
    order = 1 - alpha
    pair = torch.logaddexp(order * log_w[:, None], order * log_w[None, :]) - math.log(2)
    return (mass[:, None] * mass[None, :] * pair).sum() / order


def normal(x, scale=1.0):
    return -0.5 * (x / scale) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(scale)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0, 2.0])
def test_the_gradient_of_a_weighted_bound_is_unbiased(alpha):
    guide = gaussian_guide(standard)
    a, b = torch.zeros((), dtype=torch.float64, requires_grad=True), torch.ones((), dtype=torch.float64, requires_grad=True)
    exact = -torch.stack(torch.autograd.grad(bound_by_quadrature(alpha, normal, a, b), [a, b]))
    loss = RenyiPathELBO(alpha, num_particles=2, vectorize_particles=True, max_plate_nesting=0)
    mean, error = gradients(loss, standard, guide)
    slopes = _slopes(guide)
    assert ((mean - exact @ slopes).abs() < 4.5 * error + 1e-6).all(), (mean, exact @ slopes, error)


def _slopes(guide):
    """Derivatives of (loc, scale) of the affine map by its parameters, in their order, ``(2, P)``."""
    parameters = list(guide.parameters())
    rows = []
    for points in (lambda y: y[0], lambda y: y[1] - y[0]):
        y = guide.flow(torch.tensor([[0.0], [1.0]]))[:, 0]
        gradients = torch.autograd.grad(points(y), parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(rows).double()


def test_parameters_of_the_model_climb_the_importance_weighted_bound():
    guide = gaussian_guide(with_parameter)
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    one = torch.ones((), dtype=torch.float64)

    def log_joint(z):
        return normal(z) + normal(1 - z - shift)

    (exact,) = torch.autograd.grad(-bound_by_quadrature(0.0, log_joint, 0 * one, one), [shift])
    loss = DReGELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=0)
    mean, error = gradients(loss, with_parameter, guide)
    assert abs(float(mean[-1] - exact)) < 4.5 * float(error[-1])


def test_particles_one_by_one_give_the_same_gradient():
    guide = gaussian_guide(with_parameter)
    together = gradients(DReGELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=0), with_parameter, guide, 500)
    apart = gradients(DReGELBO(num_particles=3), with_parameter, guide, 500)
    error = (together[1] ** 2 + apart[1] ** 2).sqrt()
    assert ((together[0] - apart[0]).abs() < 4.5 * error).all()


def test_an_exact_guide_has_no_noise():
    guide = gaussian_guide(standard)
    with torch.no_grad():
        guide.whitening.set(torch.zeros(1), torch.ones(1, 1))
    for loss in (PathELBO, DReGELBO, RenyiPathELBO):
        mean, error = gradients(loss(num_particles=4, vectorize_particles=True, max_plate_nesting=0), standard, guide, 20)
        assert float(mean.abs().max()) < 1e-6, loss
        assert float(error.max()) < 1e-6, loss


@pytest.mark.parametrize("particles", [4, 4096])
def test_the_bias_of_the_forward_divergence_falls_with_the_particles(particles):
    # KL(N(0, 1) || N(m, s^2)) = log s + (1 + m^2) / (2 s^2) - 1/2, by (a, b) at m = LOC + SCALE a, s = SCALE b.
    guide = gaussian_guide(standard)
    exact = torch.tensor([LOC / SCALE, 1 - (1 + LOC**2) / SCALE**2], dtype=torch.float64) @ _slopes(guide)
    loss = ForwardKLELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    mean, error = gradients(loss, standard, guide, 1000)
    off = (mean - exact).abs()
    if particles == 4:
        assert (off > 10 * error).any()  # four are few, and this shows it
    else:
        assert (off < 4.5 * error + 0.01).all(), (mean, exact, error)


@pytest.mark.parametrize("loss", [DReGELBO, RenyiPathELBO, ForwardKLELBO])
def test_each_finds_a_conjugate_posterior_in_plain_svi(loss):
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([0.3, 1.1, 0.7, 1.5])
    guide = pf.AutoFlow(model, flow="affine", init_scale=0.5).setup(y)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss(num_particles=64, vectorize_particles=True, max_plate_nesting=1))
    losses = [svi.step(y) for _ in range(500)]
    precision = 1 / 4 + 4
    draws = guide.get_posterior().sample((20_000,))
    if loss is not DReGELBO:  # with 64 draws its bound is tight for any guide that is broad enough
        assert abs(float(draws.mean()) - float(y.sum()) / precision) < 0.05
        assert abs(float(draws.std()) * precision**0.5 - 1) < 0.05
    evidence = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 4 * torch.ones(4, 4)).log_prob(y)
    assert abs(sum(losses[-100:]) / 100 + float(evidence)) < 0.1


def test_a_mean_field_trains():
    def model():
        pyro.sample("a", dist.Normal(1.0, 1.0))
        pyro.sample("b", dist.Normal(2.0, 0.5))

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.02}), DReGELBO(num_particles=16))
    for _ in range(5):
        svi.step()


@pytest.mark.parametrize("loss", [PathELBO, DReGELBO])
def test_an_exact_guide_of_dependent_sites_has_no_noise(loss):
    """Its gradient vanishes draw by draw; without the path through the parent it would not."""

    def model():
        a = pyro.sample("a", dist.Normal(1.0, 2.0))
        pyro.sample("b", dist.Normal(3 * a, 0.5))

    def guide():
        loc, scale = pyro.param("loc", torch.tensor(1.0)), pyro.param("scale", torch.tensor(2.0))
        slope = pyro.param("slope", torch.tensor(3.0))
        a = pyro.sample("a", dist.Normal(loc, scale))
        pyro.sample("b", dist.Normal(slope * a, 0.5))

    objective = loss(num_particles=4)
    objective.loss_and_grads(model, guide)
    store = pyro.get_param_store()
    assert all(float(store._params[name].grad.abs()) < 1e-4 for name in ("loc", "scale", "slope"))


@pytest.mark.parametrize("loss", [PathELBO, DReGELBO, ForwardKLELBO])
def test_objectives_that_run_the_guide_twice_keep_the_minibatch(loss):
    """The plate draws indices in each call: a second run with others would score values at other elements."""
    y = torch.arange(20.0)

    def model():
        with pyro.plate("data", 20, subsample_size=3) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    def guide():
        loc = pyro.param("loc", y / 2)
        with pyro.plate("data", 20, subsample_size=3) as i:
            pyro.sample("z", dist.Normal(loc[i], 0.5**0.5))

    objective = loss(num_particles=4)
    objective.loss_and_grads(model, guide)
    # exact for every element, so no gradient for path gradients; for other elements it would be of the order of (20/3) (y_i - y_j)
    gradient = pyro.get_param_store()._params["loc"].grad.abs().max()
    assert float(gradient) < (1e-3 if loss is not ForwardKLELBO else 60.0)


def test_discrete_guides_and_bad_arguments_are_refused():
    def model():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="site 'k' of the guide is not reparametrised"):
        SVI(model, model, pyro.optim.Adam({}), DReGELBO(num_particles=4)).step()
    with pytest.raises(ValueError, match="alpha must be a finite number other than 1"):
        RenyiPathELBO(1)
    for loss in (DReGELBO, RenyiPathELBO, ForwardKLELBO):
        with pytest.raises(ValueError, match="num_particles must be an integer of at least 2"):
            loss(num_particles=1)
