"""Effects of a hierarchy in AutoPlateFlow: standardised by their prior at the drawn globals."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_flows as pf
from pyro_flows.guides.plate_joint import PlateJoint
from pyro_flows.infer import PathELBO
from pyro_flows.infer.particle_plate import why_not_together


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def scales():
    return pyro.sample("mu", dist.Normal(0.0, 1.0)), pyro.sample("tau", dist.HalfNormal(1.0))


def schools(y, batch=4):
    mu, tau = scales()
    with pyro.plate("schools", len(y), subsample_size=batch) as i:
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y[i])


def log_normal(y, batch=4):
    mu, tau = scales()
    with pyro.plate("schools", len(y), subsample_size=batch) as i:
        rate = pyro.sample("rate", dist.LogNormal(mu, tau))
        pyro.sample("y", dist.Normal(rate, 1.0), obs=y[i])


def regression(y, batch=4):
    """The location of an effect is a product with a vector, which takes one draw at a time."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    design = torch.stack([torch.ones(len(y)), torch.linspace(-1.0, 1.0, len(y))], -1)
    with pyro.plate("schools", len(y), subsample_size=batch) as i:
        theta = pyro.sample("theta", dist.Normal(torch.mv(design[i], beta), tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y[i])


def with_events(y, batch=4):
    """Pairs of effects, each with a scale of its own, beside a latent that is no effect."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(torch.ones(2)).to_event(1))
    with pyro.plate("schools", len(y), subsample_size=batch) as i:
        noise = pyro.sample("noise", dist.Gamma(3.0, 2.0))
        pair = pyro.sample("pair", dist.Normal(mu[..., None], tau).to_event(1))
        pyro.sample("y", dist.Normal(pair.sum(-1), noise), obs=y[i])


def nested(y, batch=4):
    mu, tau = scales()
    inner = pyro.sample("inner", dist.HalfNormal(1.0))
    with pyro.plate("schools", len(y), subsample_size=batch, dim=-2) as i:
        school = pyro.sample("school", dist.Normal(mu, tau))
        with pyro.plate("pupils", 3, dim=-1):
            pupil = pyro.sample("pupil", dist.Normal(school, inner))
            pyro.sample("y", dist.Normal(pupil, 1.0), obs=y[i][:, None])


HIERARCHIES = {
    "schools": (schools, {"schools": 4}, {"theta"}, 1),
    "log-normal": (log_normal, {"schools": 4}, {"rate"}, 1),
    "regression": (regression, {"schools": 4}, {"theta"}, 1),
    "events": (with_events, {"schools": 6}, {"pair"}, 1),
    "nested": (nested, {"schools": 4, "pupils": 3}, {"school", "pupil"}, 2),
}
Y = torch.randn(8, generator=torch.Generator().manual_seed(1)).abs() + 0.5


def randomised(guide):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return guide


@pytest.mark.parametrize("name", HIERARCHIES)
def test_effects_are_found_and_scored_as_they_are_drawn(name):
    model, context, effects, nesting = HIERARCHIES[name]
    guide = randomised(pf.AutoPlateFlow(model, context, flow="real_nvp").setup(Y))
    assert guide._effects.names == effects
    whole = poutine.trace(guide).get_trace(Y, len(Y))
    values = {n: whole.nodes[n]["value"] for n in guide(Y, len(Y))}
    torch.testing.assert_close(guide.log_prob(values, Y, len(Y)), whole.log_prob_sum(), rtol=1e-4, atol=1e-3)
    joint = PlateJoint(guide, (Y, len(Y)))
    draws, log_q = joint.rsample_and_log_prob((7,))
    torch.testing.assert_close(joint.log_prob(draws), log_q, rtol=1e-4, atol=1e-3)
    reason = why_not_together(model, guide, (Y, len(Y)), {}, nesting)
    assert (reason is None) == (name != "regression")


@pytest.mark.parametrize("name", HIERARCHIES)
@pytest.mark.parametrize("objective", [Trace_ELBO, PathELBO])
def test_every_parameter_trains_on_minibatches(name, objective):
    model, context, _, nesting = HIERARCHIES[name]
    guide = pf.AutoPlateFlow(model, context, flow="affine").setup(Y)
    before = copy.deepcopy(guide.state_dict())
    elbo = objective(num_particles=4, vectorize_particles=name != "regression", max_plate_nesting=nesting)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.003}), elbo)
    for _ in range(4):
        assert math.isfinite(svi.step(Y))
    named = dict(guide.named_parameters())
    assert named and all(not torch.equal(before[n], p) for n, p in named.items() if p.numel() and "table" not in n)


def test_the_conditional_posterior_is_exact_at_every_scale():
    """With the data's own location and scale the density of an effect is its posterior, in the neck of the funnel and out of it."""
    guide = pf.AutoPlateFlow(schools, {"schools": 2}, flow="affine").setup(Y, len(Y))
    with torch.no_grad():
        guide.blocks[1].frame.params.bias.zero_()
        guide.blocks[1].frame.params.log_scale.zero_()
        guide.sources[0].table.weight[:, 0] = Y
    call = guide.look(Y, len(Y))
    for mu, tau in ((0.0, 1e-3), (1.0, 0.1), (-1.0, 5.0), (0.3, 100.0)):
        globals_ = {"mu": torch.tensor(mu), "tau": torch.tensor(tau).log()}
        posterior = dist.Normal((mu / tau**2 + Y) / (tau**-2 + 1), (tau**-2 + 1) ** -0.5)
        theta = posterior.sample((2,))
        found = guide.score({**globals_, "theta": theta}, call)
        expected = posterior.log_prob(theta).sum(-1)
        torch.testing.assert_close(found[0] - found[1], expected[0] - expected[1], rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_a_funnel_is_fitted_down_its_neck():
    """Forty groups whose scale may be zero: mean and sd of tau against quadrature. Monte Carlo error of 20,000 draws: 0.01 sd.

    The whole way, from the model to the verdict; an affine map passes it too. What tells the two apart is the conditional posterior
    at every scale, above.
    """
    count = 40
    y = 0.4 * torch.randn(count, generator=torch.Generator().manual_seed(2)) + torch.randn(
        count, generator=torch.Generator().manual_seed(3)
    )
    tau = torch.logspace(-4, 1.0, 4000, dtype=torch.float64)
    variance = 1 + tau**2
    precision = count / variance + 1
    linear = y.double().sum() / variance
    log_density = -0.5 * count * variance.log() - 0.5 * y.double().square().sum() / variance
    log_density += 0.5 * linear**2 / precision - 0.5 * precision.log() - 0.5 * tau**2 + tau.log()
    weights = log_density.softmax(0)
    mean, neck = (weights * tau).sum(), weights[tau < 0.1].sum()
    sd = ((weights * tau**2).sum() - mean**2).sqrt()
    assert neck > 0.1

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pf.nn.MLP(1, 4, (16,))

        def forward(self, y, *_):
            return torch.cat([y[:, None], self.net(y[:, None])], -1)

    guide = pf.AutoPlateFlow(schools, {"schools": Encoder()})
    fit = pf.fit(schools, y, count, guide=guide, seed=0, progress=False, max_steps=2000)
    drawn = guide.sample(20_000, y, count)["tau"].double()
    assert abs(drawn.mean() - mean) < 0.1 * sd
    assert abs(drawn.std() / sd - 1) < 0.1
    assert float((drawn < 0.1).double().mean()) > 0.6 * neck
    assert fit.diagnose(4000).verdict in ("good", "reweight")


def test_scales_that_are_fixed_or_drawn_beside_make_no_effect():
    def fixed(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("schools", len(y)):
            own = pyro.sample("own", dist.HalfNormal(1.0))
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            apart = pyro.sample("apart", dist.Normal(mu, own))
            pyro.sample("y", dist.Normal(theta + apart, 1.0), obs=y)

    guide = pf.AutoPlateFlow(fixed, {"schools": 4}).setup(Y)
    assert not guide._effects.names and not any(block.hierarchical for block in guide.blocks)


def test_copies_pickles_and_dtypes():
    model, context, _, _ = HIERARCHIES["schools"]
    guide = randomised(pf.AutoPlateFlow(model, context).setup(Y))
    torch.manual_seed(1)
    expected = guide.sample(3, Y, len(Y))["theta"]
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        if other._raw_model[0] is None:
            with pytest.raises(ValueError, match="without its model"):
                other.sample(3, Y, len(Y))
            other.set_model(model)
        torch.manual_seed(1)
        torch.testing.assert_close(other.sample(3, Y, len(Y))["theta"], expected)
    double = pf.AutoPlateFlow(model, context, init_loc_fn=lambda site: site["fn"].sample().double()).setup(Y.double())
    assert double.sample(2, Y.double(), 4)["theta"].dtype == torch.float64


def test_nothing_is_made_on_the_default_device():
    def model(y):
        zero, one = y.new_zeros(()), y.new_ones(())
        mu = pyro.sample("mu", dist.Normal(zero, one))
        tau = pyro.sample("tau", dist.LogNormal(zero, one))
        with pyro.plate("schools", len(y), device=y.device):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, one), obs=y)

    guide = pf.AutoPlateFlow(model, {"schools": 4}).setup(Y)
    assert guide._effects.names == {"theta"}
    with torch.device("meta"):
        values = guide(Y)
        log_q = guide.log_prob(values, Y)
        draws = guide.sample(3, Y)
    assert {value.device.type for value in [*values.values(), *draws.values(), log_q]} == {"cpu"}


def test_recentring_leaves_the_distribution_as_it_is():
    for name in ("schools", "events"):
        model, context, _, _ = HIERARCHIES[name]
        guide = pf.AutoPlateFlow(model, context, flow="affine").setup(Y, len(Y))
        with torch.no_grad():
            for parameter in guide.affine_parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        call = guide.look(Y, len(Y))
        values, log_q = guide.draw(5, call)
        guide.recentre(Y, len(Y))
        torch.testing.assert_close(guide.score(values, call), log_q, rtol=1e-4, atol=1e-3)
        assert not torch.equal(guide.blocks[1].frame.unit, torch.ones_like(guide.blocks[1].frame.unit))


def test_a_prior_that_changes_its_family_is_named():
    def model(y, family):
        mu, tau = scales()
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", family(mu, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    guide = pf.AutoPlateFlow(model, {"schools": 2}).setup(Y, dist.Normal)
    with pytest.raises(ValueError, match="prior of latent site 'theta' was of a location-scale family at setup"):
        guide(Y, lambda mu, tau: dist.TransformedDistribution(dist.Normal(mu, tau), []))


# What an attack found


def scores(guide, *args, count=4):
    """Log-densities of draws, together and one by one."""
    draws = guide.sample(count, *args)
    together = guide.log_prob(draws, *args)
    return together, torch.stack([guide.log_prob({n: v[i] for n, v in draws.items()}, *args) for i in range(count)])


def test_a_prior_behind_random_numbers_is_no_effect():
    @pyro.infer.config_enumerate
    def mixture(y, odds=0.05):
        mu, tau = scales()
        k = pyro.sample("k", dist.Bernoulli(odds))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu + 5 * k, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    for model in (mixture, poutine.block(mixture, hide=["k"])):
        guide = pf.AutoPlateFlow(model, {"schools": 4}).setup(Y)
        assert not guide._effects.names

    network = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)).eval()

    def dropped(y):
        mu, tau = scales()
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu + network(y[:, None])[:, 0], tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    guide = pf.AutoPlateFlow(dropped, {"schools": 4}).setup(Y)
    assert guide._effects.names == {"theta"}
    network.train()
    with pytest.raises(ValueError, match=r"draws random numbers before latent sites \['theta'\]"):
        guide(Y)


@pytest.mark.parametrize("unit", [1.0, 1e-5])
def test_draws_that_a_model_would_mix_are_read_one_by_one(unit):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(unit * mu.mean(), unit * tau))
            pyro.sample("y", dist.Normal(theta, unit), obs=unit * y)

    guide = pf.AutoPlateFlow(model, {"schools": 4}).setup(Y)
    assert guide._effects.names == {"theta"} and not guide._effects.together
    torch.testing.assert_close(*scores(guide, Y), rtol=1e-4, atol=1e-2)


def test_a_branch_that_opens_later_is_noticed():
    def model(y, robust):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("schools", len(y)):
            loc = mu.median() if robust else mu.mean(-1)
            theta = pyro.sample("theta", dist.Normal(loc, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    guide = randomised(pf.AutoPlateFlow(model, {"schools": 4}).setup(Y, False))
    assert guide._effects.together
    for robust in (False, True):
        torch.testing.assert_close(*scores(guide, Y, robust), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_sizes_of_plates_do_not_pass_for_draws(count):
    def by_group(y):
        with pyro.plate("groups", count):
            tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("schools", count) as i:
            theta = pyro.sample("theta", dist.Normal(0.0, tau[i]))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y[:count])

    def behind_data(y):
        mu, tau = scales()
        with pyro.plate("outer", count, dim=-2):
            pyro.sample("z", dist.Normal(mu, 1.0), obs=torch.zeros(count, 1))
        with pyro.plate("schools", len(y), dim=-1):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    for model in (by_group, behind_data):
        guide = pf.AutoPlateFlow(model, {"schools": 4}).setup(Y)
        assert guide._effects.names == {"theta"}
        for draws in (3, 7, count):
            torch.testing.assert_close(*scores(guide, Y, count=draws), rtol=1e-4, atol=1e-2)


def test_parameters_of_the_model_are_not_trained_through_the_guide():
    """The gradient of a weighted objective to a parameter of the prior is that of the model alone, whatever the objective."""
    slope = nn.Linear(1, 1)

    def model(y):
        pyro.module("slope", slope)
        shift, spread = pyro.param("shift", torch.tensor(0.3)), pyro.param("spread", torch.tensor(1.0), dist.constraints.positive)
        tau = pyro.sample("tau", dist.HalfNormal(spread))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(shift + slope(y[:, None])[:, 0], tau * spread))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    guide = pf.AutoPlateFlow(model, {"schools": 4}, flow="affine").setup(Y)
    assert guide._effects.names == {"theta"}
    values = guide(Y)
    leaves = [*slope.parameters(), *(pyro.param(name).unconstrained() for name in ("shift", "spread"))]
    assert all(leaf.requires_grad for leaf in leaves)
    found = torch.autograd.grad(guide.log_prob(values, Y), leaves, allow_unused=True)
    assert found == (None,) * 4
    loss = Trace_ELBO().differentiable_loss(model, guide, Y)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12])
def test_any_unit_will_do_in_double_precision(unit):
    y = unit * Y.double()

    def model(y):
        zero = y.new_zeros(())
        tau = pyro.sample("tau", dist.HalfNormal(zero + unit))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(zero, tau))
            pyro.sample("y", dist.Normal(theta, unit), obs=y)

    guide = pf.AutoPlateFlow(model, {"schools": 2}, flow="affine").setup(y)
    with torch.no_grad():
        frame = guide.blocks[1].frame
        frame.unit.fill_(unit)
        frame.params.bias.zero_()
        frame.params.log_scale.fill_(math.log(unit))
        guide.sources[0].table.weight[:, 0] = y / unit
    call = guide.look(y)
    for tau in (1e-3, 0.1, 5.0):
        tau = torch.tensor(tau * unit).double()
        precision = tau**-2 + unit**-2
        posterior = dist.Normal(y / unit**2 / precision, precision**-0.5)
        theta = posterior.sample((2,))
        found = guide.score({"tau": tau.log(), "theta": theta}, call)
        expected = posterior.log_prob(theta).sum(-1)
        torch.testing.assert_close(found[0] - found[1], expected[0] - expected[1], rtol=1e-3, atol=1e-2)


def test_a_prior_that_is_not_finite_gives_no_number():
    def model(y, spoilt):
        mu, tau = scales()
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau * spoilt, validate_args=False))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    guide = pf.AutoPlateFlow(model, {"schools": 4}).setup(Y, 1.0)
    values = guide(Y, 1.0)
    for spoilt in (math.nan, math.inf, -1.0, 0.0):
        assert torch.isnan(guide.log_prob(values, Y, spoilt))


def test_scoring_draws_no_random_numbers():
    def model(y):
        mu, tau = scales()
        with pyro.plate("schools", len(y)):
            beside = pyro.sample("beside", dist.Normal(0.0, 1.0))
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta + beside, 1.0), obs=y)

    guide = pf.AutoPlateFlow(model, {"schools": 4}).setup(Y)
    draws = guide.sample(3, Y)
    before = torch.get_rng_state()
    guide.log_prob(draws, Y)
    assert torch.equal(before, torch.get_rng_state())
