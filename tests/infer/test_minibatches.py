"""fit of a guide of plates: minibatches, verdict on all the data, and the gradients by which it is trained."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_flows as pf
from pyro_flows.infer import PathELBO
from pyro_flows.infer.particle_plate import why_not_together

N, NOISE = 12, 0.5
DATA = 2 * torch.randn(N, generator=torch.Generator().manual_seed(3))
EVERYTHING = (torch.arange(N), DATA)


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def model(indices, y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", N, subsample=indices):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, NOISE), obs=y)


class Minibatches:
    """In another order in each pass."""

    def __len__(self):
        return 3

    def __iter__(self):
        for indices in torch.randperm(N).split(4):
            yield indices, DATA[indices]


def exact():
    precision = torch.zeros(N + 1, N + 1, dtype=torch.float64)
    precision[0, 0] = 1 + N
    precision[0, 1:] = precision[1:, 0] = -1
    precision[1:, 1:] = torch.eye(N) * (1 + NOISE**-2)
    covariance = precision.inverse()
    linear = torch.cat([torch.zeros(1), DATA / NOISE**2]).double()
    evidence = dist.MultivariateNormal(torch.zeros(N), torch.ones(N, N) + (1 + NOISE**2) * torch.eye(N)).log_prob(DATA)
    return covariance @ linear, covariance.diagonal().sqrt(), float(evidence)


def test_fit_on_minibatches_is_right_and_says_so():
    """The evidence is exact to a standard error of about 0.005 nats; means from 10,000 draws to 0.01 sd."""
    guide = pf.AutoPlateFlow(model, {"data": 2}, flow="affine")
    result = pf.fit(model, *EVERYTHING, guide=guide, minibatches=Minibatches(), seed=0, progress=False)
    diagnosis = result.diagnose()
    mean, sd, evidence = exact()
    assert diagnosis.verdict == "good"
    assert abs(diagnosis.log_evidence - evidence) < 0.03
    draws = result.sample(10_000, seed=0)
    found = torch.cat([draws["mean"][:, None], draws["z"]], 1).double()
    assert ((found.mean(0) - mean) / sd).abs()[1:].max() < 0.1
    assert (found.std(0) / sd - 1).abs().max() < 0.1
    assert result.record["path"] == "particle plate"
    assert result.predict(7)["y"].shape == (7, N)
    resampled = result.resample(4000, seed=0)
    assert ((resampled["z"].double().mean(0) - mean[1:]) / sd[1:]).abs().max() < 0.1
    posterior = result.to_arviz(50)["posterior"]
    assert dict(posterior["z"].sizes) == {"chain": 1, "draw": 50, "data": N}
    with pytest.raises(ValueError, match="a guide of plates gives no map to a latent space"):
        result.refine_mcmc(10)


def test_model_that_cannot_be_run_in_a_particle_plate_is_run_in_a_loop():
    """Its density of all elements is shared in a particle plate: right shape, wrong number."""

    def shared(y):
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z - z.mean(), NOISE), obs=y)

    guide = pf.AutoPlateFlow(shared, {"data": 2}, flow="affine").setup(DATA)
    assert why_not_together(shared, guide, (DATA,), {}, 1) == "differs from single runs at site 'y'"
    result = pf.fit(shared, DATA, guide=guide, max_steps=5, seed=0, progress=False)
    assert result.record["path"] == "loop over particles"
    assert "differs from single runs at site 'y'" in result.record["path_reasons"][0]


def test_parameters_of_the_model_are_trained():
    def learning(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(z, NOISE), obs=y)

    guide = pf.AutoPlateFlow(learning, {"data": 2}, flow="affine")
    result = pf.fit(learning, DATA, guide=guide, seed=0, progress=False)
    assert result.record["model_parameters"] == ["scale"]
    best = (DATA.square().mean() - NOISE**2).sqrt()
    assert abs(float(pyro.param("scale").detach()) - float(best)) < 0.1


@pytest.mark.parametrize("plates_only", [False, True])
def test_path_gradients_of_a_guide_of_plates_are_unbiased(plates_only):
    """Against the total gradient, 30 means of 500 draws each; all within 4.5 standard errors (false alarm below 1e-2)."""
    guide = pf.AutoPlateFlow(model, {"data": 3}, flow="real_nvp", flow_options={"num_layers": 2, "hidden_dims": (4,)})
    everything = (torch.arange(N), DATA.double())
    guide.setup(*everything)
    assert {parameter.dtype for parameter in guide.parameters()} == {torch.float64}
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    options = {"num_particles": 500, "vectorize_particles": True, "max_plate_nesting": 1}
    found = []
    for objective in (Trace_ELBO(**options), PathELBO(plates_only=plates_only, **options)):
        rows = []
        for _ in range(30):
            guide.zero_grad()
            objective.differentiable_loss(model, guide, *everything).backward()
            rows.append(torch.cat([p.grad.reshape(-1) for p in guide.parameters() if p.grad is not None]))
        stacked = torch.stack(rows)
        found.append((stacked.mean(0), stacked.std(0) / 30**0.5))
    error = (found[0][1] ** 2 + found[1][1] ** 2).sqrt()
    assert ((found[0][0] - found[1][0]).abs() <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("context", [2, 1, 5])
def test_other_units_leave_the_guide_what_it_is(context):
    guide = pf.AutoPlateFlow(model, {"data": context}).setup(*EVERYTHING)
    with torch.no_grad():
        for parameter in guide.affine_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    draws = guide.sample(5, *EVERYTHING)
    before = guide.log_prob(draws, *EVERYTHING)
    guide.recentre(*EVERYTHING)
    torch.testing.assert_close(guide.log_prob(draws, *EVERYTHING), before, rtol=1e-4, atol=1e-3)
    block = guide.blocks[0]
    assert float(block.joint.transform.parts[1].params.log_diagonal.detach().abs().max()) < 1e-5


def test_sparse_tables_are_trained():
    guide = pf.AutoPlateFlow(model, {"data": 2}, flow="affine", sparse=True)
    result = pf.fit(model, *EVERYTHING, guide=guide, minibatches=Minibatches(), max_steps=30, seed=0, progress=False)
    assert result.losses[-1] < result.losses[0]
    assert all(bool((row != 0).any()) for row in guide.sources[0].table.weight)


def test_minibatches_that_the_model_draws_have_no_verdict():
    def drawing(y):
        with pyro.plate("data", N, subsample_size=4) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, NOISE), obs=y[i])

    guide = pf.AutoPlateFlow(drawing, {"data": 2}, flow="affine")
    result = pf.fit(drawing, DATA, guide=guide, max_steps=5, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"plates \['data'\] draw minibatches at the arguments of the fit"):
        result.diagnose()


@pytest.mark.parametrize(
    ("minibatches", "message"),
    [
        (DATA, "must be an iterable of the model's arguments"),
        (iter([EVERYTHING]), "an iterator ends"),
        ([], "minibatches is empty"),
    ],
)
def test_minibatches_that_do_not_serve_are_refused(minibatches, message):
    guide = pf.AutoPlateFlow(model, {"data": 2})
    with pytest.raises(ValueError, match=message):
        pf.fit(model, *EVERYTHING, guide=guide, minibatches=minibatches, progress=False)


def test_arguments_without_effect_are_refused():
    guide = pf.AutoPlateFlow(model, {"data": 2})
    with pytest.raises(ValueError, match="objective has no effect on an AutoPlateFlow"):
        pf.fit(model, *EVERYTHING, guide=guide, objective="iwae", progress=False)
    with pytest.raises(ValueError, match="minibatches are for a guide of plates"):
        pf.fit(model, *EVERYTHING, minibatches=Minibatches(), progress=False)


def test_elements_of_a_short_minibatch_count_as_much_as_others():
    """The element of the last minibatch is far off: counted by minibatches, the mean would be five posterior sds away."""
    y = torch.cat([torch.zeros(8), torch.tensor([6.0])])

    def uneven(indices, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 9, subsample=indices):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    parts = (torch.arange(4), torch.arange(4, 8), torch.tensor([8]))
    guide = pf.AutoPlateFlow(uneven, {"data": 2}, flow="affine")
    batches = [(i, y[i]) for i in parts]
    result = pf.fit(uneven, torch.arange(9), y, guide=guide, minibatches=batches, seed=0, progress=False)
    precision = 9 / 1.25 + 0.01
    assert abs(float(result.sample(4000, seed=0)["mean"].mean()) - float(y.sum()) / 1.25 / precision) < 0.2 * precision**-0.5


def test_new_elements_are_predicted_by_keywords_too():
    def model(x=None, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("y", dist.Normal(z, 0.1), obs=y)

    x = torch.tensor([5.0, -5.0, 5.0])
    guide = pf.AutoPlateFlow(model, {"data": lambda x, y=None: x[:, None]}, flow="affine")
    result = pf.fit(model, guide=guide, kwargs={"x": x, "y": x}, seed=0, progress=False, max_steps=600)
    one, other = result.predict(200, x=-x, y=None)["y"].mean(0), result.predict(200, -x)["y"].mean(0)
    assert (one * -x > 0).all() and (other * -x > 0).all()


def test_prediction_for_minibatches_that_the_model_draws_is_refused():
    def drawing(y, batch=None):
        with pyro.plate("data", N, subsample_size=batch) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, NOISE), obs=None if y is None else y[i])

    result = pf.fit(drawing, DATA, guide=pf.AutoPlateFlow(drawing, {"data": 2}), max_steps=3, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"plates \['data'\] draw minibatches at these arguments"):
        result.predict(3, None, 4)


def test_a_guide_of_another_model_is_refused():
    guide = pf.AutoPlateFlow(model, {"data": 2})
    with pytest.raises(ValueError, match="guide was made for another model"):
        pf.fit(lambda *args: model(*args), *EVERYTHING, guide=guide, progress=False)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_likelihood_that_is_not_finite_in_some_minibatches_is_named():
    def broken(indices, y):
        with pyro.plate("data", N, subsample=indices):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("penalty", -(z - y).square() * torch.where(indices > 8, torch.nan, 1.0))

    guide = pf.AutoPlateFlow(broken, {"data": 1}, flow="affine")
    fitted = {"guide": guide, "minibatches": [(i, DATA[i]) for i in torch.arange(N).split(4)], "progress": False, "seed": 0}
    with pyro.validation_enabled(False), pytest.raises(ArithmeticError, match=r"'penalty' \(3 of 4 elements"):
        pf.fit(broken, *EVERYTHING, **fitted)
    assert not guide.training


def test_minibatches_that_are_dictionaries_are_refused():
    guide = pf.AutoPlateFlow(model, {"data": 2}, flow="affine")
    batches = [{"indices": torch.arange(4), "y": DATA[:4]}]
    with pytest.raises(ValueError, match=r"minibatches must hold tuples .* got a dictionary with \['indices', 'y'\]"):
        pf.fit(model, *EVERYTHING, guide=guide, minibatches=batches, progress=False)


def test_minibatches_and_all_data_must_have_plates_of_one_size():
    def by_length(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, NOISE), obs=y)

    guide = pf.AutoPlateFlow(by_length, {"data": lambda y: y[:, None]}, flow="affine")
    with pytest.raises(ValueError, match=r"plate 'data' has size 4 at the minibatches and 12 at the arguments"):
        pf.fit(by_length, DATA, guide=guide, minibatches=list(DATA.split(4)), progress=False)
    guide = pf.AutoPlateFlow(model, {"data": 2}, flow="affine")
    with pytest.raises(ValueError, match=r"args must be the model's arguments for all the data"):
        pf.fit(model, guide=guide, minibatches=Minibatches(), progress=False)
