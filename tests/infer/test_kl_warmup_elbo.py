"""KL warm-up and free bits: equal to Pyro's bound where there are none, and to sums by hand where there are."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import kl_divergence

import pyro_flows as pf
from pyro_flows.guides.site_delta import SiteDelta
from pyro_flows.infer import KLWarmupELBO

SIZE, BATCH = 12, 4
DATA = torch.linspace(-1.0, 2.0, SIZE)


def model(batch=BATCH):
    """A global mean, local means in a subsampled plate, and one datum for each."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", SIZE, subsample_size=batch) as index:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=DATA[index])


def guide(batch=BATCH):
    loc = pyro.param("loc", torch.tensor(0.3))
    width = pyro.param("width", torch.tensor(0.7), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(loc, 0.4))
    with pyro.plate("data", SIZE, subsample_size=batch) as index:
        pyro.sample("z", dist.Normal(0.5 * DATA[index] + loc, width))


def evaluated(loss, model=model, guide=guide, seed=0):
    """Value and gradients at a seed."""
    pyro.set_rng_seed(seed)
    for parameter in pyro.get_param_store()._params.values():
        parameter.grad = None
    value = loss.loss_and_grads(model, guide)
    return value, {name: p.grad.clone() for name, p in pyro.get_param_store()._params.items() if p.grad is not None}


@torch.no_grad()
def parts(trace_of=model, guide_of=guide, seed=0):
    """Log-likelihood and the divergences of global and local latents, scaled, of the draw that a seed gives."""
    pyro.set_rng_seed(seed)
    q = poutine.trace(guide_of).get_trace()
    p = poutine.trace(poutine.replay(trace_of, trace=q)).get_trace()
    q.compute_log_prob()
    p.compute_log_prob()
    apart = {name: float(q.nodes[name]["log_prob_sum"] - p.nodes[name]["log_prob_sum"]) for name in ("mean", "z")}
    return float(p.nodes["x"]["log_prob_sum"]), apart["mean"], apart["z"]


@pytest.mark.parametrize(
    "options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}]
)
def test_without_warm_up_and_free_bits_it_is_trace_elbo(options):
    expected, expected_gradients = evaluated(Trace_ELBO(**options))
    found, gradients = evaluated(KLWarmupELBO(**options))
    assert found == pytest.approx(expected, rel=1e-6)
    assert set(gradients) == {"loc", "width"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-5, atol=1e-5)


def test_with_an_automatic_guide_it_is_trace_elbo_too():
    def full():
        return model(SIZE)

    automatic = pf.AutoFlow(full, flow="affine").setup()
    expected = evaluated(Trace_ELBO(), full, automatic)[0]
    assert evaluated(KLWarmupELBO(), full, automatic)[0] == pytest.approx(expected, rel=1e-6)


def test_the_weight_multiplies_the_divergence_of_all_latents():
    likelihood, of_mean, of_z = parts()
    for beta in (0.0, 0.5, 4.0):
        assert evaluated(KLWarmupELBO(beta=beta))[0] == pytest.approx(beta * (of_mean + of_z) - likelihood, rel=1e-5)


def test_free_bits_are_nats_per_element_of_the_full_plate():
    likelihood, of_mean, of_z = parts()
    assert 0.0 < of_z < 2 * SIZE
    few, many = of_z / SIZE / 2, of_z / SIZE * 2
    assert evaluated(KLWarmupELBO(free_bits=few))[0] == pytest.approx(of_mean + of_z - likelihood, rel=1e-5)
    assert evaluated(KLWarmupELBO(free_bits=many))[0] == pytest.approx(of_mean + 2 * of_z - likelihood, rel=1e-5)


def test_free_bits_look_at_the_average_over_particles_drawn_together_or_apart():
    free = 0.7
    divergences, rest = [], []
    for options in ({"num_particles": 50}, {"num_particles": 50, "vectorize_particles": True, "max_plate_nesting": 1}):
        loss = KLWarmupELBO(free_bits=100.0, **options)
        plain = Trace_ELBO(**options)
        rest.append(evaluated(loss)[0] - 100.0 * SIZE)
        divergences.append(evaluated(plain)[0] - rest[-1])
        expected = rest[-1] + max(free * SIZE, divergences[-1])
        assert evaluated(KLWarmupELBO(free_bits=free, **options))[0] == pytest.approx(expected, rel=1e-4)
    assert min(divergences) > 0


def test_below_its_free_bits_a_divergence_has_no_gradient():
    def local():
        with pyro.plate("data", SIZE, subsample_size=BATCH):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def local_guide():
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", SIZE, subsample_size=BATCH):
            pyro.sample("z", dist.Normal(loc, 1.0))

    value, gradients = evaluated(KLWarmupELBO(free_bits=1.0), local, local_guide)
    assert value == pytest.approx(SIZE)
    assert float(gradients["loc"]) == 0.0
    assert abs(float(evaluated(KLWarmupELBO(), local, local_guide)[1]["loc"])) > 0.1


def test_at_the_optimum_latents_carry_their_free_bits():
    # A weak signal: the posterior's divergence from the prior is 0.02 nats; free ones are taken up to their number. The divergence
    # settles below it by what the average over 2,000 elements is uncertain by, some hundredths.
    x = torch.randn(2000)

    def weak():
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.2 * z, 1.0), obs=x)

    def amortised():
        slope = pyro.param("slope", torch.tensor(0.1))
        width = pyro.param("width", torch.tensor(0.9), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, width))

    svi = SVI(weak, amortised, pyro.optim.Adam({"lr": 0.03}), KLWarmupELBO(free_bits=0.5))
    for _ in range(200):
        svi.step()
    q = dist.Normal(pyro.param("slope").detach() * x, pyro.param("width").detach())
    assert float(kl_divergence(q, dist.Normal(0.0, 1.0)).mean()) == pytest.approx(0.5, abs=0.12)


def test_each_plate_is_a_group_of_its_own():
    def two():
        with pyro.plate("outer", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 5):
                pyro.sample("b", dist.Normal(a, 1.0))

    def two_guide():
        with pyro.plate("outer", 3):
            pyro.sample("a", dist.Normal(torch.tensor(3.0), 1.0))
            with pyro.plate("inner", 5):
                pyro.sample("b", dist.Normal(torch.tensor(3.0), 1.0))

    pyro.set_rng_seed(0)
    q = poutine.trace(two_guide).get_trace()
    p = poutine.trace(poutine.replay(two, trace=q)).get_trace()
    q.compute_log_prob()
    p.compute_log_prob()
    of_a, of_b = (float(q.nodes[name]["log_prob_sum"] - p.nodes[name]["log_prob_sum"]) for name in "ab")
    free = 2.5
    assert of_a / 3 > free > of_b / 15
    assert evaluated(KLWarmupELBO(free_bits=free), two, two_guide)[0] == pytest.approx(of_a + 15 * free, rel=1e-5)


def handing_on(plate_of_flow, size=SIZE):
    """A model with positive latents in a plate, and a guide that draws them unconstrained and hands them on."""

    def positive():
        with pyro.plate("data", size):
            s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
            with pyro.plate("features", 2):
                pyro.sample("t", dist.LogNormal(s.log(), 1.0))

    def positive_guide():
        data = pyro.plate("data", size)
        aux = {"infer": {"is_auxiliary": True}}
        noise = dist.Normal(torch.full((size, 3), 1.0), 0.5).to_event(1)
        if plate_of_flow:
            with data:
                u = pyro.sample("aux", noise, **aux)
        else:
            u = pyro.sample("aux", noise.to_event(1), **aux)
        with data:
            pyro.sample("s", SiteDelta(u[:, 0].exp(), log_density=-u[:, 0]))
            with pyro.plate("features", 2):
                pyro.sample("t", SiteDelta(u[:, 1:].T.exp(), log_density=-u[:, 1:].T))

    return positive, positive_guide


def test_latents_that_are_handed_on_count_where_they_are_drawn():
    positive, positive_guide = handing_on(True)
    expected = evaluated(Trace_ELBO(), positive, positive_guide)[0]
    assert 0 < expected < 100.0 * SIZE
    assert evaluated(KLWarmupELBO(free_bits=0.01), positive, positive_guide)[0] == pytest.approx(expected, rel=1e-5)
    assert evaluated(KLWarmupELBO(free_bits=100.0), positive, positive_guide)[0] == pytest.approx(100.0 * SIZE, rel=1e-6)


def test_a_plate_without_a_density_of_its_own_is_refused_free_bits():
    positive, positive_guide = handing_on(False)
    expected = evaluated(Trace_ELBO(), positive, positive_guide)[0]
    assert evaluated(KLWarmupELBO(), positive, positive_guide)[0] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="draws the latents of plate 'data' outside of it"):
        evaluated(KLWarmupELBO(free_bits=0.1), positive, positive_guide)


@pytest.mark.filterwarnings("ignore:Found .* in guide but not model")  # Pyro's word on them
def test_deterministic_sites_are_no_latents():
    positive, positive_guide = handing_on(True)

    def noting():
        positive_guide()
        with pyro.plate("others", 3):
            pyro.deterministic("note", torch.ones(3))

    expected = evaluated(KLWarmupELBO(free_bits=0.01), positive, positive_guide)[0]
    assert evaluated(KLWarmupELBO(free_bits=0.01), positive, noting)[0] == pytest.approx(expected)


def test_masks_scales_and_loops_count_elements_as_they_weigh():
    masked = torch.arange(SIZE) < 5

    def local(loop=False, scale=1.0, mask=True):
        with poutine.scale(scale=scale):
            if loop:
                for i in pyro.plate("data", SIZE, subsample_size=BATCH):
                    pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            else:
                with pyro.plate("data", SIZE), poutine.mask(mask=mask):
                    pyro.sample("z", dist.Normal(0.0, 1.0))

    for options, count in (({"mask": masked}, 5), ({"scale": 0.5}, SIZE / 2), ({"loop": True}, SIZE)):

        def chosen(options=options):
            local(**options)

        assert evaluated(KLWarmupELBO(free_bits=2.0), chosen, chosen)[0] == pytest.approx(2.0 * count), options


def test_training_steps_warm_up_and_evaluation_does_not():
    loss = KLWarmupELBO(4, start=0.2, beta=1.0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    weights = []
    for _ in range(6):
        svi.evaluate_loss()
        weights.append(loss.weight)
        svi.step()
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    before = loss.steps
    with torch.no_grad():
        loss.differentiable_loss(model, guide)
    assert loss.steps == before
    loss.differentiable_loss(model, guide).backward()
    assert loss.steps == before + 1


def test_the_state_resumes_the_warm_up():
    first = KLWarmupELBO(10)
    for seed in range(3):
        evaluated(first, seed=seed)
    second = KLWarmupELBO(10)
    second.load_state_dict(first.state_dict())
    assert second.weight == pytest.approx(0.3)
    assert evaluated(second)[0] == evaluated(first)[0]


def test_nothing_is_made_on_the_default_device():
    positive, positive_guide = handing_on(True)
    loss = KLWarmupELBO(free_bits=0.1)
    traces = list(loss._get_traces(positive, positive_guide, (), {}))
    loss._get_traces = lambda *_: traces
    with torch.device("meta"):  # a tensor made without a device would be one, and its values would be lost
        assert loss.differentiable_loss(positive, positive_guide).device.type == "cpu"


def test_bad_input_is_named():
    for name in ("start", "beta", "free_bits"):
        for value in (-1.0, math.nan, math.inf, "1", True):
            with pytest.raises(ValueError, match=f"{name} must be a finite number that is not negative"):
                KLWarmupELBO(**{name: value})
    for value in (-1, 1.5, True):
        with pytest.raises(ValueError, match="warmup_steps must be an integer that is not negative"):
            KLWarmupELBO(value)
    with pytest.raises(ValueError, match="num_particles must be a positive integer"):
        KLWarmupELBO(num_particles=0)
    for state in ({}, {"steps": 1, "more": 2}, [1]):
        with pytest.raises(ValueError, match="state must be what state_dict"):
            KLWarmupELBO().load_state_dict(state)
    with pytest.raises(ValueError, match=r"state\['steps'\] must be an integer"):
        KLWarmupELBO().load_state_dict({"steps": -1})

    def discrete():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="site 'k' of the guide is not reparametrised"):
        evaluated(KLWarmupELBO(), discrete, discrete)
