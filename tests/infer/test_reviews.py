"""Models and calls that once came out wrong, or with an error that helped nobody."""

from __future__ import annotations

import math
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch.distributions import constraints

import pyro_flows as pf
from pyro_flows.infer.descent import Schedule
from pyro_flows.infer.start import choose_start
from pyro_flows.model import LogJoint

QUICK = {"progress": False, "seed": 0, "num_particles": 32, "max_steps": 40}


def coin():
    pyro.sample("x", dist.Normal(0.0, 1.0))


def minibatch_model(y, size=None):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(x, 1.0), obs=y[rows])


# Wrong numbers


@pytest.mark.parametrize(("n", "size"), [(10, 2), (10, 3), (10, 4), (7, 5), (12, 12)])
def test_minibatches_add_up_to_all_data(n, size):
    y, z = torch.randn(n), torch.randn(5, 1)
    torch.testing.assert_close(LogJoint(minibatch_model, (y, size)).full(z).float(), LogJoint(minibatch_model, (y,))(z))


def test_minibatches_of_crossed_plates_add_up_to_all_data():
    data = torch.randn(4, 6)

    def model(rows, columns):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        row_plate, column_plate = (
            pyro.plate("r", 4, subsample_size=rows, dim=-2),
            pyro.plate("c", 6, subsample_size=columns, dim=-1),
        )
        with row_plate as i, column_plate as j:
            pyro.sample("y", dist.Normal(x, 1.0), obs=data[i][:, j])

    z = torch.randn(3, 1)
    torch.testing.assert_close(LogJoint(model, (2, 4)).full(z).float(), LogJoint(model, (4, 6))(z))


def test_rows_that_the_model_names_itself_are_kept():
    y, rows = torch.randn(10), torch.tensor([1, 3, 4])

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 10, subsample=rows):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y[rows])

    joint, z = LogJoint(model), torch.randn(3, 1)
    torch.testing.assert_close(joint.full(z).float(), joint(z))


def test_a_minibatch_fit_is_weighed_with_all_data():
    y = 0.6 * torch.arange(10.0)
    fit = pf.fit(minibatch_model, y, 5, seed=0, num_particles=64, max_steps=400, progress=False)
    exact_mean, exact_sd = float(y.sum()) / 11, math.sqrt(1 / 11)
    for seed in range(3):
        x = fit.resample(4000, seed=seed)["x"]
        # weights of an exact density leave the noise of 4,000 draws, of which at least 400 count: four standard errors
        assert float(x.mean()) == pytest.approx(exact_mean, abs=0.2 * exact_sd)
    exact_evidence = torch.distributions.MultivariateNormal(torch.zeros(10), torch.eye(10) + 1).log_prob(y)
    assert fit.diagnose().log_evidence == pytest.approx(float(exact_evidence), abs=0.1)
    assert not hasattr(fit.to_arviz(100), "log_likelihood")


def test_a_model_that_branches_on_values_is_run_particle_by_particle():
    def wall():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        if (x.abs() > 4).any():
            pyro.factor("wall", torch.tensor(-20.0))

    joint = LogJoint(wall)
    assert joint.path == "loop"
    z = torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(joint(z), torch.cat([joint(row[None]) for row in z]))


def test_parameters_swapped_by_torch_are_seen_by_the_cache():
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    for name in pf.flows.names():
        q, x = pf.FlowDistribution(pf.flows.get(name)(2)), torch.ones(1, 2)
        q.log_prob(x)
        vector_to_parameters(parameters_to_vector(q.parameters()) + 0.1, q.parameters())
        torch.testing.assert_close(q.log_prob(x), q.log_prob(x.clone()))


def test_edges_and_broken_values_are_scored_or_named():
    def model():
        pyro.sample("s", dist.HalfNormal(1.0))
        pyro.sample("m", dist.Normal(0.0, 1.0))

    guide = pf.AutoFlow(model, "affine", init_scale=1.0).setup()
    assert guide.log_prob({"s": 0.0, "m": 1.0}) == -math.inf
    assert guide.log_prob({"s": torch.ones(3, 1), "m": torch.zeros(4)}).shape == (3, 4)
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"values\['s'\] must lie in the support"):
            guide.log_prob({"s": bad, "m": 1.0})
    with pytest.raises(ValueError, match=r"values\['m'\] has dtype"):
        guide.log_prob({"s": 1.0, "m": torch.ones((), dtype=torch.float64)})
    with pytest.raises(ValueError, match="do not broadcast"):
        guide.log_prob({"s": torch.ones(3), "m": torch.zeros(4)})


# Models that were refused


def test_predictive_without_data_draws_them():
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x = torch.randn(20)
    guide = pf.AutoFlow(model, flow="affine")
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO()).step(x, torch.randn(20))
    for parallel in (False, True):
        assert Predictive(model, guide=guide, num_samples=6, parallel=parallel)(x[:3])["y"].shape == (6, 3)


def test_a_latent_that_is_new_in_a_call_is_refused():
    def model(n):
        for i in range(n):
            pyro.sample(f"x{i}", dist.Normal(0.0, 1.0))

    guide = pf.AutoFlow(model, "affine").setup(2)
    with pytest.raises(ValueError, match="latent site 'x2' was not there at setup"):
        guide(3)


def test_a_loop_by_pyro_plate_is_fitted():
    def model():
        x = [pyro.sample(f"x{i}", dist.Normal(0.0, 1.0)) for i in pyro.plate("p", 3)]
        for i in pyro.plate("q", 3):
            pyro.sample(f"y{i}", dist.Normal(x[i], 1.0), obs=torch.tensor(float(i)))

    fit = pf.fit(model, seed=0, num_particles=64, max_steps=300, progress=False)
    means = [float(fit.sample(10_000, seed=0)[f"x{i}"].mean()) for i in range(3)]
    assert means == pytest.approx([0.0, 0.5, 1.0], abs=0.05)  # standard error 0.007


def test_a_location_far_from_zero_is_fitted_in_float32():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(3e5, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = pf.fit(model, torch.tensor(3e5 + 1), **QUICK)
    assert float(fit.sample(1000, seed=0)["mean"].double().mean()) == pytest.approx(3e5 + 0.5, abs=0.3)


# Errors that say what to do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": {"x": math.nan}}, "values.'x'. must lie in the support"),
        ({"init": 3}, "init must be a dictionary"),
        ({"init": {"x": torch.zeros(3)}}, "init must hold one value per site"),
        ({"init": {"y": 0.0}}, "init: values must hold the sites"),
        ({"max_time": "a"}, "max_time"),
        ({"callback": 3}, "callback"),
        ({"kwargs": 3}, "kwargs"),
        ({"schedule": 3}, "schedule"),
        ({"seed": 2**70}, "seed"),
        ({"seed": True}, "seed"),
        ({"guide": lambda dim: pf.flows.affine(dim)}, "cannot be called as .input_dim, context_dim"),
    ],
)
def test_an_argument_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        pf.fit(coin, **{**QUICK, **arguments})


def test_starts_may_be_plain_numbers():
    fit = pf.fit(coin, **QUICK, init={"x": 0})
    assert fit.record["path"] == "vmap"


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"window": 0}, {"alpha": 2.0}, {"growth": 0.5}, {"exact_sd": -1.0}])
def test_a_schedule_is_checked_when_it_is_made(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Schedule(**wrong)


def test_methods_of_a_fit_name_their_arguments():
    fit = pf.fit(coin, **QUICK)
    for call in (fit.sample, fit.resample, fit.to_arviz, fit.diagnose, fit.predict):
        for wrong in ("a", None, 0, 1.5, True):
            with pytest.raises(ValueError, match="num_samples"):
                call(wrong)
    with pytest.raises(ValueError, match="num_samples .* a tensor of shape"):
        fit.predict(torch.zeros(100, 3))
    with pytest.raises(ValueError, match="num_proposals"):
        fit.resample(5, num_proposals=1)
    with pytest.raises(ValueError, match="seed"):
        fit.sample(5, seed="a")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: pyro.sample("x", dist.ImproperUniform(constraints.real, (), ())), "posterior is improper"),
        (lambda: pyro.sample("x", dist.Normal(torch.zeros(0), 1.0).to_event(1)), "all empty"),
        (lambda: pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "sequential"}), "only 'parallel'"),
    ],
)
def test_a_model_that_cannot_be_fitted_is_refused_with_its_site(model, message):
    with pytest.raises(ValueError, match=message):
        pf.fit(model, **QUICK)


def test_a_gradient_that_is_not_finite_is_told_from_a_density_that_is_not():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(x > 0, x.sqrt(), x * 0))

    with pytest.raises(ArithmeticError, match=r"torch\.where"):
        pf.fit(model, **QUICK)


def test_guides_say_what_is_missing():
    with pytest.raises(ValueError, match="nsf"):
        pf.AutoFlow(coin, flow="nsf")
    guide = pf.AutoFlow(coin, "affine")
    with pytest.raises(ValueError, match=r"guide\.setup"):
        guide.load_state_dict({})
    with pytest.raises(ValueError, match="its signature is"):
        pf.AutoFlow(coin, "maf", flow_options={"layers": 3}).setup()
    with pytest.raises(ValueError, match="num_samples"):
        guide.setup().median(num_samples=0)


def test_an_empty_batch_has_an_empty_density():
    with pyro.validation_enabled():
        assert pf.FlowDistribution(pf.flows.affine(2)).log_prob(torch.zeros(0, 2)).shape == (0,)


# Cost


def test_a_time_limit_holds_for_the_search_of_a_start_too():
    def slow(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        time.sleep(0.02)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    began = time.monotonic()
    pf.fit(slow, torch.tensor(1.0), seed=0, max_time=3.0, progress=False)
    assert time.monotonic() - began < 12.0


def test_particles_bound_how_many_are_evaluated_at_once():
    sizes, joint = [], LogJoint(coin)

    def spy(z):
        sizes.append(len(z))
        return joint(z)

    choose_start(spy, torch.zeros(1), 0.1, num_particles=8)
    assert max(sizes) <= 8
