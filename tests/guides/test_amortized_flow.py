"""AmortizedFlow: right posteriors for whole data sets, in plain Pyro and by simulations, with no mass outside a support."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

import pyro_flows as pf
from pyro_flows.nn import MLP, DeepSet


def normal_model(y=None):
    """Conjugate: given the mean m of four data, the posterior of the mean is N(4 m / 4.25, 1 / 4.25) for a prior of sd 2."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def posterior_mean(y):
    return y.sum(-1) / 4.25


POSTERIOR_SD = 4.25**-0.5


def bounded_model(x=None):
    theta = pyro.sample("theta", dist.Uniform(-torch.ones(2), torch.tensor([1.0, 3.0])).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    pyro.sample("x", dist.Normal(torch.cat([theta, share]), 0.3 + 0.1 * scale).to_event(1), obs=x)


@pytest.fixture(scope="module")
def trained():
    """A guide trained on the conjugate model."""
    with torch.random.fork_rng():
        guide = pf.AmortizedFlow(normal_model, observed=["y"], flow_options={"num_layers": 2})
        fit = pf.fit_amortized(guide, num_simulations=4000, max_epochs=4, seed=0, progress=False)
    return guide, fit


def moments_error(guide, y):
    """Largest errors of mean and sd over data sets, in posterior sd."""
    draws = guide.sample(y, 20_000, seed=0)["mean"]
    mean_error = (draws.mean(0) - posterior_mean(y)).abs().max() / POSTERIOR_SD
    return float(mean_error), float((draws.std(0) / POSTERIOR_SD - 1).abs().max())


def test_simulations_give_the_conjugate_posterior_of_many_data_sets(trained):
    # The regression has 5 coefficients from 3,600 rows: at typical data its error is about sqrt(5 / 3600) = 0.04 posterior sd.
    guide, _ = trained
    generator = torch.Generator().manual_seed(1)
    y = 2 * torch.randn(20, 1, generator=generator) + torch.randn(20, 4, generator=generator)
    mean_error, sd_error = moments_error(guide, y)
    assert mean_error < 0.15
    assert sd_error < 0.06


def test_the_elbo_gives_the_conjugate_posterior_of_the_data_it_is_trained_on():
    y = torch.tensor([1.0, 2.0, 4.0, 3.0])
    guide = pf.AmortizedFlow(normal_model, flow="affine").setup(y)
    loss = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(normal_model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.98}), loss)
    for _ in range(200):
        svi.step(y)
    mean_error, sd_error = moments_error(guide, y)
    assert mean_error < 0.1
    assert sd_error < 0.1


def test_one_way_of_training_goes_on_where_the_other_ended(trained):
    guide = copy.deepcopy(trained[0])
    y = torch.tensor([1.0, 2.0, 4.0, 3.0])
    before = guide.observation_mean.clone()
    svi = SVI(normal_model, guide, pyro.optim.Adam({"lr": 1e-4}), Trace_ELBO(num_particles=8, vectorize_particles=True))
    first = svi.evaluate_loss(y)
    svi.step(y)
    fit = pf.fit_amortized(guide, num_simulations=500, max_epochs=1, warm_start=True, lr=1e-4, seed=0, progress=False)
    assert torch.equal(guide.observation_mean, before)
    assert math.isfinite(first)
    # It began at the trained guide and not at a regression: within noise of the optimum, log(sqrt(2 pi e) sd) = 0.70.
    assert abs(fit.validation_losses[0][0] - (0.5 * math.log(2 * math.pi * math.e) + math.log(POSTERIOR_SD))) < 0.3


def test_log_prob_is_the_density_of_the_draws_in_constrained_space():
    def model(x=None):
        pyro.sample("x", dist.Normal(pyro.sample("u", dist.Uniform(0.0, 2.0)), 0.5), obs=x)

    guide = pf.AmortizedFlow(model, observed=["x"])
    pf.fit_amortized(guide, num_simulations=1000, max_epochs=2, seed=0, progress=False)
    grid = torch.linspace(0, 2, 4001)[1:-1]
    for x in (-0.3, 1.0, 2.2):
        density = guide.log_prob({"u": grid}, torch.tensor(x)).exp().detach()
        assert float(density.sum() * (grid[1] - grid[0])) == pytest.approx(1.0, abs=0.01)
        draws = guide.sample(torch.tensor(x), 20_000, seed=0)["u"]
        assert float(draws.mean()) == pytest.approx(float((density * grid).sum() * (grid[1] - grid[0])), abs=0.02)


def test_uniform_prior_with_normal_likelihood_is_exact_at_the_edge():
    # The posterior at x is a normal truncated to (0, 2), in the family that training starts from.
    def model(x=None):
        pyro.sample("x", dist.Normal(pyro.sample("u", dist.Uniform(0.0, 2.0)), 0.5), obs=x)

    guide = pf.AmortizedFlow(model, observed=["x"])
    pf.fit_amortized(guide, num_simulations=4000, max_epochs=1, lr=1e-5, seed=0, progress=False)
    grid = torch.linspace(0, 2, 2001)[1:-1]
    for x in (-0.3, 1.0, 2.2):
        normal = dist.Normal(x, 0.5)
        exact = normal.log_prob(grid) - (normal.cdf(torch.tensor(2.0)) - normal.cdf(torch.tensor(0.0))).log()
        divergence = (exact.exp() * (exact - guide.log_prob({"u": grid}, torch.tensor(x)).detach())).sum() / 1000
        # Three coefficients from 3,600 rows: on average 3 / 7200 nats, at the edges of the data some ten times that.
        assert float(divergence) < 0.005


@pytest.mark.parametrize("far", [0.0, 30.0])
def test_no_mass_lies_outside_a_support(far):
    guide = pf.AmortizedFlow(bounded_model, observed=["x"]).setup()
    draws = guide.sample(far * torch.ones(3, 5), 2000, seed=0)
    for name, site in (("theta", dist.Uniform(-torch.ones(2), torch.tensor([1.0, 3.0]))), ("scale", dist.HalfNormal(1.0))):
        assert bool(torch.isfinite(site.log_prob(draws[name])).all())
    assert bool(dist.constraints.simplex.check(draws["share"]).all())
    on_the_edge = guide.constrain(torch.full((guide.latent_dim,), 3.0))[0]["theta"]  # as rounding may make it
    assert bool(torch.isfinite(dist.Uniform(-torch.ones(2), torch.tensor([1.0, 3.0])).log_prob(on_the_edge)).all())
    assert bool(torch.isfinite(guide.log_prob(draws, far * torch.ones(3, 5))).all())


@pytest.mark.parametrize("model", [normal_model, bounded_model])
def test_sites_in_a_guide_trace_carry_the_density_of_the_guide(model):
    name, x = ("y", torch.tensor([1.0, 2.0, 1.5, 0.5])) if model is normal_model else ("x", torch.tensor([0.9, 2.5, 0.2, 0.3, 0.5]))
    guide = pf.AmortizedFlow(model, observed=[name]).setup()
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    latents = {site: trace.nodes[site]["value"] for site in guide.constrain(torch.zeros(guide.latent_dim))[0]}
    total = sum(node["log_prob_sum"] for node in trace.nodes.values() if node["type"] == "sample")
    torch.testing.assert_close(total, guide.log_prob(latents, x))


def test_predictive_draws_latents_and_data(trained):
    draws = Predictive(normal_model, guide=trained[0], num_samples=50, parallel=True)(torch.ones(4))
    assert draws["mean"].numel() == 50
    assert draws["y"].shape == (50, 4)


def test_second_guide_and_copies_train():
    y = torch.ones(4)
    first = pf.AmortizedFlow(normal_model, flow="affine").setup(y)
    second = pf.AmortizedFlow(normal_model, flow="affine").setup(y)
    for guide in (first, second, copy.deepcopy(second)):
        before = [p.detach().clone() for p in guide.parameters()]
        SVI(normal_model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(y)
        assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


def test_pickle_deepcopy_and_state_dict_keep_the_posterior(trained):
    guide, _ = trained
    y, values = torch.randn(5, 4), {"mean": torch.randn(5)}
    fresh = pf.AmortizedFlow(normal_model, observed=["y"], flow_options={"num_layers": 2})
    with pytest.raises(ValueError, match="call guide.setup"):
        fresh.load_state_dict(guide.state_dict())
    fresh.setup().load_state_dict(guide.state_dict())
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), fresh):
        assert other._pyro_name != guide._pyro_name
        torch.testing.assert_close(other.log_prob(values, y), guide.log_prob(values, y))
        torch.testing.assert_close(other.p_value(y), guide.p_value(y))


def test_float64_model_gets_a_float64_guide():
    def model(y=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = pf.AmortizedFlow(model, observed=["y"])
    pf.fit_amortized(guide, num_simulations=200, max_epochs=1, seed=0, progress=False)
    assert {p.dtype for p in guide.parameters()} == {torch.float64}
    assert guide.sample(torch.zeros(()), 3)["mean"].dtype == torch.float64


def test_ensemble_averages_densities_of_its_members():
    guide = pf.AmortizedFlow(normal_model, flow="affine", observed=["y"], num_members=3)
    pf.fit_amortized(guide, num_simulations=300, max_epochs=1, seed=0, progress=False)
    y, value = torch.randn(4), torch.tensor(0.3)
    single = []
    for i in range(3):
        alone = guide.member(i).distribution.condition(guide.features(i, guide.standardised(y)))
        single.append(alone.log_prob(value[None]))
    torch.testing.assert_close(guide.log_prob({"mean": value}, y), torch.stack(single).exp().mean(0).log())


def test_encoders_take_a_vector_or_sites():
    vector = pf.AmortizedFlow(normal_model, MLP(4, 3, (8,)), observed=["y"]).setup()
    sites = pf.AmortizedFlow(_set_model, DeepSet(2, 3), observed=["y"], encoder_input="sites").setup()
    assert vector.features(0, torch.zeros(5, 4)).shape == (5, 3)
    y = torch.randn(6, 10, 2)
    value = {"mean": torch.zeros(2)}
    torch.testing.assert_close(sites.log_prob(value, y).shape, torch.Size([6]))


def _set_model(y=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


class _WrongRows(torch.nn.Module):
    def forward(self, x):
        return x[:1].expand(len(x) + 1, -1)


class _GivesNaN(torch.nn.Module):
    def forward(self, x):
        return x * torch.nan


@pytest.mark.parametrize(
    ("encoder", "words"), [(_WrongRows(), "a row for each data set"), (_GivesNaN(), "NaN or infinity for 2 of 2")]
)
def test_encoder_that_returns_nonsense_is_named(encoder, words):
    with pytest.raises(ValueError, match=words):
        pf.AmortizedFlow(normal_model, encoder, observed=["y"]).setup()


def test_data_far_from_all_simulations_are_warned_about_once(trained):
    guide = copy.deepcopy(trained[0])
    far = torch.tensor([0.0, 50.0, 0.0, 0.0])
    assert float(guide.p_value(far)) <= guide.untypical_level
    with pytest.warns(UserWarning, match="1 of 1 data sets lie far from all simulations"):
        guide.sample(far, 10)
    guide.sample(far, 10)  # no second time: warnings are errors here
    with pytest.warns(UserWarning, match="1 of 2 data sets"):
        guide.sample(torch.stack([far, torch.zeros(4)]), 10)


def test_false_alarms_are_as_rare_as_they_are_said_to_be(trained):
    # 4,000 data sets of the model at level 0.05. The number of alarms has the sd of 4,000 draws and of 2,000 calibration scores,
    # sqrt(0.05 * 0.95 * (1 / 4000 + 1 / 2000)) = 0.006 as a share; four of these are allowed, a false alarm in 30,000 seeds.
    data = pf.simulate(normal_model, num_simulations=4000, observed=["y"], seed=5).observations["y"]
    share = float((trained[0].p_value(data) <= 0.05).float().mean())
    assert abs(share - 0.05) < 0.024


def test_heavy_tails_of_the_simulations_do_not_hide_far_data():
    def heavy(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        s = pyro.sample("s", dist.LogNormal(-0.5, 0.7))
        pyro.sample("y", dist.StudentT(3.0, a, s).expand([20]).to_event(1), obs=y)

    guide = pf.AmortizedFlow(heavy, observed=["y"], flow="affine")
    pf.fit_amortized(guide, num_simulations=4000, max_epochs=1, seed=0, progress=False)
    assert guide.p_value(torch.full((20,), 40.0)) <= guide.untypical_level  # twenty prior sds
    assert guide.p_value(torch.full((20,), 3.0)) > 0.01


def _local_support(x=None):
    top = pyro.sample("top", dist.Uniform(1.0, 2.0))
    pyro.sample("x", dist.Normal(pyro.sample("u", dist.Uniform(0.0, top)), 1.0), obs=x)


def _with_factor(x=None):
    u = pyro.sample("u", dist.Normal(0.0, 1.0))
    pyro.factor("f", u)
    pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def _scaled(x=None):
    u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.0):
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def _masked(x=None):
    u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with poutine.mask(mask=torch.tensor(False)):
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def _discrete(x=None):
    pyro.sample("x", dist.Normal(pyro.sample("k", dist.Poisson(1.0)) + pyro.sample("u", dist.Normal(0.0, 1.0)), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_local_support, "depends on another latent"),
        (_with_factor, "site 'f' is a factor"),
        (_scaled, "site 'x' is scaled"),
        (_masked, "site 'x' is masked"),
        (_discrete, "latent site 'k' is discrete"),
    ],
)
def test_model_that_draws_cannot_serve_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        pf.AmortizedFlow(model, observed=["x"]).setup()


def test_calls_that_do_not_fit_are_refused(trained):
    guide, _ = trained
    for call, words in (
        (lambda: pf.AmortizedFlow(normal_model).setup(), "no observed site in this call"),
        (lambda: pf.AmortizedFlow(normal_model, observed=["z"]).setup(), r"observed names the sites \['z'\]"),
        (lambda: pf.AmortizedFlow(normal_model, observed="y"), "must be a list of names"),
        (lambda: pf.AmortizedFlow(normal_model, num_members=0), "num_members must be a positive integer"),
        (lambda: pf.AmortizedFlow(normal_model, encoder_input="dict"), "encoder_input must be 'vector' or 'sites'"),
        (lambda: pf.AmortizedFlow(normal_model, encoder=len), "encoder must be a torch.nn.Module"),
        (lambda: guide(None), r"sites \['y'\] have no data in this call"),
        (lambda: guide.sample(torch.zeros(3)), r"has shape \(3,\), expected \(\*, 4\)"),
        (lambda: guide.sample({"z": torch.zeros(4)}), r"must hold the sites \['y'\]"),
        (lambda: guide.sample(torch.tensor([1.0, torch.nan, 0.0, 0.0])), "1 entries that are not finite"),
        (lambda: guide.sample(torch.zeros(4), 0), "num_samples must be a positive integer"),
        (lambda: guide.log_prob({"mea": torch.zeros(())}, torch.zeros(4)), "values must hold the sites"),
        (lambda: pf.AmortizedFlow(normal_model, observed=["y"]).sample(torch.zeros(4)), "not set up"),
        (lambda: pf.AmortizedFlow(normal_model, observed=["y"]).setup().p_value(torch.zeros(4)), "knows no simulations"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
