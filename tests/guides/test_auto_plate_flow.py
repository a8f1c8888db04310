"""AutoPlateFlow: local latents of plates, subsampled, nested, crossed, masked, by encoder and by embedding."""

from __future__ import annotations

import copy
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_flows as pf
from pyro_flows.infer import DReGELBO, ForwardKLELBO, KLWarmupELBO, PathELBO

N, NOISE = 20, 0.5


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


DATA = 2 * torch.randn(N, generator=torch.Generator().manual_seed(3))


def by_size(y, batch=5):
    """Draws its minibatch."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample_size=batch) as i:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, NOISE), obs=y[i])


def by_index(y, indices):
    """Is given its minibatch: indices, and the rows of data that belong to them."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample=indices):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, NOISE), obs=y)


class Encoder(nn.Module):
    """A row for each number it is given."""

    def __init__(self, width=6):
        super().__init__()
        self.net = pf.nn.MLP(1, width, (16,))

    def forward(self, y, *_, **__):
        return self.net(y.unsqueeze(-1))


def exact():
    """Posterior means and standard deviations of (mean, z), which are jointly normal."""
    precision = torch.zeros(N + 1, N + 1, dtype=torch.float64)
    precision[0, 0] = 1 + N
    precision[0, 1:] = precision[1:, 0] = -1
    precision[1:, 1:] = torch.eye(N) * (1 + NOISE**-2)
    covariance = precision.inverse()
    linear = torch.cat([torch.zeros(1), DATA / NOISE**2]).double()
    return covariance @ linear, covariance.diagonal().sqrt()


@pytest.mark.parametrize(
    "context", [pytest.param("embedding", marks=pytest.mark.slow), "encoder", pytest.param("own indices", marks=pytest.mark.slow)]
)
def test_minibatches_find_the_posterior_of_every_element(context):
    """Pyro's flow guides end 2.8 posterior sd off. Monte Carlo: 16,000 draws, standard error 0.008 sd; all within 0.1 sd."""
    model = by_index if context == "own indices" else by_size
    source = Encoder() if context == "encoder" else 2
    first = (DATA[:5], torch.arange(5)) if model is by_index else (DATA,)
    guide = pf.AutoPlateFlow(model, {"data": source}, flow="affine").setup(*first)
    optim = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.003 ** (1 / 1500)})
    svi = SVI(model, guide, optim, PathELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(1500):
        indices = torch.randperm(N)[:5]
        svi.step(*((DATA[indices], indices) if model is by_index else (DATA,)))
    everything = (DATA, torch.arange(N)) if model is by_index else (DATA, N)
    draws = guide.sample(16_000, *everything)
    found = torch.cat([draws["mean"][:, None], draws["z"]], 1).double()
    mean, sd = exact()
    error = ((found.mean(0) - mean) / sd).abs()
    assert error[1:].max() < 0.1
    assert error[0] < 0.2  # 1,500 minibatches of five leave that much noise in the one global
    assert (found.std(0) / sd - 1).abs().max() < 0.1
    if model is by_index:  # the same rows in another order
        order = torch.randperm(N)
        assert ((guide.sample(16_000, DATA[order], order)["z"].mean(0) - mean[1:][order]) / sd[1:][order]).abs().max() < 0.1


def test_minibatches_estimate_the_full_elbo_without_bias():
    """The mean over the minibatches of a partition, and the full one, each from 4,000 draws, within five standard errors."""
    guide = pf.AutoPlateFlow(by_index, {"data": 4}).setup(DATA[:5], torch.arange(5))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    means, errors = [], []
    for parts in (torch.randperm(N).split(5), [torch.arange(N)]):
        losses = torch.tensor([[elbo.loss(by_index, guide, DATA[i], i) for i in parts] for _ in range(20)]).double().mean(1)
        means.append(losses.mean())
        errors.append(losses.std() / 20**0.5)
    error = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    assert abs(means[0] - means[1]) < 5 * error
    assert error < 0.02 * abs(means[1])


def test_scales_are_those_of_the_model():
    guide = pf.AutoPlateFlow(by_size, {"data": 4}).setup(DATA)
    trace = poutine.trace(guide).get_trace(DATA, 4)
    assert {site["scale"] for name, site in trace.nodes.items() if name == "z" or "_data" in name} == {5.0}
    assert trace.nodes["mean"]["scale"] == 1.0


ELBOS = {
    "Trace": lambda: Trace_ELBO(),
    "Trace, vectorised": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "Trace, nesting guessed": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "TraceGraph": lambda: TraceGraph_ELBO(),
    "TraceEnum": lambda: TraceEnum_ELBO(max_plate_nesting=1),
    "TraceMeanField": lambda: TraceMeanField_ELBO(),
    "Path": lambda: PathELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "DReG": lambda: DReGELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "forward KL": lambda: ForwardKLELBO(num_particles=3),
}


@pytest.mark.parametrize("context", ["embedding", "encoder"])
@pytest.mark.parametrize("name", ELBOS)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_every_elbo_trains_every_parameter(name, context):
    model = by_size if context == "embedding" else by_index
    first = (DATA,) if model is by_size else (DATA[:5], torch.arange(5))
    guide = pf.AutoPlateFlow(model, {"data": 4 if context == "embedding" else Encoder()}, flow="real_nvp").setup(*first)
    before = copy.deepcopy(guide.state_dict())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.003}), ELBOS[name]())
    for _ in range(12):
        assert abs(svi.step(*first)) < 1e5
    still = [key for key, value in guide.named_parameters() if value.numel() and torch.equal(value, before[key])]
    assert not still


def test_the_elbo_is_the_same_by_every_route():
    """The log-density that Pyro sums is that of log_prob, at one draw, to rounding."""
    guide = pf.AutoPlateFlow(by_size, {"data": 4}).setup(DATA)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    trace = poutine.trace(guide).get_trace(DATA, N)
    values = {name: trace.nodes[name]["value"] for name in ("mean", "z")}
    torch.testing.assert_close(guide.log_prob(values, DATA, N), trace.log_prob_sum(), rtol=1e-4, atol=1e-3)
    draws = guide.sample(7, DATA, N)
    together = guide.log_prob(draws, DATA, N)
    apart = [guide.log_prob({name: value[i] for name, value in draws.items()}, DATA, N) for i in range(7)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-4, atol=1e-3)


# Structures


def nested(y, schools=None, pupils=None):
    """Pupils in schools, both subsampled; a positive latent of each school, a correlated pair of each pupil."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pyro.plate("schools", 6, dim=-2, subsample_size=schools) as i:
        scale = pyro.sample("scale", dist.LogNormal(0.0, tau))
        with pyro.plate("pupils", 8, dim=-1, subsample_size=pupils) as j:
            pair = pyro.sample("pair", dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 0.5).mask(True))
            pyro.sample("y", dist.Normal(pair.sum(-1), scale), obs=y[i][:, j])


def crossed(y, rows=None, columns=None):
    """Rows and columns cross; an interaction for each pair."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    row_plate = pyro.plate("rows", 5, dim=-2, subsample_size=rows)
    column_plate = pyro.plate("columns", 4, dim=-1, subsample_size=columns)
    with row_plate as i:
        row = pyro.sample("row", dist.Normal(mean, 1.0))
    with column_plate as j:
        column = pyro.sample("column", dist.Normal(mean, 1.0))
    with row_plate, column_plate:
        both = pyro.sample("both", dist.Normal(row + column, 1.0))
        pyro.sample("y", dist.Normal(both, 1.0), obs=y[i][:, j])


def with_own_dimensions(y, batch=None):
    """Each element has a matrix of latents, whose dimensions are no plates or plates that are not in context."""
    with pyro.plate("items", 3, dim=-2):
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
    with pyro.plate("persons", 10, dim=-1, subsample_size=batch) as i:
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("items again", 3, dim=-2):
            slip = pyro.sample("slip", dist.Dirichlet(torch.ones(4)))
        pyro.sample("z", dist.Normal(torch.zeros(2, 1, 1), 1.0).expand([2, 1, len(i)]))
        with pyro.plate("items once more", 3, dim=-2):
            pyro.sample("y", dist.Normal(ability - difficulty + slip[..., 0], 1.0), obs=y[:, i])


STRUCTURES = {
    "nested": (nested, {"schools": 3, "pupils": 4}, torch.randn(6, 8), {"schools": 2, "pupils": 3}, 2),
    "crossed": (crossed, {"rows": 3, "columns": 2, ("rows", "columns"): 4}, torch.randn(5, 4), {"rows": 2, "columns": 3}, 2),
    "own dimensions": (with_own_dimensions, {"persons": 5}, torch.randn(3, 10), {"batch": 4}, 3),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_score_what_they_draw(name):
    model, context, y, batch, _ = STRUCTURES[name]
    guide = pf.AutoPlateFlow(model, context, flow="real_nvp").setup(y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    trace = poutine.trace(guide).get_trace(y)
    values = {n: trace.nodes[n]["value"] for n in guide(y)}
    torch.testing.assert_close(guide.log_prob(values, y), trace.log_prob_sum(), rtol=1e-4, atol=1e-3)
    shapes = {n: site["value"].shape for n, site in poutine.trace(model).get_trace(y, **batch).nodes.items() if n in values}
    assert {n: value.shape for n, value in guide(y, **batch).items()} == shapes


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_train_on_minibatches(name):
    model, context, y, batch, nesting = STRUCTURES[name]
    guide = pf.AutoPlateFlow(model, context, flow="affine").setup(y, **batch)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=nesting)
    before = sum(elbo.loss(model, guide, y) for _ in range(20)) / 20
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.002}), elbo)
    for _ in range(200):
        svi.step(y, **batch)
    assert sum(elbo.loss(model, guide, y) for _ in range(20)) / 20 < before - 1


def test_the_latents_of_an_enclosing_plate_reach_those_inside():
    """The pair of a pupil may depend on its school's scale: the gradient of one school's reaches only its own pupils."""
    model, context, y, _, _ = STRUCTURES["nested"]
    guide = pf.AutoPlateFlow(model, context, flow="affine").setup(y)
    inner = guide.blocks[2]
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    with poutine.trace() as tracer:
        guide(y)
    schools = tracer.trace.nodes["scale"]["value"]
    (gradient,) = torch.autograd.grad(tracer.trace.nodes["pair"]["value"][2].sum(), schools, allow_unused=True)
    assert gradient is None  # through the auxiliary draw, not through the site's value
    auxiliary = next(site["value"] for n, site in tracer.trace.nodes.items() if n.endswith("_schools"))
    (gradient,) = torch.autograd.grad(tracer.trace.nodes["pair"]["value"][2].sum(), auxiliary)
    assert gradient[2].abs().sum() > 0 and gradient[[0, 1, 3, 4, 5]].abs().sum() == 0


def test_conjugate_nested_posterior():
    """Normal at all three levels: the guide of affine flows can be exact, and the ELBO is then the log evidence."""

    def model(y):
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3, dim=-2):
            middle = pyro.sample("middle", dist.Normal(top, 1.0))
            with pyro.plate("members", 2, dim=-1):
                leaf = pyro.sample("leaf", dist.Normal(middle, 1.0))
                pyro.sample("y", dist.Normal(leaf, 1.0), obs=y)

    y = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.5, 3.0]])
    group = torch.eye(3).repeat_interleave(2, 0) @ torch.eye(3).repeat_interleave(2, 0).T
    evidence = dist.MultivariateNormal(torch.zeros(6), torch.ones(6, 6) + group + 2 * torch.eye(6)).log_prob(y.reshape(-1))
    guide = pf.AutoPlateFlow(model, {"groups": 2, "members": 2}, flow="affine").setup(y)
    elbo = PathELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=2)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.003 ** (1 / 400)}), elbo)
    for _ in range(400):
        svi.step(y)
    losses = torch.tensor([elbo.loss(model, guide, y) for _ in range(50)])
    assert abs(losses.mean() + evidence) < 0.05


def test_masked_elements_count_for_nothing():
    """A plate of sets of different sizes, padded: the guide masks what the model masks, and its entropy does not run away."""
    present = torch.tensor([[True, True, True], [True, False, False]])

    def model():
        with pyro.plate("sets", 2, dim=-2), pyro.plate("members", 3, dim=-1), poutine.mask(mask=present):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = pf.AutoPlateFlow(model, {("sets", "members"): 2}, flow="affine").setup()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), PathELBO(num_particles=8, vectorize_particles=True))
    for _ in range(400):
        loss = svi.step()
    assert abs(loss) < 0.1
    assert torch.isfinite(guide.log_prob(guide(), *()))


def test_discrete_local_latents_are_enumerated():
    @pyro.infer.config_enumerate
    def model(y):
        with pyro.plate("data", N, subsample_size=5) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(z + k, 1.0), obs=y[i])

    guide = pf.AutoPlateFlow(model, {"data": 2}, flow="affine").setup(DATA)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    assert all(abs(svi.step(DATA)) < 1e4 for _ in range(5))


# Elements


def test_an_encoder_guides_new_elements_and_changing_minibatches():
    def model(y, observed=True):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, NOISE), obs=y if observed else None)

    guide = pf.AutoPlateFlow(model, {"data": Encoder()}, flow="affine").setup(DATA)
    optim = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / 600)})
    svi = SVI(model, guide, optim, PathELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1))
    for size in [20, 7, 1] * 200:
        svi.step(2 * torch.randn(size))
    new = torch.linspace(-2, 2, 41)
    draws = guide.sample(4000, new)["z"]
    assert draws.shape == (4000, 41)
    assert (draws.mean(0) - new / (1 + NOISE**2)).abs().max() < 0.15 * (1 + NOISE**-2) ** -0.5
    predicted = Predictive(model, guide=guide, num_samples=10, parallel=True)(new, observed=False)
    assert predicted["y"].shape == (10, 41)


def test_rows_of_the_whole_plate_are_indexed():
    """The encoder may return a row for every element: the model that is given all data and draws its minibatch."""
    seen = Encoder()
    guide = pf.AutoPlateFlow(by_size, {"data": seen}, flow="affine").setup(DATA)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    trace = poutine.trace(guide).get_trace(DATA, 4)
    indices = trace.nodes["data"]["value"]
    site = next(site for name, site in trace.nodes.items() if name.endswith("_data"))
    torch.testing.assert_close(site["fn"].transform.context[..., 1:], seen(DATA)[indices])


def test_rows_in_another_order_are_not_guessed():
    order = torch.randperm(N)
    with pytest.raises(ValueError, match="all of it in another order"):
        pf.AutoPlateFlow(by_index, {"data": Encoder()}).setup(DATA[order], order)
    for rows, expected in (("minibatch", DATA[order]), ("plate", DATA[order][order])):
        seen = Encoder()
        guide = pf.AutoPlateFlow(by_index, {"data": seen}, rows={"data": rows}).setup(DATA[order], order)
        with poutine.trace() as tracer:
            guide(DATA[order], order)
        site = next(site for name, site in tracer.trace.nodes.items() if name.endswith("_data"))
        torch.testing.assert_close(site["fn"].transform.context[..., 1:], seen(expected))


def test_a_replayed_guide_keeps_its_minibatch():
    guide = pf.AutoPlateFlow(by_size, {"data": 4}).setup(DATA)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    trace = poutine.trace(guide).get_trace(DATA)
    again = poutine.trace(poutine.replay(guide, trace=trace)).get_trace(DATA)
    assert torch.equal(again.nodes["data"]["value"], trace.nodes["data"]["value"])
    torch.testing.assert_close(again.log_prob_sum(), trace.log_prob_sum())


def test_create_plates_is_heard():
    def plates(y, batch=5):
        return pyro.plate("data", N, subsample_size=batch)

    guide = pf.AutoPlateFlow(by_size, {"data": 4}, create_plates=plates).setup(DATA)
    assert guide(DATA, 3)["z"].shape == (3,)


def test_sparse_tables_have_sparse_gradients():
    guide = pf.AutoPlateFlow(by_size, {"data": 4}, sparse=True).setup(DATA)
    PathELBO().differentiable_loss(by_size, guide, DATA).backward()
    table = next(value for name, value in guide.named_parameters() if "table" in name)
    assert table.grad.is_sparse and table.grad.coalesce().indices().numel() == 5


# Life in a process


def test_copies_and_pickles_draw_the_same_and_train_apart():
    guide = pf.AutoPlateFlow(by_index, {"data": Encoder()}).setup(DATA[:5], torch.arange(5))
    args = DATA[:7], torch.arange(7)
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        if other.model is None:
            other.__dict__.update(_model=guide._model, _raw_model=guide._raw_model)
        drawn = []
        for each in (guide, other):
            torch.manual_seed(1)
            drawn.append(each(*args)["z"])
        assert torch.equal(*drawn)
    before = copy.deepcopy(guide.state_dict())
    other = copy.deepcopy(guide)
    svi = SVI(by_index, other, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(*args)
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_guide_that_is_not_set_up_sets_itself_up_in_its_first_step():
    guide = pf.AutoPlateFlow(by_size, {"data": 4})
    svi = SVI(by_size, guide, pyro.optim.Adam({"lr": 0.01}), PathELBO())
    assert all(abs(svi.step(DATA)) < 1e6 for _ in range(2))


def test_likelihoods_of_held_out_elements():
    """Importance-weighted by an encoder that knows nothing: the mean of p(y) is that of N(0, 1 + NOISE^2) all the same."""

    def model(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, NOISE), obs=y)

    guide = pf.AutoPlateFlow(model, {"data": Encoder()}, flow="affine", init_scale=1.0)
    data = DATA.clamp(-2, 2)  # further out few draws of the prior come
    found = pf.evaluate_nll(model, guide, data, plate="data", num_samples=4000)
    exact_nll = -dist.Normal(0.0, (1 + NOISE**2) ** 0.5).log_prob(data)
    assert (found.values - exact_nll).abs().max() < 0.25  # at 2 the standard error is .04: six of them
    loss = KLWarmupELBO(warmup_steps=10)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
    assert all(abs(svi.step(DATA)) < 1e4 for _ in range(3))
    again, bound = KLWarmupELBO(start=1.0), Trace_ELBO()
    torch.manual_seed(1)
    first = again.loss(model, guide, DATA)
    torch.manual_seed(1)
    assert abs(first - bound.loss(model, guide, DATA)) < 1e-3 * abs(first)


def test_a_second_guide_of_one_process_trains():
    for _ in range(2):
        guide = pf.AutoPlateFlow(by_size, {"data": 4}).setup(DATA)
        before = copy.deepcopy(guide.state_dict())
        SVI(by_size, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(DATA)
        assert any(not torch.equal(value, before[name]) for name, value in guide.state_dict().items())


def test_the_dtype_follows_the_model():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", N, subsample_size=5) as i:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    guide = pf.AutoPlateFlow(model, {"data": 4}).setup(DATA.double())
    assert {value.dtype for value in guide.parameters()} == {torch.float64}
    assert guide(DATA.double())["z"].dtype == torch.float64
    with pytest.raises(ValueError, match="give both one dtype"):
        pf.AutoPlateFlow(model, {"data": lambda y: torch.zeros(N, 2)}).setup(DATA.double())


@pytest.mark.parametrize("context", ["embedding", "encoder"])
def test_nothing_is_made_on_the_default_device(context):
    def model(y, indices):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("data", N, subsample=indices, device="cpu"):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, NOISE), obs=y)

    source = 4 if context == "embedding" else Encoder()
    args = DATA[:5], torch.arange(5)
    guide = pf.AutoPlateFlow(model, {"data": source}).setup(*args)
    with torch.device("meta"):
        values = guide(*args)
        log_q = guide.log_prob(values, *args)
    assert {value.device.type for value in [*values.values(), log_q]} == {"cpu"}


def test_quantiles_and_medians():
    guide = pf.AutoPlateFlow(by_size, {"data": 4}).setup(DATA)
    assert guide.quantiles([0.1, 0.9], DATA, N)["z"].shape == (2, N)
    assert guide.median(DATA, N)["mean"].shape == ()
    with pytest.raises(ValueError, match="between 0 and 1"):
        guide.quantiles([1.5], DATA)
    with pytest.raises(ValueError, match="num_samples must be a positive integer"):
        guide.sample(0, DATA)


# Bad input


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({}, "must be a dictionary from a plate's name"),
        (3, "must be a dictionary from a plate's name"),
        ({"data": 0}, "must be positive, the width of a learned row"),
        ({"data": "mlp"}, "must be an encoder or a positive integer"),
        ({"data": True}, "must be an encoder or a positive integer"),
        ({3: 4}, "a key must be the name of a plate"),
        ({"nowhere": 4}, r"plate 'data', which is subsampled .* has no context among \['nowhere'\]"),
        ({"data": 4, "nowhere": 4}, "no latent site is in a plate of that name"),
    ],
)
def test_contexts_that_do_not_fit_are_refused(context, message):
    with pytest.raises(ValueError, match=message):
        pf.AutoPlateFlow(by_size, context).setup(DATA)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda y: torch.zeros(7, 2), r"returned shape \(7, 2\); expected \(5 or 20, C\)"),
        (lambda y: torch.zeros(5), "expected"),
        (lambda y: torch.zeros(5, 2, dtype=torch.long), "returned a tensor of torch.int64"),
        (lambda y: None, "returned NoneType"),
        (lambda y: torch.tensor([[1.0], [float("nan")], [0.0], [0.0], [float("inf")]]), "NaN or infinity for 2 of 5 elements"),
        (lambda y: torch.zeros(5, 2, requires_grad=True) * 1, "give an nn.Module that owns them"),
        (lambda: torch.zeros(5, 2), "is called as the model is, here with 1 arguments"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        pf.AutoPlateFlow(by_size, {"data": rows}).setup(DATA)


def test_an_embedding_refuses_a_plate_of_another_size():
    def model(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = pf.AutoPlateFlow(model, {"data": 4}).setup(DATA)
    with pytest.raises(ValueError, match="plate 'data' has size 7 in this call and had 20 at setup"):
        guide(DATA[:7])


def test_dependence_on_a_latent_of_another_plate_is_refused():
    school = torch.tensor([0, 0, 1, 1])

    def model():
        with pyro.plate("schools", 2):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("classes", 4):
            pyro.sample("inner", dist.Normal(effect[school], 1.0))

    with pytest.raises(ValueError, match=r"the prior of latent site 'inner' depends on 'effect', which is local to plates"):
        pf.AutoPlateFlow(model, {"schools": 2, "classes": 2}).setup()
    assert pf.AutoPlateFlow(model, {"classes": 2}).setup()()["inner"].shape == (4,)


def test_indices_that_the_model_draws_itself_are_refused():
    def model(y):
        indices = torch.randperm(N)[:5]
        with pyro.plate("data", N, subsample=indices):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[indices])

    with pytest.raises(ValueError, match="the model draws the indices of plate 'data' itself"):
        pf.AutoPlateFlow(model, {"data": 2}).setup(DATA)


def test_interactions_without_a_context_are_refused():
    _, _, y, _, _ = STRUCTURES["crossed"]
    with pytest.raises(ValueError, match=r"\['both'\] are in the plates \['rows', 'columns'\] together"):
        pf.AutoPlateFlow(crossed, {"rows": 2, "columns": 2}).setup(y)


def test_latents_of_another_shape_are_refused():
    def model(width):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.zeros(width), 1.0).to_event(1))

    guide = pf.AutoPlateFlow(model, {"data": 2}).setup(3)
    with pytest.raises(ValueError, match=r"latent site 'z' had shape \(4, 3\) at setup and has \(4, 2\) in this call"):
        guide(2)


def test_elements_masked_in_different_ways_are_refused():
    def model():
        with pyro.plate("data", 2):
            pyro.sample("a", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=torch.tensor([True, False])):
                pyro.sample("b", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="masked in different ways"):
        pf.AutoPlateFlow(model, {"data": 2}).setup()()


def test_jit_is_refused_or_right():
    guide = pf.AutoPlateFlow(by_index, {"data": 4}, flow="affine").setup(DATA[:5], torch.arange(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = JitTrace_ELBO(ignore_jit_warnings=True).loss(by_index, guide, DATA[:5], torch.arange(5))
    assert abs(loss) < 1e4


# What a call may change, and what it may not


def bounded(upper, y=None):
    with pyro.plate("data", len(upper)):
        z = pyro.sample("z", dist.Uniform(torch.zeros_like(upper), upper))
        pyro.sample("y", dist.Normal(z, 0.01), obs=y)


def test_supports_are_those_of_the_call():
    guide = pf.AutoPlateFlow(bounded, {"data": lambda upper, y=None: upper[:, None] / 100}, init_scale=1.0)
    guide.setup(torch.ones(4), torch.full((4,), 0.5))
    new = torch.tensor([1.0, 100.0, 3.0])
    draws = guide.sample(2000, new)["z"]
    assert (draws <= new).all() and (draws.max(0)[0] > 0.8 * new).all()
    with pytest.raises(ValueError, match="must lie in the support"):
        guide.log_prob({"z": torch.tensor([2.0, 2.0, 2.0])}, new)
    trace = poutine.trace(guide).get_trace(new)
    torch.testing.assert_close(guide.log_prob({"z": trace.nodes["z"]["value"]}, new), trace.log_prob_sum(), rtol=1e-4, atol=1e-4)


def test_circular_elements_are_refused():
    def model():
        with pyro.plate("data", 4):
            pyro.sample("angle", dist.VonMises(0.0, 1.0))

    with pytest.raises(ValueError, match="lives on a circle"):
        pf.AutoPlateFlow(model, {"data": 2}).setup()


def test_rows_of_two_plates_are_in_the_order_of_the_key():
    def model(y):
        with pyro.plate("a", 3, dim=-1), pyro.plate("b", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("y", dist.Normal(z, 0.1), obs=y)

    y = torch.arange(9.0).reshape(3, 3)  # [b, a]
    for key, rows in ((("a", "b"), lambda y: y.mT[..., None]), (("b", "a"), lambda y: y[..., None])):
        guide = pf.AutoPlateFlow(model, {key: rows}, flow="affine").setup(y)
        with poutine.trace() as tracer:
            guide(y)
        site = next(site for name, site in tracer.trace.nodes.items() if name.startswith("_"))
        assert torch.equal(site["fn"].transform.context[..., 0], y)


def test_the_innermost_plate_is_that_which_is_entered_last():
    def model():
        with pyro.plate("a", 4):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with pyro.plate("b", 3):
                pyro.sample("z", dist.Normal(u, 1.0))

    guide = pf.AutoPlateFlow(model, {"a": 2, "b": 2}).setup()
    values = guide()
    assert values["z"].shape == (3, 4)
    trace = poutine.trace(guide).get_trace()
    values = {name: trace.nodes[name]["value"] for name in ("u", "z")}
    torch.testing.assert_close(guide.log_prob(values), trace.log_prob_sum(), rtol=1e-4, atol=1e-4)


def test_masks_that_depend_on_latents_are_refused():
    def model():
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20), poutine.mask(mask=torch.sigmoid(t) * 20 > torch.arange(20.0)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="mask of latent site 'z' depends on other latents"):
        pf.AutoPlateFlow(model, {"data": 2}).setup()


@pytest.mark.parametrize(
    "indices", [torch.tensor([0, -1]), torch.tensor([0, N]), torch.ones(N, dtype=torch.bool), torch.tensor([0.0])]
)
def test_indices_that_are_none_are_refused(indices):
    with pytest.raises(ValueError, match="the indices of plate 'data' must be integers from 0 to 19"):
        pf.AutoPlateFlow(by_index, {"data": 2}).setup(torch.zeros(len(indices)), indices)


def test_a_plate_made_outside_of_the_model_is_refused():
    plate = pyro.plate("data", N, subsample_size=5)

    def model(y):
        with plate as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    with pytest.raises(ValueError, match="made outside of the model"):
        pf.AutoPlateFlow(model, {"data": 2}).setup(DATA)


def test_an_unpickled_guide_asks_for_its_model():
    guide = pickle.loads(pickle.dumps(pf.AutoPlateFlow(by_size, {"data": 2}).setup(DATA)))
    with pytest.raises(ValueError, match=r"give it back by guide.set_model\(model\)"):
        guide(DATA)
    guide.set_model(by_size)
    assert guide(DATA)["z"].shape == (5,)


def test_dropout_has_no_path_gradient():
    class Dropping(Encoder):
        def forward(self, y, *_):
            return torch.nn.functional.dropout(super().forward(y), 0.5, self.training)

    guide = pf.AutoPlateFlow(by_index, {"data": Dropping()}, flow="affine", init_scale=0.5).setup(*FIRST)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    with pytest.raises(ValueError, match="when the guide is run again"):
        PathELBO().differentiable_loss(by_index, guide, *FIRST)
    guide.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PathELBO().differentiable_loss(by_index, guide, *FIRST)


FIRST = (DATA[:5], torch.arange(5))
