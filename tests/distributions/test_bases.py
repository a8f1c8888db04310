"""Base distributions: density, draws, and the gradient of draws in the parameters."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_flows.distributions import FlowDistribution, GaussianMixture, MixtureBase, StandardNormal, StudentTBase
from pyro_flows.transforms import Permutation

D = 3
BASES = {
    "normal": lambda: StandardNormal((D,)),
    "student_t": lambda: StudentTBase(D, 4.0),
    "mixture": lambda: MixtureBase(D, 4),
    "gaussian_mixture": lambda: gaussian_mixture(D),
}


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def gaussian_mixture(dimension) -> GaussianMixture:
    """Two Gaussians that overlap."""
    factor = torch.eye(dimension) + 0.3 * torch.ones(dimension, dimension).tril(-1)
    loc = torch.stack([torch.zeros(dimension), torch.ones(dimension)])
    return GaussianMixture(torch.tensor([1.0, 3.0]), loc, torch.stack([factor, 2 * factor]))


def mixture(dimension=D, components=4, seed=0) -> MixtureBase:
    """A mixture whose components overlap and differ in everything."""
    torch.manual_seed(seed)
    base = MixtureBase(dimension, components).double()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return base


# What all bases share


@pytest.mark.parametrize("name", BASES)
def test_shapes_of_draws_and_densities(name):
    base = BASES[name]()
    for batch in ((), (4,), (2, 1)):
        expanded = base.expand(batch)
        value = expanded.rsample((3, 2))
        assert expanded.batch_shape == batch and expanded.event_shape == (D,)
        assert value.shape == (3, 2, *batch, D) and expanded.log_prob(value).shape == (3, 2, *batch)
        assert expanded.log_prob(torch.zeros(D)).shape == batch
        assert value.detach().reshape(-1, D).unique(dim=0).shape[0] == math.prod((3, 2, *batch))


@pytest.mark.parametrize("name", BASES)
def test_expanded_bases_share_parameters_and_dtype(name):
    base = BASES[name]()
    expanded = base.expand((5,))
    assert all(a is b for a, b in zip(base.parameters(), expanded.parameters(), strict=True))
    base.double()
    assert expanded.sample().dtype == torch.float64
    assert base.batch_shape == () and expanded.batch_shape == (5,)


@pytest.mark.parametrize("name", BASES)
def test_expand_to_what_does_not_fit_is_refused(name):
    for batch in ((4,), (), (5, 1)):
        with pytest.raises(ValueError, match=r"\(5,\).*expands"):
            BASES[name]().expand((5,)).expand(batch)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda base: pickle.loads(pickle.dumps(base))])
def test_copies_are_the_same_and_independent(name, how):
    base = BASES[name]().expand((2,))
    new = how(base)
    torch.manual_seed(1)
    value = base.sample((3,))
    torch.manual_seed(1)
    torch.testing.assert_close(new.sample((3,)), value, rtol=0, atol=0)
    torch.testing.assert_close(new.log_prob(value), base.log_prob(value), rtol=0, atol=0)
    assert not {id(p) for p in base.parameters()} & {id(p) for p in new.parameters()}


@pytest.mark.parametrize("name", BASES)
def test_nothing_is_made_on_the_default_device(name):
    base = BASES[name]()
    with torch.device("meta"):
        value = base.expand((2,)).rsample((3,))
        log_prob = base.log_prob(value)
    assert value.device.type == log_prob.device.type == "cpu"


@pytest.mark.parametrize("name", BASES)
def test_values_are_validated_as_pyro_is_told(name):
    base, bad = BASES[name](), torch.tensor([0.0, math.nan, 0.0])
    with pytest.raises(ValueError, match="within the support"):
        base.log_prob(bad)
    with pyro.validation_enabled(False):
        assert bool(base.log_prob(bad).isnan())


@pytest.mark.parametrize("name", BASES)
def test_density_and_draws_under_vmap_and_compile(name):
    base = BASES[name]().double()
    value = torch.randn(6, D, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(base.log_prob)(value), base.log_prob(value))
    compiled = torch.compile(lambda x: base.log_prob(x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(value), base.log_prob(value))
    drawn = torch.compile(lambda: base.rsample((7,)), fullgraph=True, backend="eager")()
    assert drawn.shape == (7, D) and drawn.requires_grad == (name not in ("normal", "gaussian_mixture"))


@pytest.mark.parametrize("name", BASES)
def test_density_integrates_to_one(name):
    base = {
        "normal": lambda: StandardNormal((2,)),
        "student_t": lambda: StudentTBase(2, 4.0),
        "mixture": lambda: mixture(2),
        "gaussian_mixture": lambda: gaussian_mixture(2),
    }
    axis = torch.linspace(-10, 10, 2001, dtype=torch.float64).sinh() / 10  # out to 1,100
    log_weight = (axis.square() + 0.01).log() / 2 + math.log(0.01)
    with torch.no_grad():
        log_density = base[name]().double().log_prob(torch.cartesian_prod(axis, axis)).reshape(2001, 2001)
    total = (log_density + log_weight + log_weight.unsqueeze(-1)).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-6)


# Mixture of Gaussians


def test_a_mixture_of_gaussians_is_that_of_torch():
    base = gaussian_mixture(D)
    components = dist.MultivariateNormal(base.loc, scale_tril=base.scale_tril)
    expected = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.25, 0.75])), components)
    value = torch.randn(50, D)
    torch.testing.assert_close(base.log_prob(value), expected.log_prob(value))
    torch.manual_seed(0)
    draws, component = base.sample_with_component((40_000,))
    assert float(component.float().mean()) == pytest.approx(0.75, abs=0.01)  # 4.6 standard errors
    torch.testing.assert_close(draws.mean(0), torch.full((D,), 0.75), atol=0.06, rtol=0)
    torch.testing.assert_close(draws[component == 1].T.cov(), 4 * base.scale_tril[0] @ base.scale_tril[0].T, atol=0.2, rtol=0)


def test_a_mixture_of_gaussians_is_reweighted_in_place():
    base = gaussian_mixture(1)
    base.reweight(torch.tensor([2.0, 2.0]))
    assert base.weights.tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="weights must be positive"):
        base.reweight(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\)"):
        base.reweight(torch.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loc": torch.zeros(2)}, "loc must have shape"),
        ({"scale_tril": torch.ones(2, 1)}, "scale_tril must have shape"),
        ({"scale_tril": torch.zeros(2, 1, 1)}, "positive finite diagonals"),
        ({"weights": torch.tensor([1.0, math.nan])}, "weights must be positive"),
    ],
)
def test_a_mixture_of_gaussians_refuses_what_does_not_fit(change, message):
    given = {"weights": torch.ones(2), "loc": torch.zeros(2, 1), "scale_tril": torch.ones(2, 1, 1), **change}
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**given)


# Standard normal


@pytest.mark.parametrize("event_shape", [(), (1,), (4,), (2, 3), (0,)])
def test_standard_normal_is_the_product_of_normals(event_shape):
    base = StandardNormal(event_shape, (5,))
    assert base.sample((6,)).shape == (6, 5, *event_shape)
    value = 3 * torch.randn(6, 5, *event_shape)
    expected = dist.Normal(torch.zeros(5, *event_shape), 1.0).to_event(len(event_shape)).log_prob(value)
    torch.testing.assert_close(base.log_prob(value), expected)


def test_standard_normal_is_where_it_is_told_to_be_and_has_no_state():
    base = StandardNormal((D,), dtype=torch.float64)
    assert base.sample().dtype == torch.float64 and base.to(torch.float32).sample().dtype == torch.float32
    assert not base.state_dict()


@pytest.mark.parametrize("shape", [3, (3.0,), (-1,), "3"])
def test_standard_normal_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match="event_shape must be a tuple"):
        StandardNormal(shape)
    with pytest.raises(ValueError, match="batch_shape must be a tuple"):
        StandardNormal((3,), shape)


# Student-t


@pytest.mark.parametrize("df", [1.01, 2.0, 30.0, 39.9, 40.1, 500.0, 9000.0])
def test_student_t_is_the_product_of_student_ts(df):
    base = StudentTBase(D, df).double()
    assert base.df.tolist() == pytest.approx([df] * D, rel=1e-5)
    value = torch.cat([torch.randn(4, D), 100 * torch.randn(4, D)]).double()
    expected = torch.distributions.StudentT(base.df).log_prob(value).sum(-1)
    torch.testing.assert_close(base.log_prob(value), expected, rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(base.log_prob(value).sum(), base.raw_df)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), base.raw_df)[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("df", [2.0, 30.0, 9000.0])
def test_student_t_keeps_its_digits_in_float32(df):
    """torch's own is 4e-3 wrong at 9,000 degrees of freedom."""
    base, value = StudentTBase(1, df), torch.linspace(-5, 5, 101).unsqueeze(-1)
    found, reference = base.log_prob(value), copy.deepcopy(base).double().log_prob(value.double())
    torch.testing.assert_close(found.double(), reference, rtol=2e-6, atol=2e-6)


def test_student_t_draws_follow_its_density():
    """Kolmogorov-Smirnov at 2 degrees of freedom, closed distribution function: sqrt(n) D exceeds 2.6 once in 400,000."""
    n = 20_000
    value = StudentTBase(1, 2.0).double().sample((n,))[:, 0]
    uniform = (0.5 + value / (2 * (2 + value.square()).sqrt())).sort().values
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((grid[1:] - uniform).max(), (uniform - grid[:-1]).max())
    assert float(distance) * math.sqrt(n) < 2.6


def test_student_t_draws_carry_gradient_to_the_degrees_of_freedom():
    r"""d E[x²]/dν = -2/(ν-2)² at ν = 12; a z-score beyond 5 once in 1.7 million."""
    base, n = StudentTBase(1, 12.0).double(), 200_000
    df = base.df
    gradient = [torch.autograd.grad(base.rsample((n // 100,)).square().mean(), base.raw_df)[0] for _ in range(100)]
    per_df = torch.cat(gradient) / torch.autograd.grad(df.sum(), base.raw_df)[0]
    z = (per_df.mean() + 2 / (12 - 2) ** 2) / (per_df.std() / 10)
    assert abs(float(z)) < 5 and float(per_df.mean()) < -0.01


def test_student_t_learns_the_tails_of_data():
    data = torch.distributions.StudentT(3.0).sample((5000, 1))
    data = torch.cat([data, torch.randn(5000, 1)], -1)
    base = StudentTBase(2)

    def model():
        pyro.module("base", base)
        with pyro.plate("n", 5000):
            pyro.sample("x", base, obs=data)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    heavy, light = base.df.tolist()
    assert 2.5 < heavy < 3.6 and light > 30


@pytest.mark.parametrize("df", [1.0, 0.5, -1.0, math.nan, math.inf, 2e4])
def test_student_t_with_wrong_degrees_of_freedom_is_refused(df):
    with pytest.raises(ValueError, match="df must lie between 1 and 10001"):
        StudentTBase(2, df)


@pytest.mark.parametrize("base", [StudentTBase, MixtureBase])
@pytest.mark.parametrize("input_dim", [0, -1, 2.0, True, "2"])
def test_wrong_dimension_is_refused(base, input_dim):
    with pytest.raises(ValueError, match="input_dim must be a positive integer"):
        base(input_dim)


# Mixture


def as_torch(base: MixtureBase):
    components = torch.distributions.Independent(torch.distributions.Normal(base.loc, base.scale), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=base.logits), components)


def test_mixture_is_the_mixture_of_normals():
    base = mixture()
    value = 3 * torch.randn(6, D, dtype=torch.float64)
    torch.testing.assert_close(base.log_prob(value), as_torch(base).log_prob(value), rtol=0, atol=1e-10)


@pytest.mark.parametrize("components", [1, 2, 8])
def test_mixture_starts_with_the_moments_of_the_standard_normal(components):
    start = as_torch(MixtureBase(5, components, spread=0.8).double())
    torch.testing.assert_close(start.mean, torch.zeros(5).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(start.variance, torch.ones(5).double(), atol=1e-6, rtol=0)


def test_mixture_of_one_is_the_standard_normal_and_components_start_apart():
    value = torch.randn(4, D)
    torch.testing.assert_close(MixtureBase(D, 1).log_prob(value), StandardNormal((D,)).log_prob(value))
    assert float(torch.nn.functional.pdist(MixtureBase(D, 5).loc.detach()).min()) > 0.1


def quantile(base: MixtureBase, uniform):
    """The draw whose conditional distribution functions are ``uniform``, one variable after the other by bisection."""
    value = torch.zeros(0, dtype=torch.float64)
    log_weight = base.logits.log_softmax(-1)
    for i in range(len(uniform)):
        normal = torch.distributions.Normal(base.loc[:, i], base.scale[:, i])
        low, high = double(-50.0), double(50.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = (log_weight.softmax(-1) * normal.cdf(middle)).sum() < uniform[i]
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        value = torch.cat([value, middle.reshape(1)])
        log_weight = log_weight + normal.log_prob(middle)
    return value


@torch.no_grad()
@pytest.mark.parametrize("name", ["logits", "loc", "log_scale"])
def test_gradient_of_mixture_draws_is_that_of_the_inverse_distribution_function(name):
    """Exact, by central differences of the quantile map at fixed uniforms."""
    base = mixture()
    parameter = getattr(base, name)
    uniform, direction, step = torch.rand(D, dtype=torch.float64), torch.randn_like(parameter), 1e-5
    value = quantile(base, uniform)
    parameter.add_(direction, alpha=step)
    up = quantile(base, uniform)
    parameter.add_(direction, alpha=-2 * step)
    expected = (up - quantile(base, uniform)) / (2 * step)
    parameter.add_(direction, alpha=step)
    with torch.enable_grad():
        drawn = base._with_gradient(value)
        found = [(torch.autograd.grad(drawn[i], parameter, retain_graph=True)[0] * direction).sum() for i in range(D)]
    torch.testing.assert_close(drawn, value, rtol=0, atol=0, check_stride=False)
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-6, atol=1e-7)


def expectations(base: MixtureBase, frequency):
    """E[x], E[x xᵀ] and E[cos(t·x)] in closed form."""
    weights, loc, scale = base.weights, base.loc, base.scale
    second = torch.einsum("k,ki,kj->ij", weights, loc, loc) + torch.diag_embed(weights @ scale.square())
    damping = (-0.5 * (scale * frequency).square().sum(-1)).exp()
    return torch.cat([weights @ loc, second.flatten(), (weights * damping * (loc @ frequency).cos()).sum().reshape(1)])


def statistics(value, frequency):
    second = (value.unsqueeze(-1) * value.unsqueeze(-2)).flatten(-2)
    return torch.cat([value, second, (value @ frequency).cos().unsqueeze(-1)], -1).mean(0)


def test_draws_of_a_mixture_and_their_gradient_have_the_right_expectation():
    """182 z-scores from 60 batches each, Student-t of 59 degrees of freedom: one beyond 6.5 once in 300,000 runs."""
    base, frequency, batches = mixture(2), double([0.7, -1.1]), 60
    parameters = list(base.parameters())

    def value_and_gradients(numbers):
        rows = [torch.autograd.grad(number, parameters, retain_graph=True) for number in numbers]
        return torch.cat([numbers.detach(), *(gradient.flatten() for row in rows for gradient in row)])

    expected = value_and_gradients(expectations(base, frequency))
    found = torch.stack([value_and_gradients(statistics(base.rsample((2000,)), frequency)) for _ in range(batches)])
    error = found.std(0) / math.sqrt(batches)
    used = error > 1e-12  # a derivative that is zero for every draw
    assert expected.numel() == 7 * (1 + 4 + 8 + 8)
    torch.testing.assert_close(found.mean(0)[~used], expected[~used])
    assert float(((found.mean(0) - expected)[used] / error[used]).abs().max()) < 6.5
    assert float(error[used].max()) < 0.1


def test_gradient_of_mixture_draws_keeps_its_digits_in_both_tails_in_float32():
    base = mixture(2).float()
    value = torch.tensor([[6.0, 0.0], [-6.0, 0.0], [0.0, 7.0], [6.0, -6.0], [5.0, 5.0], [-8.0, 8.0]])
    reference = copy.deepcopy(base).double()

    def jacobian(base, value):
        drawn = base._with_gradient(value)
        parameters = list(base.parameters())
        rows = [torch.autograd.grad(number, parameters, retain_graph=True) for number in drawn.flatten()]
        return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])

    torch.testing.assert_close(jacobian(base, value).double(), jacobian(reference, value.double()), rtol=1e-3, atol=1e-3)


def test_mixture_draws_without_gradient_where_none_is_asked_for():
    base = MixtureBase(D)
    assert not base.sample().requires_grad and base.rsample().requires_grad
    assert not base.requires_grad_(False).rsample().requires_grad


def test_mixture_as_a_guide_finds_the_weights_of_two_modes():
    """ELBO by draws alone: the weights 0.7 and 0.3 come only through the gradient of the draws in them."""
    target = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(double([0.7, 0.3])), torch.distributions.Normal(double([1.5, -1.5]), double(0.6))
    )
    torch.manual_seed(0)
    base = MixtureBase(1, 2, spread=0.8).double()
    q = FlowDistribution(Permutation(torch.tensor([0])), base)
    optimizer = torch.optim.Adam(q.parameters(), lr=0.03)
    for _ in range(600):
        value, log_prob = q.rsample_and_log_prob((128,))
        loss = (log_prob - target.log_prob(value[:, 0])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    order = base.loc[:, 0].argsort(descending=True)
    assert base.weights[order].tolist() == pytest.approx([0.7, 0.3], abs=0.05)
    assert base.loc[order, 0].tolist() == pytest.approx([1.5, -1.5], abs=0.1)
    assert abs(float(loss.detach())) < 0.05


@pytest.mark.parametrize("spread", [-0.1, 1.0, math.nan])
def test_mixture_with_a_wrong_spread_is_refused(spread):
    with pytest.raises(ValueError, match="spread must be at least 0 and below 1"):
        MixtureBase(2, spread=spread)


@pytest.mark.parametrize("number", [0, 2.0, True])
def test_mixture_with_a_wrong_number_of_components_is_refused(number):
    with pytest.raises(ValueError, match="num_components must be a positive integer"):
        MixtureBase(2, number)
