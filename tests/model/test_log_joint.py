"""The log joint density of models as people write them equals what Pyro's own trace says of single draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.nn import PyroModule, PyroSample
from pyro.ops.special import safe_log
from raising import raises_above
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.model import LogJoint, read_model
from pyro_flows.model.initial import prior_points

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
TIMES = torch.linspace(0.0, 1.0, 6)
ONE = torch.ones(4)


@pytest.fixture(autouse=True)
def _float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def d(x: Tensor) -> Tensor:
    return x.to(torch.get_default_dtype())


# A zoo of models


def schools_in_a_plate() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, d(ERRORS)), obs=d(EFFECTS))


def loop_over_groups_with_scalar_sites() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    for j in range(8):
        theta = pyro.sample(f"theta_{j}", dist.Normal(mu, tau))
        pyro.sample(f"y_{j}", dist.Normal(theta, d(ERRORS)[j]), obs=d(EFFECTS)[j])


def sequential_plate() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    for j in pyro.plate("school", 3):
        pyro.sample(f"y_{j}", dist.Normal(mu, d(ERRORS)[j]), obs=d(EFFECTS)[j])


def gaussian_process() -> None:
    x = d(TIMES)
    length = pyro.sample("length", dist.LogNormal(-1.0, 0.5))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    covariance = torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-4) * torch.eye(6)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(6), covariance_matrix=covariance), obs=x.sin())


def state_space_by_a_loop_over_time() -> None:
    rho = pyro.sample("rho", dist.Beta(2.0, 2.0))
    x: Any = 0.0
    for t in range(6):
        x = pyro.sample(f"x_{t}", dist.Normal(rho * x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=d(TIMES)[t])


def dirichlet_multinomial_and_correlations() -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("counts", dist.Multinomial(10, p), obs=torch.tensor([3.0, 3.0, 4.0]))
    factor = pyro.sample("L", dist.LKJCholesky(3, torch.tensor(2.0)))
    sd = pyro.sample("sd", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    normal = dist.MultivariateNormal(torch.zeros(3), scale_tril=sd[:, None] * factor)
    pyro.sample("z", normal.expand([2]).to_event(1), obs=torch.ones(2, 3))


def wrong_in_a_particle_plate() -> None:
    with pyro.plate("n", 4):
        th = pyro.sample("th", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(th - th.mean(), 1.0), obs=d(ONE))


def wrong_in_a_particle_plate_without_vmap() -> None:
    with pyro.plate("n", 4):
        th = pyro.sample("th", dist.Normal(0.0, 1.0))
        pyro.factor("f", safe_log(th**2 + 1.0))
        pyro.sample("y", dist.Normal(th - th.mean(), 1.0), obs=d(ONE))


def only_right_in_a_particle_plate() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 4):
        level = pyro.deterministic("level", safe_log(mu**2 + 1.0))
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        pyro.deterministic("total", spread.sum())
        pyro.sample("y", dist.Normal(level, spread), obs=d(ONE))


def python_branch() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu if mu > 0 else 2 * mu, 1.0), obs=torch.tensor(1.0))


def branch_on_an_item() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0 if mu.item() > 0 else 2.0), obs=torch.tensor(1.0))


def writes_into_a_tensor() -> None:
    th = torch.zeros(3)
    for j in range(3):
        th[j] = pyro.sample(f"th_{j}", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(th, 1.0).to_event(1), obs=torch.ones(3))


def tensor_of_tensors() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    pair = torch.tensor([mu, s])
    pyro.sample("y", dist.Normal(pair[0], pair[1]), obs=torch.tensor(1.0))


def improper_priors() -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), (3,)))
    pyro.sample("y", dist.Normal(mu, s).to_event(1), obs=torch.ones(3))


def mask_scale_and_factor() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    keep = torch.tensor([True, False, True, True])
    with pyro.plate("n", 4), poutine.mask(mask=keep), poutine.scale(scale=2.0):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor([1.0, 1.0, 2.0, 0.0]))
    pyro.factor("f", -(mu**2))
    pyro.deterministic("twice", 2 * mu)


def many_supports() -> None:
    pyro.sample("L", dist.LKJCholesky(4, torch.tensor(1.0)))
    b = pyro.sample("b", dist.StudentT(3.0, 0.0, 1.0).expand([2, 3]).to_event(2))
    g = pyro.sample("g", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    pyro.sample("u", dist.Uniform(-1.0, torch.tensor([1.0, 2.0])).to_event(1))
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        pyro.sample("y", dist.Poisson(g * torch.exp(0.1 * b)), obs=torch.ones(2, 3))


def ordered_logistic() -> None:
    cuts = pyro.sample("cuts", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    levels = dist.OrderedLogistic(torch.zeros(5), torch.sort(cuts)[0])
    pyro.sample("y", levels.to_event(1), obs=torch.tensor([0, 1, 2, 3, 1]))


def subsampled_globals() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 6, subsample=torch.tensor([0, 3])) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=d(TIMES)[i])


class Network(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = PyroModule[torch.nn.Linear](1, 3)
        self.hidden.weight = PyroSample(dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
        self.hidden.bias = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))
        self.out = PyroModule[torch.nn.Linear](3, 1)

    def forward(self) -> None:
        mean = self.out(torch.tanh(self.hidden(d(TIMES)[:, None]))).squeeze(-1)
        with pyro.plate("n", 6):
            pyro.sample("y", dist.Normal(mean, 0.1), obs=d(TIMES))


@dataclass
class Case:
    model: Callable[[], None] | type
    path: str = "vmap"
    rewritten: bool = False


CASES = [
    Case(schools_in_a_plate),
    Case(loop_over_groups_with_scalar_sites),
    Case(sequential_plate),
    Case(gaussian_process),
    Case(state_space_by_a_loop_over_time),
    Case(dirichlet_multinomial_and_correlations, rewritten=True),
    Case(wrong_in_a_particle_plate),
    Case(wrong_in_a_particle_plate_without_vmap, "loop"),
    Case(only_right_in_a_particle_plate, "plate"),
    Case(python_branch, "loop"),
    Case(branch_on_an_item, "loop"),
    Case(writes_into_a_tensor, rewritten=True),
    Case(improper_priors),
    Case(mask_scale_and_factor),
    Case(many_supports),
    Case(ordered_logistic, rewritten=True),
    Case(subsampled_globals),
    Case(Network),
]


def single_log_prob(joint: LogJoint, model: Callable[[], None], z: Tensor) -> Tensor:
    """Pyro's own log-density of one draw, and the Jacobians of its transforms."""
    total = z.new_zeros(())
    values = {}
    for site in joint.structure.sites:
        unconstrained = z[site.start : site.stop].reshape(site.unconstrained_shape)
        values[site.name] = site.transform(unconstrained)
        total = total + site.transform.log_abs_det_jacobian(unconstrained, values[site.name]).sum()
    with pyro.validation_enabled(False):
        return total + poutine.trace(poutine.condition(model, data=values)).get_trace().log_prob_sum()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model.__name__)
def test_equals_pyros_log_prob_of_single_draws(case: Case) -> None:
    model = case.model() if isinstance(case.model, type) else case.model
    joint = LogJoint(model)
    assert (joint.path, joint.rewritten) == (case.path, case.rewritten), joint.reasons
    z = torch.randn(7, joint.structure.dim, requires_grad=True)
    found = joint(z)
    expected = torch.stack([single_log_prob(joint, model, row) for row in z])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), z, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-7)
    assert joint(z[:1]).shape == (1,)
    assert joint.reasons[-1].startswith(case.path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model.__name__)
def test_likelihood_and_deterministic_sites_equal_single_runs(case: Case) -> None:
    model = case.model() if isinstance(case.model, type) else case.model
    joint = LogJoint(model)
    z = torch.randn(5, joint.structure.dim)
    values = joint.constrained(z)
    likelihood = joint.log_likelihood(z)
    assert set(values) == {site.name for site in joint.structure.sites} | set(joint.structure.deterministic)
    assert set(likelihood) == set(joint.structure.observed)
    for i in range(5):
        given = {site.name: values[site.name][i] for site in joint.structure.sites}
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(model, data=given)).get_trace()
            trace.compute_log_prob()
        for name in joint.structure.deterministic:
            torch.testing.assert_close(values[name][i], trace.nodes[name]["value"])
        for name in likelihood:
            node = trace.nodes[name]
            log_prob = node["unscaled_log_prob"]
            expected = log_prob if node["mask"] is None else torch.where(node["mask"], log_prob, torch.zeros(()))
            torch.testing.assert_close(likelihood[name][i], expected)


def test_a_tensor_made_of_tensors_keeps_its_gradient() -> None:
    def written_well() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, s), obs=torch.tensor(1.0))

    with warnings.catch_warnings(action="ignore"):  # torch warns of it once in a process
        careless = LogJoint(tensor_of_tensors)
    assert (careless.path, careless.rewritten) == ("vmap", True)
    z = torch.randn(6, 2, requires_grad=True)
    for found, expected in zip(
        torch.autograd.grad(careless(z).sum(), z), torch.autograd.grad(LogJoint(written_well)(z).sum(), z), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_an_item_used_as_a_number_is_refused_by_site() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        nu = pyro.sample("nu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu.detach().item(), 1.0), obs=torch.tensor(1.0))
        pyro.sample("x", dist.Normal(nu, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"depends on latent sites \['mu'\] in a way that autograd does not see"):
        LogJoint(model)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_gradient_check_lets_float32_noise_pass(scale: float) -> None:
    data = scale * torch.randn(2000, dtype=torch.float32)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=torch.float32), 1.0))
        s = pyro.sample("s", dist.LogNormal(torch.tensor(0.0, dtype=torch.float32), 1.0))
        with pyro.plate("n", 2000):
            pyro.sample("y", dist.Normal(mu, s), obs=data)

    assert LogJoint(model).path == "vmap"


def test_a_silently_wrong_particle_plate_is_refused() -> None:
    with pytest.raises(ValueError, match="path 'plate' does not serve this model.*single draws at site 'y'"):
        LogJoint(wrong_in_a_particle_plate, path="plate")
    reasons = LogJoint(wrong_in_a_particle_plate_without_vmap).reasons
    assert any(reason.startswith("plate: differs from single draws at site 'y'") for reason in reasons)


def test_a_small_error_does_not_hide_in_a_large_sum() -> None:
    def model() -> None:
        with pyro.plate("n", 4):
            th = pyro.sample("th", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(th - th.mean(), 1.0), obs=d(ONE))
            pyro.factor("large", torch.tensor(1e14))

    with pytest.raises(ValueError, match="at site 'y'"):
        LogJoint(model, path="plate")


@pytest.mark.parametrize("path", ["vmap", "plate", "loop"])
def test_every_path_that_serves_gives_the_same(path: str) -> None:
    joint = LogJoint(schools_in_a_plate, path=path)
    assert joint.path == path
    z = torch.randn(5, 10)
    torch.testing.assert_close(joint(z), LogJoint(schools_in_a_plate)(z))
    torch.testing.assert_close(joint.constrained(z)["theta"], LogJoint(schools_in_a_plate).constrained(z)["theta"])


def test_gradient_flows_to_parameters_of_the_model() -> None:
    def model() -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(0.0, scale))

    joint = LogJoint(model)
    assert joint.structure.param_names == ("scale",)
    (raw,) = pyro.get_param_store()._params.values()
    z = torch.tensor([[1.0], [3.0]])
    (gradient,) = torch.autograd.grad(joint(z).sum(), raw)
    # d/d log s of -log s - z^2 / (2 s^2)
    torch.testing.assert_close(gradient, (-1 + z**2 / 4).sum())


def test_random_numbers_that_are_no_sites_are_refused() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + torch.randn(()), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="draws random numbers that are no sample sites.*at site 'y'"):
        LogJoint(model)


def test_random_numbers_are_found_beside_a_random_minibatch() -> None:
    def honest() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 6, subsample_size=2) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=d(TIMES)[i])

    def noisy() -> None:
        honest()
        pyro.factor("noise", torch.randn(()))

    assert LogJoint(honest).path == "vmap"
    with pytest.raises(ValueError, match="at site 'noise'"):
        LogJoint(noisy)


def test_minibatches_are_unbiased() -> None:
    def model(size: int | None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 6, subsample_size=size) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=d(TIMES)[i])

    z = torch.randn(2, 1)
    joint = LogJoint(model, (2,))
    draws = torch.stack([joint(z) for _ in range(400)])
    # Each mean lies within 5 standard errors but once in 2 million.
    error = (draws.mean(0) - LogJoint(model, (None,))(z)).abs() / (draws.std(0) / 20)
    assert (draws.std(0) > 0).all()
    assert (error < 5).all()


def test_data_that_are_missing_leave_the_posterior_of_the_rest_as_it_is() -> None:
    kept = torch.tensor([True, False, True, True])
    data = torch.tensor([1.0, torch.nan, 2.0, 0.0])

    def missing() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 4):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=data, obs_mask=kept)

    def without() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=data[kept])

    joint, complete = LogJoint(missing), LogJoint(without)
    assert joint.structure.imputed == {"y_unobserved"}
    grid = torch.linspace(-12.0, 12.0, 61)
    z = torch.randn(3, 5)
    marginal = joint(z)
    for j in range(4):  # integrate the imputed entries out, which factorise given mu
        mu = z[:, :1]
        normal = dist.Normal(mu, 1.0)
        marginal = marginal - normal.log_prob(z[:, 1 + j : 2 + j])[:, 0]
        torch.testing.assert_close(torch.trapezoid(normal.log_prob(grid).exp(), grid), torch.ones(3))
    torch.testing.assert_close(marginal, complete(z[:, :1]))
    z.requires_grad_()
    assert torch.isfinite(torch.autograd.grad(joint(z).sum(), z)[0]).all()


def test_a_covariance_without_factor_costs_one_particle_not_all() -> None:
    def model() -> None:
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        covariance = torch.stack([torch.stack([torch.ones(()), rho]), torch.stack([rho, torch.ones(())])])
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=covariance), obs=torch.ones(2))

    joint = LogJoint(model)
    z = torch.tensor([[0.5], [2.0], [-0.5]], requires_grad=True)
    found = joint(z)
    assert torch.isnan(found).tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], joint(z[[0, 2]]))
    (gradient,) = torch.autograd.grad(found[[0, 2]].sum(), z)
    assert torch.isfinite(gradient[[0, 2]]).all()
    assert joint.nonfinite_sites(z) == {"rho": 0, "y": 1}
    assert torch.isnan(joint.log_likelihood(z)["y"]).tolist() == [False, True, False]


def test_minus_infinity_is_returned_and_its_site_named() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Uniform(torch.zeros(()), torch.exp(x)), obs=torch.tensor(0.5))

    joint = LogJoint(model)
    z = torch.tensor([[0.0], [-3.0], [-4.0]])
    assert torch.isneginf(joint(z)).tolist() == [False, True, True]
    assert joint.nonfinite_sites(z) == {"x": 0, "y": 2}


def test_latents_that_change_between_calls_are_refused_by_name() -> None:
    count = [2]

    def model() -> None:
        for j in range(count[0]):
            pyro.sample(f"x_{j}", dist.Normal(0.0, 1.0))

    joint = LogJoint(model)
    count[0] = 3
    with pytest.raises(ValueError, match="'x_2' was not there when the model was read"):
        joint(torch.zeros(4, 2))
    count[0] = 1
    with pytest.raises(ValueError, match=r"latent sites \['x_1'\] were there"):
        joint(torch.zeros(4, 2))


def test_latents_of_another_shape_are_refused_by_name() -> None:
    size = [2]

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(size[0]), 1.0).to_event(1))

    joint = LogJoint(model)
    size[0] = 1
    with pytest.raises(ValueError, match=r"'x' had shape \(2,\) when the model was read and has \(1,\) now"):
        joint(torch.zeros(4, 2))


@pytest.mark.parametrize("shape", [(2,), (4, 3), (1, 4, 2)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    joint = LogJoint(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
    with pytest.raises(ValueError, match=r"z must have shape \(N, 2\)"):
        joint(torch.zeros(shape))


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(ValueError, match="path must be one of"):
        LogJoint(schools_in_a_plate, path="scan")


def test_setting_up_leaves_generators_validation_and_outer_handlers_alone() -> None:
    before = torch.random.get_rng_state()
    validated = dist.Normal(0.0, 1.0)._validate_args
    with poutine.trace() as outer:
        joint = LogJoint(schools_in_a_plate)
        joint(torch.zeros(2, 10))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert dist.Normal(0.0, 1.0)._validate_args == validated
    assert not [name for name in outer.trace.nodes if name in ("mu", "tau", "y")]


def test_validation_is_put_back_when_the_model_raises() -> None:
    raising = [False]

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))
        if raising[0]:
            raise RuntimeError("broken")

    joint = LogJoint(model)
    raising[0] = True
    with pyro.validation_enabled(True):
        assert joint(torch.zeros(2, 1)).isnan().all() and joint.raised == {"RuntimeError: broken": 2}
        with pytest.raises(ValueError):
            dist.Normal(0.0, -1.0)


def test_arguments_of_the_model_are_passed_on() -> None:
    def model(y: Tensor, *, scale: float) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    joint = LogJoint(model, (torch.tensor(2.0),), {"scale": 3.0})
    expected = dist.Normal(0.0, 3.0).log_prob(torch.zeros(2)) + dist.Normal(0.0, 1.0).log_prob(torch.tensor(2.0))
    torch.testing.assert_close(joint(torch.zeros(2, 1)), expected)
    assert joint.structure.dim == read_model(model, (torch.tensor(2.0),), {"scale": 3.0}).dim


# Enumerated sites

DATA = torch.tensor([-1.0, 0.3, 2.0, 2.5, -0.7])


def mixture(scale: float = 1.0) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("n", 5), poutine.scale(scale=scale):
        k = pyro.sample("k", dist.Categorical(w), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(locs[k], 1.0), obs=d(DATA))


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("path", ["vmap", "loop"])
def test_a_mixture_sums_its_components(path: str, scale: float) -> None:
    joint = LogJoint(mixture, (scale,), path=path)
    assert joint.structure.enumerated == ("k",)
    z = torch.randn(4, 3)
    values, log_det = joint.latents.constrain(z)
    parts = values["w"][:, None].log() + dist.Normal(values["locs"][:, None], 1.0).log_prob(d(DATA)[:, None])
    expected = (
        dist.Dirichlet(torch.ones(2)).log_prob(values["w"])
        + dist.Normal(0.0, 3.0).log_prob(values["locs"]).sum(-1)
        + scale * parts.logsumexp(-1).sum(-1)
        + log_det
    )
    torch.testing.assert_close(joint(z), expected)


def test_an_enumerated_markov_chain_equals_the_forward_algorithm() -> None:
    def model() -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        transition = torch.stack([torch.stack([p, 1 - p]), torch.stack([1 - p, p])])
        x: Any = 0
        for t in pyro.markov(range(6)):
            x = pyro.sample(f"x_{t}", dist.Categorical(transition[x]), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Normal(locs[x], 1.0), obs=d(TIMES)[t])

    joint = LogJoint(model)
    assert joint.path == "vmap"
    z = torch.randn(3, 3, requires_grad=True)
    values, log_det = joint.latents.constrain(z)
    total = log_det + dist.Beta(2.0, 2.0).log_prob(values["p"]) + dist.Normal(0.0, 3.0).log_prob(values["locs"]).sum(-1)
    p = values["p"]
    transition = torch.stack([torch.stack([p, 1 - p], -1), torch.stack([1 - p, p], -1)], -2).log()
    state = transition[:, 0]
    for t in range(6):
        if t:
            state = (state[:, :, None] + transition).logsumexp(-2)
        state = state + dist.Normal(values["locs"], 1.0).log_prob(d(TIMES)[t])
    expected = total + state.logsumexp(-1)
    torch.testing.assert_close(joint(z), expected)
    torch.testing.assert_close(torch.autograd.grad(joint(z).sum(), z)[0], torch.autograd.grad(expected.sum(), z)[0])


def test_an_enumerated_global_beside_a_plate() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("n", 5):
            pyro.sample("y", dist.Normal(mu * k, 1.0), obs=d(DATA))

    joint = LogJoint(model)
    z = torch.randn(4, 1)
    outcomes = [
        torch.tensor(weight).log() + dist.Normal(z * k, 1.0).log_prob(d(DATA)).sum(-1) for k, weight in ((0, 0.7), (1, 0.3))
    ]
    expected = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + torch.stack(outcomes).logsumexp(0)
    torch.testing.assert_close(joint(z), expected)


def test_impossible_states_have_no_nan_in_value_or_gradient() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.0, 1.0])), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu * k, 1.0), obs=torch.tensor(0.5))

    joint = LogJoint(model)
    z = torch.randn(4, 1, requires_grad=True)
    expected = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + dist.Normal(z[:, 0], 1.0).log_prob(torch.tensor(0.5))
    torch.testing.assert_close(joint(z), expected)
    torch.testing.assert_close(torch.autograd.grad(joint(z).sum(), z)[0], torch.autograd.grad(expected.sum(), z)[0])
    assert joint.nonfinite_sites(z) == {"mu": 0, "k": 0, "y": 0}


def test_missing_data_in_a_mixture() -> None:
    data = torch.tensor([-1.0, torch.nan, 2.0])

    def model(y: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("n", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            with poutine.mask(mask=~torch.isnan(y)):
                pyro.sample("y", dist.Normal(locs[k.long()], 1.0), obs=y)

    z = torch.randn(4, 2, requires_grad=True)
    found, expected = LogJoint(model, (data,))(z), LogJoint(model, (data[[0, 2]],))(z)
    torch.testing.assert_close(found, expected)
    assert torch.isfinite(torch.autograd.grad(found.sum(), z)[0]).all()


def test_predictive_of_pyro_and_constrained_agree() -> None:
    joint = LogJoint(schools_in_a_plate)
    values = joint.constrained(torch.randn(4, 10))
    given = {site.name: values[site.name] for site in joint.structure.sites}
    theirs = Predictive(schools_in_a_plate, posterior_samples=given, return_sites=["theta"])()["theta"]
    torch.testing.assert_close(values["theta"], theirs.reshape(4, 8))


@pytest.mark.parametrize("path", ["vmap", "plate", "loop"])
def test_no_tensor_is_made_on_the_default_device(path):
    # every constant of this model is a tensor: Pyro itself makes numbers into tensors on the default device
    zero, one, five = torch.zeros(()), torch.ones(()), torch.full((), 5.0)
    effects, errors = d(EFFECTS), d(ERRORS)

    def model():
        mu = pyro.sample("mu", dist.Normal(zero, five))
        tau = pyro.sample("tau", dist.LogNormal(zero, one))
        with pyro.plate("school", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, errors), obs=effects)

    joint = LogJoint(model, path=path)
    z = torch.randn(5, 10, requires_grad=True)
    expected = joint(z)
    with torch.device("meta"):
        found = joint(z)
        (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.device.type == "cpu"
    torch.testing.assert_close(found, expected)


def test_many_particles_on_much_data_are_taken_in_parts(monkeypatch):
    """The same values and gradients; and memory of one part, which whole particles together would exceed by far."""
    from pyro_flows.model import log_joint as module

    x = torch.randn(5000, 3)

    def model():
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=torch.ones(len(x)))

    joint = LogJoint(model)
    z = torch.randn(64, 3).requires_grad_()
    assert joint.particles_at_once > 64
    whole = joint(z)
    (gradient,) = torch.autograd.grad(whole.sum(), z)
    monkeypatch.setattr(module, "MEMORY", 24 * joint.structure.dtype.itemsize * 5000 * 10)
    assert joint.particles_at_once == 10
    sizes = []
    inner = joint._at_once
    monkeypatch.setattr(joint, "_at_once", lambda part: sizes.append(len(part)) or inner(part))
    parts = joint(z)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.sum(), z)[0], gradient)
    assert max(sizes) == 10 and sum(sizes) == 2 * 64  # once for the values, and once more for the gradient
    with torch.no_grad():
        torch.testing.assert_close(joint(z), whole)


# A model that raises sometimes


def test_a_particle_at_which_the_model_raises_does_not_lose_the_others():
    density = LogJoint(raises_above(2.5), (torch.tensor(0.3),))
    z = torch.tensor([[0.0], [3.0], [1.0]], requires_grad=True)
    value = density(z)
    assert value.isnan().tolist() == [False, True, False]
    value[[0, 2]].sum().backward()
    assert z.grad[[0, 2]].isfinite().all()
    assert density.raised == {"ValueError: the solver did not converge": 1}
    assert density(torch.full((2, 1), 3.0, requires_grad=True)).isnan().all()
    (site,) = (name for name, count in density.nonfinite_sites(torch.full((1, 1), 3.0)).items() if count)
    assert "raised ValueError: the solver did not converge" in site


def test_a_model_that_raises_now_and_then_is_run_particle_by_particle_then():
    calls = iter(range(10**6))

    def shaky(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if next(calls) in bad:
            raise OSError("connection lost")
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    bad: set[int] = set()
    density = LogJoint(shaky, (torch.tensor(0.3),))
    assert density.path == "vmap"
    first = next(calls) + 1
    bad = {first, first + 2}  # the call for all, and the second of the particles one by one
    value = density(torch.zeros(3, 1))
    assert value.isnan().tolist() == [False, True, False]


def test_what_this_package_says_of_a_model_is_not_taken_for_its_error():
    def changing(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if float(x) < 2.5:
            pyro.sample("more", dist.Normal(x, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    density = LogJoint(changing, (torch.tensor(0.3),))
    with pytest.raises(ValueError, match="more"):
        density(torch.full((1, 2), 3.0))


@pytest.mark.parametrize("path", ["vmap", "plate", "loop"])
def test_what_is_read_of_particles_at_which_the_model_raises_is_not_a_number(path):
    table = torch.arange(10.0)

    def look_up(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("positive", x > 0)
        pyro.deterministic("entry", table[(2 * x + 4).long()] + 0 * x)
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    density = LogJoint(look_up, (torch.tensor(0.3),), path=path)
    z = torch.tensor([[0.0], [8.0], [1.0], [-1.0], [0.5]])  # the second has no entry
    bad = [False, True, False, False, False]
    assert density(z).isnan().tolist() == bad
    found = density.deterministics(z)
    assert found["positive"].isnan().tolist() == bad and found["positive"][[0, 2, 3]].tolist() == [0.0, 1.0, 0.0]
    assert found["entry"].isnan().tolist() == bad
    assert density.log_likelihood(z)["y"].isnan().tolist() == bad
    assert density.deterministics(z[1:2])["entry"].isnan().all()


def test_a_matrix_without_factor_beside_another_error():
    def both(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        factor = torch.linalg.cholesky(torch.eye(2) * (2 - x))
        entry = torch.zeros(10)[(x + 4).long()]
        pyro.sample("y", dist.Normal(x + entry + 0 * factor[0, 0], 1.0), obs=y)

    density = LogJoint(both, (torch.tensor(0.3),))
    assert density(torch.tensor([[0.0], [3.0], [-30.0]])).isnan().tolist() == [False, True, True]


def test_draws_of_priors_go_on_after_one_at_which_the_model_raises():
    density = LogJoint(raises_above(1.2, IndexError), (torch.tensor(0.3),))
    assert 40 < len(prior_points(density, 64)) < 64
    density(torch.linspace(1.3, 3.0, 50)[:, None])
    assert density.raised == {"IndexError: the solver did not converge": 50}


def test_dtypes_that_do_not_meet_are_named():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=x @ w).to_event(1), obs=y)

    x = torch.randn(5, 2)
    for arguments, names in (((x, torch.ones(5).long()), "float64, int64"), ((x.float(), torch.ones(5)), "float32, float64")):
        with pytest.raises(ValueError, match=f"the arguments of the model are {names}: give data and priors one floating dtype"):
            LogJoint(model, arguments)
