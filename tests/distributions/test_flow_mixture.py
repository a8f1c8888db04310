"""Mixtures of flows: densities, draws, components that Pyro enumerates, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import nn

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.distributions import FlowMixture, StudentTBase, flow_mixture
from pyro_flows.transforms import AffineTril, BatchNorm, Compose


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def shifted(loc):
    flow = flows.affine(2)
    with torch.no_grad():
        next(p for n, p in flow.named_parameters() if n.endswith("bias")).fill_(loc)
    return pf.FlowDistribution(flow)


def mixture(**options):
    made = FlowMixture([shifted(loc) for loc in (-4.0, 0.0, 5.0)], **options)
    with torch.no_grad():
        made.logits.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    return made


def exact(x):
    return torch.stack(
        [math.log(w) + dist.Normal(loc, 1.0).log_prob(x).sum(-1) for w, loc in ((0.2, -4.0), (0.5, 0.0), (0.3, 5.0))]
    ).logsumexp(0)


@pytest.mark.parametrize("learn", [True, False])
def test_density_draws_and_responsibilities_are_those_of_the_mixture(learn):
    """Shares of 20,000 draws within five standard errors."""
    made = mixture(learn_weights=learn)
    x = 4 * torch.randn(50, 2)
    torch.testing.assert_close(made.log_prob(x), exact(x))
    torch.testing.assert_close(made.responsibilities(x).sum(0), torch.ones(50))
    draws = made.sample((20_000,))
    nearest = (draws[:, :1] - torch.tensor([-4.0, 0.0, 5.0])).abs().argmin(-1)
    shares = torch.bincount(nearest, minlength=3) / 20_000
    assert (shares - torch.tensor([0.2, 0.5, 0.3])).abs().max() < 0.025  # 0.018 and what is nearer to another centre
    assert isinstance(made.logits, nn.Parameter) == learn


def test_batches_expand_and_contexts_condition():
    made = mixture()
    wide = made.expand((3, 4))
    assert wide.batch_shape == (3, 4) and wide.sample((5,)).shape == (5, 3, 4, 2) and wide.log_prob(torch.zeros(2)).shape == (3, 4)
    assert wide.logits is made.logits
    conditional = [pf.FlowDistribution(flows.real_nvp(2, 3)).condition(torch.randn(6, 3)) for _ in range(2)]
    assert FlowMixture(conditional).sample((7,)).shape == (7, 6, 2)


def test_learned_weights_are_trained_by_likelihood_and_have_no_reparametrised_draws():
    made = FlowMixture([shifted(-4.0), shifted(5.0)])
    data = torch.cat([torch.randn(300, 2) - 4, torch.randn(700, 2) + 5])
    optimiser = torch.optim.Adam([made.logits], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        (-made.log_prob(data).mean()).backward()
        optimiser.step()
    assert abs(made.weights[0].item() - 0.3) < 0.01
    with pytest.raises(ValueError, match="a mixture with learned weights, or of surjections, has no"):
        made.rsample()
    constant = FlowMixture([shifted(-4.0), shifted(5.0)], learn_weights=False)
    constant.rsample((10,)).sum().backward()
    assert any(p.grad is not None for p in constant.members.parameters())


def test_the_component_is_enumerated_in_a_model_with_plates():
    """The enumerated log joint is that of the mixture; a location of the data is learnt through it."""
    made = mixture()
    data = made.sample((200,)) + 1.5

    @pyro.infer.config_enumerate
    def model(y):
        pyro.module("mixture", made)
        move = pyro.sample("move", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", made.component)
            pyro.sample("y", made.given(k), obs=y - move)

    guide = AutoDelta(
        pyro.poutine.block(model, expose=["move"]),
        init_loc_fn=pyro.infer.autoguide.init_to_value(values={"move": torch.tensor(1.0)}),
    )
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    expected = dist.Normal(0.0, 10.0).log_prob(torch.tensor(1.0)) + made.log_prob(data - 1.0).sum()
    assert -elbo.loss(model, guide, data) == pytest.approx(expected.item(), rel=1e-4)
    before = made.logits.detach().clone()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(100):
        svi.step(data)
    assert abs(guide.median()["move"].item() - 1.5) < 0.3 and not torch.equal(before, made.logits)


def test_given_components_draw_and_score():
    made = mixture()
    k = torch.tensor([[0], [2]])
    some = made.given(k)
    draws = some.sample((1000,))
    assert draws.shape == (1000, 2, 1, 2)
    assert abs(draws[:, 0].mean() + 4) < 0.2 and abs(draws[:, 1].mean() - 5) < 0.2
    x = torch.randn(3, 2)
    expected = torch.stack([made.members[i].log_prob(x) for i in (0, 2)])
    torch.testing.assert_close(some.log_prob(x), expected)


def test_copies_dtypes_and_bad_input():
    made = mixture()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(other.log_prob(torch.ones(2)), made.log_prob(torch.ones(2)))
    assert mixture().double().log_prob(torch.ones(2).double()).dtype == torch.float64
    heavy = pf.FlowDistribution(flows.affine(2), StudentTBase(2))
    assert torch.isfinite(FlowMixture([heavy, shifted(0.0)]).log_prob(torch.full((2,), 1e3)))
    with pytest.raises(ValueError, match=r"members must be FlowDistributions, got \[\]"):
        FlowMixture([])
    with pytest.raises(ValueError, match="members must have one batch and event shape"):
        FlowMixture([shifted(0.0), pf.FlowDistribution(flows.affine(3))])


@pytest.mark.parametrize("objective", ["likelihood", "em"])
def test_members_that_start_alike_are_sent_apart(objective):
    """Two equal affine flows on two clusters: the true density has 0.69 nats more than one of them on each side knows."""
    torch.manual_seed(0)
    data = torch.cat([torch.randn(300, 2) - 4, torch.randn(200, 2) + 4])
    mixture = FlowMixture([pf.FlowDistribution(flows.affine(2)) for _ in range(2)])
    fit = pf.fit_density(mixture, data, objective=objective, max_epochs=60, lr=3e-2, batch_size=100, seed=0, progress=False)
    truth = -torch.log(torch.tensor(2 * torch.pi * torch.e)) + 0.6 * torch.tensor(0.6).log() + 0.4 * torch.tensor(0.4).log()
    assert float(fit.log_prob(data).mean()) > truth - 0.15
    assert ((mixture.weights.sort().values - torch.tensor([0.4, 0.6])).abs() < 0.1).all()


def many(count, dtype=torch.float64, **options):
    torch.manual_seed(0)
    made = [flows.real_nvp(2, num_layers=2, hidden_dims=(4,), **options).to(dtype) for _ in range(count)]
    for parameter in nn.ModuleList(made).parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return [pf.FlowDistribution(flow) for flow in made]


def one_by_one(made, value):
    return torch.stack([member.log_prob(value) for member in made.members])


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (0,)])
def test_members_that_are_alike_are_scored_at_once(shape, monkeypatch):
    """Among them some that are not, whose places are kept; values and gradients are those of one after another."""
    members = many(9)
    members[3:3] = many(1, log_scale_bound=1.0)
    members.append(pf.FlowDistribution(flows.get("naf")(2, num_layers=1).double()))
    made = FlowMixture(members)
    calls = []
    at_once = flow_mixture.log_probs_at_once
    monkeypatch.setattr(flow_mixture, "log_probs_at_once", lambda *given: calls.append(len(given[0])) or at_once(*given))
    x = torch.randn(*shape, 2, dtype=torch.float64, requires_grad=True)
    found, expected = made.member_log_probs(x), one_by_one(made, x)
    assert calls == [9]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    if x.numel():
        weights = torch.randn_like(found)
        tensors = [x, *made.members.parameters()]
        mine, theirs = (
            torch.autograd.grad((weights * terms).sum(), tensors, allow_unused=True, retain_graph=True)
            for terms in (found, expected)
        )
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None or not a.any()) if b is None else torch.allclose(a, b, atol=1e-10)


def test_what_is_known_of_members_does_not_outlive_them():
    made = FlowMixture(many(8))
    x = torch.randn(4, 2, dtype=torch.float64)
    before = made.log_prob(x)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), made.expand((4,))):
        assert torch.equal(other.log_prob(x), before)
    made.members[2] = many(1, log_scale_bound=1.0)[0]
    torch.testing.assert_close(made.member_log_probs(x), one_by_one(made, x), atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        for parameter in made.members[5].parameters():
            parameter += 0.1
    torch.testing.assert_close(made.member_log_probs(x), one_by_one(made, x), atol=1e-12, rtol=1e-12)
    with pytest.raises(ValueError, match="support"):
        FlowMixture(many(8), validate_args=True).log_prob(torch.full((2,), torch.nan, dtype=torch.float64))
    with torch.device("meta"):
        assert made.log_prob(x).device.type == "cpu"


def test_the_average_of_mixtures():
    one, other = mixture(), mixture(learn_weights=False)
    with torch.no_grad():
        other.logits.copy_(torch.tensor([0.0, 3.0, 1.0]))
    mean = FlowMixture.average([one, other])
    x = 4 * torch.randn(20, 2)
    torch.testing.assert_close(mean.log_prob(x).exp(), 0.5 * (one.log_prob(x).exp() + other.log_prob(x).exp()))
    assert isinstance(mean.logits, nn.Parameter) and mean.members[0] is one.members[0]
    assert FlowMixture.average([other, other]).has_rsample
    with pytest.raises(ValueError, match="mixtures must be a sequence"):
        FlowMixture.average([])
    with pytest.raises(ValueError, match="mixtures must be a sequence"):
        FlowMixture.average([one.members[0]])


@pytest.mark.parametrize("count", [7, 9])
def test_members_at_contexts_of_their_own(count):
    """Contexts that begin alike have gradient each, and may change."""
    flow = flows.real_nvp(2, context_dim=3, num_layers=2).double()
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    contexts = torch.zeros(count, 3, dtype=torch.float64, requires_grad=True)
    made = FlowMixture([pf.FlowDistribution(flow).condition(c) for c in contexts])
    x = torch.randn(20, 2, dtype=torch.float64)
    made.log_prob(x).sum().backward()
    lengths = contexts.grad.norm(dim=-1)
    torch.testing.assert_close(lengths, lengths[:1].expand(count))
    each = [torch.zeros(3, dtype=torch.float64) for _ in range(count)]
    made = FlowMixture([pf.FlowDistribution(flow).condition(c) for c in each])
    made.log_prob(x)
    for c in each:
        c.add_(torch.randn(3, dtype=torch.float64))
    torch.testing.assert_close(made.member_log_probs(x), one_by_one(made, x), atol=1e-12, rtol=1e-12)


def test_buffers_and_modes_of_members_are_their_own():
    def normed(count):
        torch.manual_seed(0)
        return FlowMixture([pf.FlowDistribution(Compose([AffineTril(2), BatchNorm(2).inv])) for _ in range(count)])

    x = 5 + 3 * torch.randn(200, 2)
    few, made = normed(3).train(), normed(9).train()
    for _ in range(20):
        few.log_prob(x), made.log_prob(x)
    for member in made.members:
        torch.testing.assert_close(member.transform.parts[1].transform.mean, few.members[0].transform.parts[1].transform.mean)
    made.members[0].eval()
    torch.testing.assert_close(made.member_log_probs(x)[0], made.members[0].log_prob(x))
    made.eval()
    torch.testing.assert_close(made.member_log_probs(x), one_by_one(made, x))
    made.members[4].transform = AffineTril(2).inv
    torch.testing.assert_close(made.member_log_probs(x), one_by_one(made, x))


def test_a_pass_that_changes_buffers_is_made_member_by_member():
    class Counts(AffineTril):
        def __init__(self, input_dim, context_dim=0):
            super().__init__(input_dim, context_dim)
            self.register_buffer("count", torch.zeros(()))

        def inverse_and_log_det(self, y, context=None):
            self.count.add_(1)
            return super().inverse_and_log_det(y, context)

    made = FlowMixture([pf.FlowDistribution(Counts(2)) for _ in range(9)])
    made.log_prob(torch.randn(5, 2))
    assert [int(member.transform.count) for member in made.members] == [1] * 9


def test_more_that_is_refused():
    one = mixture()
    for wrong in (torch.tensor(3), torch.tensor([-1]), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="component must"):
            one.given(wrong)
    with pytest.raises(ValueError, match="one dtype"):
        FlowMixture([shifted(0.0), pf.FlowDistribution(flows.affine(2).double())])
    with pytest.raises(ValueError, match="sequence of FlowMixtures, got FlowMixture"):
        FlowMixture.average(one)
