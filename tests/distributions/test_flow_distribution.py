"""The distribution of a flow: its density, its draws, its shapes, and its life as a module."""

from __future__ import annotations

import copy
import io
import math
import pickle
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import constraints

from pyro_flows import flows
from pyro_flows.distributions import FlowDistribution, MixtureBase, StandardNormal, StudentTBase
from pyro_flows.transforms import Compose, FlowTransform, Permutation

sys.path.insert(0, str(Path(__file__).parent))
from toy_transforms import Cubic, Exp, Triangular

D, C = 3, 2


def triangular(context_dim=0, **kwargs) -> FlowDistribution:
    return FlowDistribution(Triangular(D, context_dim).double(), **kwargs)


def multivariate_normal(flow, context=None):
    return torch.distributions.MultivariateNormal(flow.location(context), scale_tril=flow.matrix)


# Density and draws


def test_affine_flow_of_a_normal_is_the_multivariate_normal():
    q = triangular()
    y = 3 * torch.randn(4, 5, D, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(y), multivariate_normal(q.transform).log_prob(y), rtol=0, atol=1e-10)


def test_conditional_affine_flow_is_the_normal_regression():
    q = triangular(C)
    context = torch.randn(5, C, dtype=torch.float64)
    y = torch.randn(4, 5, D, dtype=torch.float64)
    expected = multivariate_normal(q.transform, context).log_prob(y)
    torch.testing.assert_close(q.condition(context).log_prob(y), expected, rtol=0, atol=1e-10)


def test_rsample_and_log_prob_is_the_density_at_the_draws():
    q = triangular()
    value, log_prob = q.rsample_and_log_prob((7,))
    torch.testing.assert_close(log_prob, multivariate_normal(q.transform).log_prob(value), rtol=0, atol=1e-10)


@pytest.mark.parametrize("base", [StandardNormal, lambda shape: StudentTBase(*shape), lambda shape: MixtureBase(*shape)])
def test_density_integrates_to_one(base):
    q = FlowDistribution(Cubic(2), base((2,))).double()
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)  # at ±4 the noise is ±68
    density = q.log_prob(torch.cartesian_prod(axis, axis)).exp().detach()
    assert float(density.sum() * 0.01**2) == pytest.approx(1, abs=1e-3)


def test_draws_have_the_moments_of_the_density():
    """Nine z-scores, each beyond 5 once in 1.7 million: false alarm 5e-6."""
    q, n = triangular(), 100_000
    expected = multivariate_normal(q.transform)
    whitened = torch.linalg.solve_triangular(q.transform.matrix, (q.sample((n,)) - expected.loc).mT, upper=False)
    z_means = whitened.mean(1) * math.sqrt(n)
    products = torch.stack([whitened[i] * whitened[j] - float(i == j) for i in range(D) for j in range(i + 1)])
    z_products = products.mean(1) * math.sqrt(n) / products.std(1)
    assert float(torch.cat([z_means, z_products]).detach().abs().max()) < 5


def test_draws_follow_the_density_of_a_nonlinear_flow():
    """Kolmogorov-Smirnov on y + y³, which is normal: sqrt(n) D exceeds 2.6 once in 400,000."""
    n = 20_000
    noise = FlowDistribution(Cubic(1).double(), StandardNormal((1,), dtype=torch.float64)).sample((n,))[:, 0]
    uniform = torch.special.ndtr(noise + noise**3).sort().values
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((grid[1:] - uniform).max(), (uniform - grid[:-1]).max())
    assert float(distance) * math.sqrt(n) < 2.6


def test_rsample_carries_gradient_to_flow_context_and_base():
    base = StudentTBase(D).double()
    q = FlowDistribution(Triangular(D, C).double(), base)
    context = torch.randn(5, C, dtype=torch.float64, requires_grad=True)
    value = q.condition(context).rsample((7,))
    value.sum().backward()
    torch.testing.assert_close(q.transform.shift.grad, torch.full((D,), 35.0, dtype=torch.float64))
    torch.testing.assert_close(context.grad, 7 * q.transform.weight.detach().sum(0).expand(5, C))
    assert bool((base.raw_df.grad != 0).all())


def test_gradient_reaches_the_parameters_after_a_draw_without_gradient():
    q = triangular()
    value = q.sample((6,))
    q.log_prob(value).sum().backward()
    expected = torch.autograd.grad(multivariate_normal(q.transform).log_prob(value).sum(), q.transform.shift)[0]
    torch.testing.assert_close(q.transform.shift.grad, expected)


# Passes


def test_scoring_what_was_just_drawn_costs_no_pass():
    q = triangular()
    expected = q.log_prob(value := q.rsample((6,)))
    assert q.transform.passes == {"forward": 1, "inverse": 0}
    torch.testing.assert_close(q.log_prob(value.detach()), expected)
    assert q.transform.passes == {"forward": 1, "inverse": 1}


def test_scoring_takes_one_inverse_pass_and_drawing_with_density_one_forward_pass():
    q = triangular(C).condition(torch.zeros(4, C, dtype=torch.float64))
    passes = q.transform.transform.passes
    q.log_prob(torch.zeros(4, D, dtype=torch.float64))
    assert passes == {"forward": 0, "inverse": 1}
    value, log_prob = q.rsample_and_log_prob((2,))
    torch.testing.assert_close(q.log_prob(value), log_prob, rtol=0, atol=0)
    assert passes == {"forward": 1, "inverse": 1}


def test_density_is_fresh_after_an_optimiser_step():
    q = triangular()
    optimizer = torch.optim.SGD(q.parameters(), lr=0.1)
    value = q.sample((6,))
    (-q.log_prob(value).sum()).backward()
    optimizer.step()
    torch.testing.assert_close(q.log_prob(value), multivariate_normal(q.transform).log_prob(value))


def test_a_flow_distribution_is_a_base():
    inner, outer = Triangular(D, seed=1).double(), Triangular(D, seed=2).double()
    q = FlowDistribution(outer, FlowDistribution(inner))
    whole = FlowDistribution(Compose([inner, outer]))
    y = torch.randn(4, D, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(y), whole.log_prob(y))
    inner.passes.update(forward=0, inverse=0)
    value, log_prob = q.rsample_and_log_prob((3,))
    torch.testing.assert_close(q.log_prob(value), log_prob)
    assert inner.passes == {"forward": 1, "inverse": 0}
    torch.testing.assert_close(log_prob, whole.log_prob(value))
    assert q.expand((5,)).sample().std(0).min() > 0


# Shapes


@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 1)])
@pytest.mark.parametrize("sample_shape", [(), (3,), (3, 2)])
def test_shapes_with_expand_and_sample_shape(batch_shape, sample_shape):
    q = triangular().expand(batch_shape)
    value, log_prob = q.rsample_and_log_prob(sample_shape)
    assert q.batch_shape == batch_shape and q.event_shape == (D,)
    assert value.shape == (*sample_shape, *batch_shape, D) == q.sample(sample_shape).shape == q.shape(sample_shape)
    assert log_prob.shape == q.log_prob(value.clone()).shape == (*sample_shape, *batch_shape)
    assert q(sample_shape).shape == value.shape
    assert value.reshape(-1, D).unique(dim=0).shape[0] == math.prod((*sample_shape, *batch_shape))


def test_one_value_is_scored_under_every_row_of_the_batch():
    q = triangular(C)
    context = torch.randn(5, C, dtype=torch.float64)
    log_prob = q.condition(context).log_prob(torch.zeros(D, dtype=torch.float64))
    assert log_prob.shape == (5,) and log_prob.unique().numel() == 5
    assert triangular().expand((5,)).log_prob(torch.zeros(D, dtype=torch.float64)).shape == (5,)


@pytest.mark.parametrize("context_shape", [(), (5,), (2, 1)])
@pytest.mark.parametrize("base_shape", [(), (5,)])
def test_condition_broadcasts_the_batch_of_the_context_with_that_of_the_base(context_shape, base_shape):
    context = torch.randn(*context_shape, C, dtype=torch.float64)
    q = triangular(C).expand(base_shape).condition(context)
    assert q.batch_shape == torch.broadcast_shapes(context_shape, base_shape)
    assert q.sample((3,)).shape == (3, *q.batch_shape, D)
    assert q.expand((4, *q.batch_shape)).sample().shape == (4, *q.batch_shape, D)


def test_rows_of_a_context_have_noise_of_their_own():
    q = triangular(C).condition(torch.zeros(50, C, dtype=torch.float64))
    for draw in (q.sample(), q.rsample(), q.rsample_and_log_prob()[0], q.expand((2, 50)).sample()[0]):
        assert draw.unique(dim=0).shape[0] == 50


def test_condition_of_an_unconditional_distribution_is_itself():
    q = triangular()
    assert q.condition(torch.zeros(5, 7)) is q


def test_expand_and_condition_share_the_parameters():
    q = FlowDistribution(Triangular(D, C), StudentTBase(D))
    conditioned = q.expand((4,)).condition(torch.zeros(C)).expand((2, 4))
    assert {id(p) for p in conditioned.parameters()} == {id(p) for p in q.parameters()}
    assert len(list(q.parameters())) == 4


@pytest.mark.parametrize("batch_shape", [(4,), (1,), (5, 1), ()])
def test_expand_to_what_the_batch_shape_does_not_allow_is_refused(batch_shape):
    with pytest.raises(ValueError, match=r"\(5,\)"):
        triangular().expand((5,)).expand(batch_shape)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        triangular(C).condition(torch.zeros(5, C, dtype=torch.float64)).expand(batch_shape)


def test_to_event_mask_and_expand_by():
    q = triangular().expand((4,))
    value = q.sample()
    log_prob = q.log_prob(value)
    torch.testing.assert_close(q.to_event(1).log_prob(value), log_prob.sum())
    assert q.to_event(1).event_shape == (4, D)
    mask = torch.tensor([True, False, True, False])
    torch.testing.assert_close(q.mask(mask).log_prob(value), log_prob * mask)
    assert q.expand_by((6,)).batch_shape == (6, 4)
    assert isinstance(q.expand_by((6,)), FlowDistribution)


# Refusals


@pytest.mark.parametrize("use", ["sample", "rsample", "rsample_and_log_prob", "log_prob", "expand"])
def test_conditional_flow_without_context_is_refused(use):
    q = triangular(C)
    calls = {"log_prob": lambda: q.log_prob(torch.zeros(D, dtype=torch.float64)), "expand": lambda: q.expand((4,)).sample()}
    with pytest.raises(ValueError, match=r"context_dim=2.*condition\(context\)"):
        calls.get(use, lambda: getattr(q, use)())()


def test_context_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        triangular(C).condition(torch.zeros(5, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"does not broadcast with the batch shape \(4,\)"):
        triangular(C).expand((4,)).condition(torch.zeros(5, C, dtype=torch.float64))


def test_wrong_base_or_transform_is_refused():
    flow = Triangular(D)
    with pytest.raises(ValueError, match=r"base has event shape \(2,\) and the flow \(3,\)"):
        FlowDistribution(flow, StandardNormal((2,)))
    with pytest.raises(ValueError, match=r"event shape \(\).*to_event"):
        FlowDistribution(flow, dist.Normal(torch.zeros(D), 1.0))
    with pytest.raises(ValueError, match="rsample"):
        FlowDistribution(flow, dist.Poisson(torch.ones(D)).to_event(1))
    with pytest.raises(ValueError, match="base must be a distribution, got str"):
        FlowDistribution(flow, "normal")
    with pytest.raises(ValueError, match="transform must be a FlowTransform, got Linear"):
        FlowDistribution(nn.Linear(3, 3))


def test_a_transform_that_hides_a_batch_shape_is_refused_and_not_given_one_noise_for_all_rows():
    class Hidden(FlowTransform):
        def forward_and_log_det(self, x, context=None):
            y = x + torch.arange(4.0).unsqueeze(-1)
            return y, torch.zeros(y.shape[:-1])

        def inverse_and_log_det(self, y, context=None):
            return y, torch.zeros(y.shape[:-1])

    q = FlowDistribution(Hidden(D))
    for draw in (q.rsample, q.rsample_and_log_prob):
        with pytest.raises(ValueError, match="share their noise"):
            draw()


def test_values_are_validated_as_pyro_is_told():
    bad = torch.tensor([0.0, math.nan, 0.0], dtype=torch.float64)
    q = triangular()
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(bad)
    with pytest.raises(ValueError, match="event_shape"):
        q.log_prob(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="broadcastable"):
        q.expand((5,)).log_prob(torch.zeros(4, D, dtype=torch.float64))
    with pyro.validation_enabled(False):
        assert bool(q.log_prob(bad).isnan())
        with pytest.raises(ValueError, match="within the support"):
            triangular(validate_args=True).expand((5,)).log_prob(bad)
    assert bool(triangular(validate_args=False).expand((5,)).log_prob(bad).isnan().all())
    assert bool(triangular(C, validate_args=False).condition(torch.zeros(C, dtype=torch.float64)).log_prob(bad).isnan())


def test_a_value_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match="float32"):
        triangular().log_prob(torch.zeros(D))


def test_support_is_the_codomain_of_the_flow():
    q = FlowDistribution(Exp(2))
    assert q.support is Exp.codomain
    assert FlowDistribution(Triangular(2)).support is constraints.real_vector
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(torch.tensor([1.0, -1.0]))
    value = q.sample((100,))
    expected = dist.LogNormal(torch.zeros(2), 1.0).to_event(1).log_prob(value)
    torch.testing.assert_close(q.log_prob(value), expected)


@pytest.mark.parametrize("name", ["mean", "variance", "entropy"])
def test_moments_are_not_defined(name):
    with pytest.raises(NotImplementedError):
        value = getattr(triangular(), name)
        value()


# dtype and device


def test_default_base_follows_the_flow_to_another_dtype():
    flow = Triangular(D, C)
    q = FlowDistribution(flow)
    early = q.condition(torch.zeros(5, C, dtype=torch.float32)).expand((4, 5))
    assert early.sample().dtype == torch.float32
    flow.double()
    q = q.condition(torch.zeros(5, C, dtype=torch.float64))
    assert q.sample().dtype == torch.float64
    assert q.rsample_and_log_prob()[1].dtype == torch.float64
    flow.float()
    assert early.sample().dtype == torch.float32


def test_whole_distribution_moves_to_another_dtype():
    for base in (None, StudentTBase(D), MixtureBase(D), StandardNormal((D,))):
        q = FlowDistribution(Triangular(D), base).to(torch.float64)
        value, log_prob = q.rsample_and_log_prob((2,))
        assert value.dtype == log_prob.dtype == q.log_prob(value.detach()).dtype == torch.float64


def test_default_base_of_a_flow_without_parameters_moves_with_the_distribution():
    q = FlowDistribution(Permutation(torch.tensor([1, 0])))
    assert q.sample().dtype == torch.float32
    assert q.double().sample().dtype == torch.float64
    assert q.expand((3,)).sample().dtype == torch.float64


def test_nothing_is_made_on_the_default_device():
    context = torch.zeros(5, C)
    for base in (None, StudentTBase(D), MixtureBase(D), StandardNormal((D,))):
        q = FlowDistribution(Triangular(D, C), base)
        with torch.device("meta"):
            conditioned = q.condition(context).expand((2, 5))
            value = conditioned.sample()
            drawn, log_prob = conditioned.rsample_and_log_prob()
            scored = conditioned.log_prob(value)
            made_here = FlowDistribution(q.transform).condition(context).sample()
        assert {t.device.type for t in (value, drawn, log_prob, scored, made_here)} == {"cpu"}


# Module


def test_it_is_a_module_with_the_parameters_of_flow_and_base():
    q = FlowDistribution(Triangular(D), StudentTBase(D))
    names = {"transform.shift", "transform.lower", "transform.weight", "base.raw_df"}
    assert {name for name, _ in q.named_parameters()} == names == set(q.state_dict())
    assert "Triangular" in repr(q) and "StudentTBase" in repr(q)


@pytest.mark.parametrize("base", [None, StudentTBase, MixtureBase])
def test_state_dict_makes_another_distribution_the_same(base):
    def build(seed):
        torch.manual_seed(seed)
        return FlowDistribution(Triangular(D, seed=seed), base and base(D))

    old, new = build(1), build(2)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(0.1)
    new.load_state_dict(old.state_dict())
    value = torch.randn(4, D)
    torch.testing.assert_close(new.log_prob(value), old.log_prob(value), rtol=0, atol=0)


def copies():
    def saved(q):
        file = io.BytesIO()
        torch.save(q, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {"deepcopy": copy.deepcopy, "pickle": lambda q: pickle.loads(pickle.dumps(q)), "torch.save": saved}


@pytest.mark.parametrize("how", copies())
@pytest.mark.parametrize("base", [None, StudentTBase, MixtureBase])
def test_copies_draw_the_same_and_are_independent(how, base):
    q = FlowDistribution(Triangular(D, C), base and base(D), validate_args=False)
    q = q.condition(torch.zeros(5, C)).expand((2, 5))
    q.log_prob(q.rsample()).sum().backward()  # fills the cache with a graph
    new = copies()[how](q)
    torch.manual_seed(3)
    expected = q.sample()
    torch.manual_seed(3)
    value = new.sample()
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    torch.testing.assert_close(new.log_prob(value), q.log_prob(value), rtol=0, atol=0)
    assert new.batch_shape == (2, 5) and new._validate_args is False
    assert not {id(p) for p in new.parameters()} & {id(p) for p in q.parameters()}


@pytest.mark.parametrize("base", [None, StudentTBase, MixtureBase])
def test_it_is_pickled_and_copied_after_pyro_has_trained_it(base):
    q = FlowDistribution(Triangular(D), base and base(D))

    def guide():
        pyro.module("q", q)
        pyro.sample("z", q)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))

    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    value = q.sample()
    expected = q.log_prob(value)
    for make in copies().values():
        torch.testing.assert_close(make(q).log_prob(value), expected, rtol=0, atol=0)
        assert make(q.base).batch_shape == q.base.batch_shape
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    assert not torch.equal(q.log_prob(value), expected)


# Transformations of torch


def test_log_prob_under_vmap_and_compile():
    q = triangular()
    y = torch.randn(6, D, dtype=torch.float64)
    expected = q.log_prob(y)
    torch.testing.assert_close(torch.func.vmap(q.log_prob)(y), expected)
    compiled = torch.compile(lambda y: q.log_prob(y), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(y), expected)


def test_draws_with_density_compile():
    q = triangular()
    value, log_prob = torch.compile(lambda: q.rsample_and_log_prob((6,)), fullgraph=True, backend="eager")()
    torch.testing.assert_close(log_prob, q.log_prob(value))


@pytest.mark.parametrize("direction", ["log_prob", "rsample"])
def test_gradients_of_the_same_values_can_be_taken_twice_without_a_step_between(direction):
    """As when gradients of several losses are accumulated on the same data; Pyro raises on a graph that has been freed."""
    torch.manual_seed(0)
    q = FlowDistribution(flows.get("real_nvp")(2, num_layers=2))
    x = torch.randn(5, 2) if direction == "log_prob" else q.rsample((5,))
    first = torch.autograd.grad(q.log_prob(x).sum(), list(q.parameters()), retain_graph=direction == "rsample", allow_unused=True)
    second = torch.autograd.grad(q.log_prob(x).sum(), list(q.parameters()), allow_unused=True)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)
