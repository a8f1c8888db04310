"""The training loop: its gradients, its stop rule, and what it does when steps fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_flows import FlowDistribution, flows
from pyro_flows.distributions import MixtureBase, StudentTBase
from pyro_flows.infer.descent import Clip, Schedule, Step, _Progress, descend
from pyro_flows.infer.path_gradient import OBJECTIVES, factors, tempered
from pyro_flows.infer.traced_gradient import TracedGradient
from pyro_flows.infer.training import take_step, train


def gaussian(mean=0.0, sd=1.0):
    return lambda z: -0.5 * ((z - mean) / sd).square().sum(-1)


def step_of(q, log_density, count, alpha):
    """One step, and its draws."""
    parameters = list(q.parameters())
    gradient = TracedGradient(q, log_density, parameters)
    drawn = []
    return take_step(lambda *a: drawn.append(gradient(*a)) or drawn[0], q.base.rsample((count,)), alpha, parameters), drawn[0].z


def tempered_all(log_weights, alpha):
    return tempered(log_weights, all_of(log_weights), alpha)


def all_of(log_weights):
    return torch.ones_like(log_weights, dtype=torch.bool)


def path_log_prob(q, value):
    """The log-density at draws, and a surrogate that has the gradient of the path alone."""
    at = value.detach().requires_grad_()
    log_q = q.log_prob(at)
    (gradient,) = torch.autograd.grad(log_q.sum(), at)
    return log_q.detach(), (value * gradient).sum(-1)


def run(q, log_density, schedule=None, **kwargs):
    options = {"num_particles": 64, "max_steps": 60, "max_time": None, "progress": False, **kwargs}
    return train(q, log_density, schedule=schedule or Schedule(), **options)


@pytest.mark.parametrize("base", [None, StudentTBase, MixtureBase, lambda d: FlowDistribution(flows.affine(d).double())])
@pytest.mark.parametrize("flow", ["affine", "real_nvp", "nsf_coupling", "maf", "planar"])
def test_gradient_of_a_step_is_the_path_gradient(flow, base):
    torch.manual_seed(0)
    q = FlowDistribution(flows.get(flow)(3), base and base(3)).double()
    with torch.no_grad():
        for parameter in q.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    parameters = list(q.parameters())
    torch.manual_seed(1)
    z, log_q, score = q.rsample_with_score((20,))
    found = torch.autograd.grad((z * score).sum(), parameters, allow_unused=True)
    torch.manual_seed(1)
    value = q.rsample((20,))
    expected_log_q, path = path_log_prob(q, value)
    expected = torch.autograd.grad(path.sum(), parameters, allow_unused=True)
    torch.testing.assert_close(log_q, expected_log_q, rtol=1e-9, atol=1e-9)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_weighted_path_gradient_descends_the_alpha_divergence(alpha):
    # for normals of unit variance m apart E_q[w^a] = exp(-a (1 - a) m^2 / 2); the gradient of minus its logarithm over a (1 - a)
    # is m. The standard error from 400,000 draws is below 0.002: five of them, false alarm below 1e-6
    shift = 0.5
    q = FlowDistribution(flows.affine(1).double())
    with torch.no_grad():
        dict(q.transform.named_parameters())[_bias_name(q)].fill_(shift)
    torch.manual_seed(0)
    step_of(q, gaussian(), 400_000, alpha)
    gradient = dict(q.transform.named_parameters())[_bias_name(q)].grad
    assert float(gradient) == pytest.approx(shift, abs=0.01)


def _bias_name(q):
    (name,) = [name for name, _ in q.transform.named_parameters() if name.endswith("bias")]
    return name


def test_the_power_of_the_weights_falls_until_enough_draws_count():
    assert torch.equal(tempered_all(torch.tensor([0.0, 0.0, 0.0, 2000.0]), 0.5), torch.ones(4))
    halved = tempered_all(torch.tensor([0.0, 0.0, 0.0, 4.0], dtype=torch.float64), 0.5)
    assert float(halved[3] / halved[0]) == pytest.approx(math.exp(0.25 * 4.0))
    assert torch.equal(tempered_all(torch.tensor([0.0, math.inf]), 0.5), torch.ones(2))
    weights = tempered_all(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5)
    assert float(weights[1] / weights[0]) == pytest.approx(math.exp(0.5))
    assert float(weights.mean()) == pytest.approx(1.0)


def test_stop_rule_waits_while_the_loss_falls_and_ends_on_a_plateau():
    schedule = Schedule(window=10, patience=3, min_steps=40)
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(400, dtype=torch.float64)
    falling, flat = _Progress(schedule), _Progress(schedule)
    losses = [float(10 * math.exp(-0.005 * i) + noise[i]) for i in range(400)]
    assert not any(falling.update(losses[: i + 1]) for i in range(9, 300, 10))
    ended = [i for i in range(9, 400, 10) if flat.update([float(x) for x in noise[: i + 1]])]
    assert ended and 39 <= ended[0] <= 99


def test_a_descent_slower_than_its_noise_in_each_window_is_no_plateau():
    # Each window falls by 0.8 of the noise of its level, the ten of the stop rule by seven (none of 200 seeds ended).
    torch.manual_seed(0)
    noise = torch.randn(1000, dtype=torch.float64)
    stop = _Progress(Schedule(window=10, patience=10, min_steps=40))
    losses = [float(noise[i]) - 0.032 * i for i in range(1000)]
    assert not any(stop.update(losses[: i + 1]) for i in range(9, 1000, 10))


def test_the_stop_rule_does_not_care_for_the_default_device():
    losses = [float(x) for x in torch.randn(100, generator=torch.Generator().manual_seed(0))]
    with torch.device("meta"):
        stop = _Progress(Schedule(window=10, patience=3, min_steps=40))
        assert any(stop.update(losses[: i + 1]) for i in range(9, 100, 10))


def test_single_steps_from_a_far_tail_do_not_end_training():
    stop = _Progress(Schedule(window=10, patience=3, min_steps=40))
    losses = [1e6 if i % 10 == 3 else 100.0 - i for i in range(200)]
    assert not any(stop.update(losses[: i + 1]) for i in range(9, 200, 10))


def test_gradients_are_clipped_only_where_they_jump():
    clip, parameter = Clip(), torch.nn.Parameter(torch.zeros(2))
    for scale in (1e-6, 1e-6, 1.2e-6):
        parameter.grad = torch.full((2,), scale)
        assert clip([parameter])
        assert torch.equal(parameter.grad, torch.full((2,), scale))
    parameter.grad = torch.full((2,), 1.0)
    assert clip([parameter])
    assert float(parameter.grad.norm()) < 1e-5
    parameter.grad = torch.full((2,), math.nan)
    assert not clip([parameter])


def test_steps_that_are_not_finite_are_skipped_and_counted():
    calls = []

    def sometimes(z):
        calls.append(1)
        return gaussian()(z) * (math.nan if len(calls) % 10 == 0 else 1.0)

    q = FlowDistribution(flows.affine(2))
    done = run(q, sometimes, max_steps=60)
    assert done.skipped == 6
    assert len(done.losses) == 54
    assert all(torch.isfinite(p).all() for p in q.parameters())


def test_single_draws_without_a_gradient_are_left_out_and_counted():
    def overflowing(z):
        # Finite everywhere, with a gradient that is NaN beyond 2.5: about one draw in a hundred.
        edge = torch.where(z > 2.5, (2.5 - z).clamp_max(0.0).sqrt(), torch.zeros_like(z))
        return -0.5 * z.square().sum(-1) + 0.0 * torch.where(z > 2.5, torch.zeros_like(z), edge).sum(-1)

    q = FlowDistribution(flows.affine(1))
    done = run(q, overflowing, max_steps=60)
    assert done.skipped == 0
    assert 0 < done.dropped < 0.03 * 60 * 64 * 4
    assert len(done.losses) == 60
    assert abs(float(q.sample((4000,)).std()) - 1) < 0.1


def test_too_many_such_steps_end_with_an_error_that_says_where():
    with pytest.raises(ArithmeticError, match="not finite at the moon"):
        run(
            FlowDistribution(flows.affine(2)),
            lambda z: gaussian()(z) * math.nan,
            max_steps=200,
            explain=lambda z: " at the moon",
        )


def test_an_interrupt_keeps_what_was_learnt():
    def callback(step, loss):
        if step == 30:
            raise KeyboardInterrupt

    done = run(FlowDistribution(flows.affine(1)), gaussian(1.0), callback=callback)
    assert done.stop_reason == "interrupted"
    assert len(done.losses) >= 30


def test_training_ends_in_time():
    done = run(FlowDistribution(flows.affine(1)), gaussian(1.0), Schedule(min_steps=10**6), max_steps=10**6, max_time=1.0)
    assert done.stop_reason == "max_time"


def test_constant_weights_end_training_early():
    done = run(FlowDistribution(flows.affine(2)), gaussian(), max_steps=3000)
    assert done.stop_reason == "weights constant"
    assert len(done.losses) == 300  # 200 at least, and half as many of decay


def test_max_steps_leaves_a_third_for_the_decay():
    done = run(FlowDistribution(flows.real_nvp(2)), gaussian(5.0, 0.1), max_steps=90)
    assert (done.stop_reason, len(done.losses)) == ("max_steps", 90)


def test_a_relapse_near_the_end_is_undone():
    q = FlowDistribution(flows.affine(1))

    def spoil(step, loss):
        if step == 390:
            with torch.no_grad():
                for parameter in q.parameters():
                    parameter.fill_(50.0)

    torch.manual_seed(0)
    run(q, gaussian(1.0), Schedule(min_steps=10_000), max_steps=400, callback=spoil)
    assert float(q.sample((1000,)).mean()) == pytest.approx(1.0, abs=0.2)


def test_parameters_of_the_model_are_trained_and_restored_with_the_rest():
    centre = torch.nn.Parameter(torch.zeros(()))

    def spoil(step, loss):
        if step == 390:
            with torch.no_grad():
                centre.fill_(50.0)

    # evidence of centre: N(3 | centre, 1) after integrating z ~ N(centre, 1/2), 3 ~ N(z, 1/2): highest at 3
    torch.manual_seed(0)
    q = FlowDistribution(flows.affine(1))
    run(
        q,
        lambda z: -((z[..., 0] - centre).square() + (z[..., 0] - 3).square()),
        Schedule(lr=0.05, min_steps=10_000),
        max_steps=400,
        callback=spoil,
        extra_parameters=[centre],
    )
    assert centre.item() == pytest.approx(3.0, abs=0.2)


def test_a_fixed_seed_gives_the_same_losses():
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(run(FlowDistribution(flows.real_nvp(2)), gaussian(1.0), max_steps=20).losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("base", [None, StudentTBase, MixtureBase])
@pytest.mark.parametrize("flow", flows.names())
def test_a_step_makes_no_tensor_on_the_default_device(flow, base):
    q = FlowDistribution(flows.get(flow)(3), base and base(3))
    optimizer = torch.optim.Adam(q.parameters(), fused=True)
    for parameter in q.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its state is made as the optimiser's own default says
    with torch.device("meta"):
        optimizer.zero_grad(set_to_none=True)
        step, z = step_of(q, gaussian(), 8, 0.5)
        optimizer.step()
    assert z.device.type == "cpu"
    assert math.isfinite(step.loss) and math.isfinite(step.log_weight_sd)
    assert all(p.device.type == "cpu" and bool(torch.isfinite(p).all()) for p in q.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_finds_a_gaussian(objective):
    torch.manual_seed(0)
    q = FlowDistribution(flows.affine(2))
    done = train(
        q, lambda z: -0.5 * ((z - 1) / 0.5).square().sum(-1), num_particles=64, max_steps=600, max_time=None, schedule=Schedule(),
        progress=False, objective=objective,
    )  # fmt: skip
    assert done.skipped == 0
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob((4000,))
    log_weights = -0.5 * ((z - 1) / 0.5).square().sum(-1) - log_q
    # The bound of 64 particles is flat near its optimum, where a sd of 0.4 nats costs 0.001 nats of it.
    assert float(log_weights.std()) < (0.5 if objective == "iwae" else 0.05)


def test_factors_are_those_of_the_doubly_reparametrised_gradient():
    log_weights = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    share = log_weights.softmax(0)
    by_draw, of_model = factors("iwae", log_weights, all_of(log_weights), 0.0)
    assert torch.allclose(by_draw, 3 * share**2) and torch.allclose(of_model, 3 * share)
    half = (0.5 * log_weights).softmax(0)
    assert torch.allclose(factors("renyi", log_weights, all_of(log_weights), 0.0)[0], 3 * (0.5 * half + 0.5 * half**2))
    assert torch.equal(factors("forward_kl", log_weights, all_of(log_weights), 0.0)[0], torch.ones(3).double())
    assert torch.allclose(factors("forward_kl", log_weights, all_of(log_weights), 0.9)[0], 3 * share)


def test_objectives_where_a_gaussian_cannot_be_exact():
    # A Student t of 3 degrees of freedom: from the evidence bound, which cuts tails, to the divergence that widens them.
    target = torch.distributions.StudentT(3.0)
    widths = {}
    for objective in OBJECTIVES:
        torch.manual_seed(0)
        q = FlowDistribution(flows.affine(1))
        train(q, lambda z: target.log_prob(z).sum(-1), num_particles=256, max_steps=800, max_time=None, schedule=Schedule(alpha=0.0)
              if objective == "path" else Schedule(), progress=False, objective=objective)  # fmt: skip
        widths[objective] = float(q.sample((20_000,)).std())
    assert widths["path"] < widths["renyi"] - 0.03
    assert widths["path"] < widths["forward_kl"] - 0.05


def test_an_interrupt_at_the_very_end_keeps_what_was_trained():
    torch.manual_seed(0)
    q, steps = FlowDistribution(flows.affine(1)), 0

    def density(z):
        nonlocal steps
        steps += 1
        if not torch.is_grad_enabled():  # the comparison of states after the last step
            raise KeyboardInterrupt
        return -0.5 * (z - 3).square().sum(-1)

    done = run(q, density, max_steps=400)
    assert done.stop_reason == "interrupted" and len(done.losses) > 100
    assert float(q.sample((2000,)).mean()) > 1.5  # it begins at 0


def test_training_that_is_lost_goes_back_and_on_with_smaller_steps():
    """A step size that throws the parameter off a cliff: the loss of the best window comes back, and falls further."""
    parameter = nn.Parameter(torch.tensor([3.0]))
    module = nn.ParameterList([parameter])
    thrown = []

    def take(decaying):
        if take.count in (150, 330):
            with torch.no_grad():
                parameter.add_(1e4)
            thrown.append(take.count)
        take.count += 1
        loss = (parameter**2).sum() + 0.01 * torch.randn(())
        loss.backward()
        return Step(float(loss.detach()), math.nan, 1, 0, str)

    take.count = 0
    schedule = Schedule(lr=0.02, window=50, min_steps=500, decay=1.0, growth=1, alpha=0.0, exact_sd=0.0)
    options = {"max_steps": 3000, "max_time": None, "schedule": schedule, "progress": False, "parameters": [parameter]}
    done = descend(take, module, lambda states: None, **options)
    assert thrown == [150, 330] and done.undone >= 100
    assert done.steps == len(done.losses) + done.undone
    assert abs(parameter.item()) < 0.1 and done.losses[-1] < 0.1


def test_training_that_is_lost_again_and_again_ends():
    parameter = nn.Parameter(torch.tensor([3.0]))
    module = nn.ParameterList([parameter])

    def take(decaying):
        take.count += 1
        loss = (parameter**2).sum() * (1.0 if take.count <= 60 else math.nan)
        loss.backward()
        return Step(float(loss.detach()), math.nan, 1, 0, lambda: " somewhere")

    take.count = 0
    options = {"max_steps": 3000, "max_time": None, "schedule": Schedule(), "progress": False, "parameters": [parameter]}
    with pytest.raises(ArithmeticError, match="110 of .* steps had a loss or gradient that is not finite somewhere"):
        descend(take, module, lambda states: None, **options)
