"""Evidence, ELBO, effective draws and PSIS of log-weights, against closed forms.

Statistical tests have fixed seeds; the false-alarm rate stated is that over seeds.
"""

from __future__ import annotations

import math

import pytest
import torch

import pyro_flows.diagnostics.arviz as bridge
from pyro_flows.diagnostics import elbo, importance_ess, log_evidence, psis, psis_resample, psislw

INF = math.inf


def normal_log_weights(size: int, shift: float, seed: int = 0) -> torch.Tensor:
    """Log-weights of draws of N(0, 1) for N(shift, 1), whose chi2 is exp(shift^2) - 1."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return shift * x - shift**2 / 2


def pareto_log_weights(shape: float, size: int = 10_000, seed: int = 0) -> torch.Tensor:
    """Logarithms of Pareto weights w = u^(-shape), whose tail index is the shape exactly."""
    u = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -shape * u.log()


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.7])
def test_share_of_effective_draws_is_that_of_the_chi2_of_two_normals(shift):
    # relative sd of the estimate at shift 0.7 and 100,000 draws is 0.6 %: 3 % is 5 sd, false alarms below 1e-6
    share = importance_ess(normal_log_weights(100_000, shift)) / 100_000
    assert share == pytest.approx(math.exp(-(shift**2)), rel=0.03)


def test_evidence_of_a_conjugate_normal_is_within_four_standard_errors():
    # theta ~ N(0, 1), y ~ N(theta, 1), y = 1.5: evidence N(y; 0, 2); q = N(0.6, 0.9) instead of N(0.75, 0.71). False alarms 6e-5
    y, generator = torch.tensor(1.5, dtype=torch.float64), torch.Generator().manual_seed(1)
    q = torch.distributions.Normal(torch.tensor(0.6, dtype=torch.float64), 0.9)
    theta = 0.6 + 0.9 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    prior = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    log_w = prior.log_prob(theta) + torch.distributions.Normal(theta, 1.0).log_prob(y) - q.log_prob(theta)
    exact = float(torch.distributions.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(y))
    value, mcse = log_evidence(log_w)
    assert 0 < mcse < 0.01
    assert abs(value - exact) < 4 * mcse
    bound, bound_mcse = elbo(log_w)
    posterior = torch.distributions.Normal(torch.tensor(0.75, dtype=torch.float64), math.sqrt(0.5))
    gap = float(torch.distributions.kl_divergence(q, posterior))
    assert abs(bound - (exact - gap)) < 4 * bound_mcse


def test_standard_errors_are_the_spread_over_repeats():
    # 400 repeats know an sd to 3.5 %: 15 % is 4.2 sd, false alarms 3e-5 each
    repeats = [normal_log_weights(1000, 0.5, seed) for seed in range(400)]
    for estimate in (log_evidence, elbo):
        values, errors = torch.tensor([estimate(w) for w in repeats]).T
        assert float(values.std()) == pytest.approx(float(errors.mean()), rel=0.15)


def test_float32_weights_of_large_magnitude_are_taken_in_float64():
    log_w = torch.full((1000,), -12_345.0)
    assert log_evidence(log_w) == (-12_345.0, 0.0)
    assert elbo(log_w) == (-12_345.0, 0.0)
    assert psis(log_w.requires_grad_()).log_weights.dtype is torch.float64


def test_weights_of_zero_count_as_zero():
    log_w = torch.tensor([0.0, 0.0, -INF, -INF])
    assert log_evidence(log_w)[0] == pytest.approx(-math.log(2))
    assert importance_ess(log_w) == pytest.approx(2)
    assert elbo(log_w)[0] == -INF
    nothing = torch.full((4,), -INF)
    assert log_evidence(nothing)[0] == -INF
    assert importance_ess(nothing) == 0


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8])
def test_khat_is_the_tail_index_of_pareto_weights(shape):
    # 300 tail draws, prior of 10 at 0.5: sd of k-hat at most 0.11 (worst at 0.8: (1 + k) / sqrt(300)); 0.4 is 3.8 sd, bias included
    assert psis(pareto_log_weights(shape)).khat == pytest.approx(shape, abs=0.4)
    many = torch.tensor([psis(pareto_log_weights(shape, seed=seed)).khat for seed in range(30)]).mean()
    assert float(many) == pytest.approx(shape, abs=0.08)  # sd 0.02, bias up to 0.01 from the prior


def test_the_sign_of_the_weights_is_not_flipped():
    # with the wrong sign k-hat of these reads about -1
    log_w = pareto_log_weights(0.63)
    result = psis(log_w)
    assert result.khat > 0.3
    assert int(result.log_weights.argmax()) == int(log_w.argmax())


class ArrayStats:
    """Stands in for the array functions of arviz 1.x, which take minus log w."""

    sign = -1.0

    def psislw(self, ary):
        return self.sign * ary, 0.63


class FlippedArrayStats(ArrayStats):
    sign = 1.0


def test_arviz_1_gets_minus_log_w(monkeypatch):
    log_w = pareto_log_weights(0.63).numpy()
    monkeypatch.setattr(bridge, "is_legacy", lambda: False)
    monkeypatch.setattr(bridge, "_array_stats", ArrayStats)
    smoothed, khat = psislw(log_w)
    assert khat == 0.63
    assert smoothed == pytest.approx(torch.from_numpy(log_w).log_softmax(0).numpy())


def test_an_arviz_that_flips_the_sign_again_is_noticed(monkeypatch):
    monkeypatch.setattr(bridge, "is_legacy", lambda: False)
    monkeypatch.setattr(bridge, "_array_stats", FlippedArrayStats)
    with pytest.raises(RuntimeError, match="another sign"):
        psislw(pareto_log_weights(0.63).numpy())


def test_smoothed_weights_sum_to_one_and_do_not_exceed_the_largest():
    log_w = pareto_log_weights(0.9)
    smoothed = psis(log_w).log_weights
    assert float(smoothed.exp().sum()) == pytest.approx(1)
    assert float(smoothed.max() - smoothed.min()) <= float(log_w.max() - log_w.min()) + 1e-9


def test_input_is_left_alone():
    log_w = pareto_log_weights(0.9)
    before = log_w.clone()
    psis(log_w)
    assert torch.equal(log_w, before)


@pytest.mark.parametrize("value", [0.0, -1e4, 300.0])
def test_constant_weights_have_no_tail(value):
    result = psis(torch.full((500,), value))
    assert result.khat == -INF
    assert result.log_weights.tolist() == pytest.approx([-math.log(500)] * 500)


def test_a_tail_of_equal_weights_has_no_spread():
    log_w = torch.cat([torch.randn(500) - 10, torch.zeros(500)])
    assert psis(log_w).khat == -INF


@pytest.mark.parametrize("size", [2, 5, 19, 29])
def test_few_draws_say_nothing_of_the_tail(size):
    log_w = torch.randn(size)
    result = psis(log_w)
    assert result.khat == INF
    assert result.log_weights.tolist() == pytest.approx(log_w.double().log_softmax(0).tolist())


def test_weights_of_zero_stay_zero_and_do_not_change_the_tail():
    log_w = pareto_log_weights(0.5)
    result = psis(torch.cat([torch.full((7,), -INF, dtype=torch.float64), log_w]))
    assert result.khat == pytest.approx(psis(log_w).khat)
    assert bool((result.log_weights[:7] == -INF).all())
    assert float(result.log_weights.exp().sum()) == pytest.approx(1)


def test_one_weight_that_dwarfs_the_rest_is_unreliable():
    log_w = torch.zeros(1000)
    log_w[3] = 5000.0
    assert psis(log_w).khat > psis(log_w).threshold


@pytest.mark.parametrize(("size", "threshold"), [(5, 0.0), (100, 0.5), (1000, 2 / 3), (2200, 0.7), (10_000, 0.7)])
def test_threshold_grows_with_the_number_of_draws_up_to_seven_tenths(size, threshold):
    expected = threshold if size != 2200 else 0.7
    assert psis(torch.zeros(size)).threshold == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([0.0, math.nan]), torch.tensor([0.0, INF]), torch.zeros(3, 2), torch.zeros(1), [0.0, 1.0]]
)
@pytest.mark.parametrize("function", [elbo, log_evidence, importance_ess, psis, lambda w: psis_resample(w, 3)])
def test_wrong_weights_are_refused(function, wrong):
    with pytest.raises(ValueError, match="log_weights"):
        function(wrong)


def test_weights_that_are_all_zero_are_refused_where_nothing_can_be_said():
    nothing = torch.full((50,), -INF)
    with pytest.raises(ValueError, match="minus infinity"):
        psis(nothing)
    with pytest.raises(ValueError, match="no draw to choose"):
        psis_resample(nothing, 3)


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_resampling_wants_a_positive_integer(count):
    with pytest.raises(ValueError, match="num_samples"):
        psis_resample(torch.zeros(5), count)


def test_resampling_takes_every_draw_as_often_as_its_weight_says():
    weights = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=torch.float64)
    chosen = psis_resample(weights.log(), 1000, torch.Generator().manual_seed(0))
    assert chosen.dtype is torch.long
    counts = chosen.bincount(minlength=4)
    assert bool(((counts - 1000 * weights).abs() <= 1).all())
    assert counts[2] == 0


def test_resampling_is_unbiased_where_fewer_are_taken_than_there_are():
    # 4000 repeats of 1 of 2, probability 0.3: sd 0.0072; 0.03 is 4 sd, false alarms 6e-5
    generator = torch.Generator().manual_seed(0)
    log_w = torch.tensor([0.3, 0.7]).log()
    share = sum(int(psis_resample(log_w, 1, generator) == 0) for _ in range(4000)) / 4000
    assert share == pytest.approx(0.3, abs=0.03)


def test_resampling_mixes_the_order_and_repeats_with_the_seed():
    log_w = torch.zeros(100)
    first = psis_resample(log_w, 100, torch.Generator().manual_seed(3))
    assert torch.equal(first, psis_resample(log_w, 100, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, first.sort().values)
    assert torch.equal(first.sort().values, torch.arange(100))


@pytest.mark.parametrize("shape", [0.3, 0.6, 0.8])
def test_missing_mass_is_that_of_the_tail_beyond_the_draws(shape):
    # Weights with exact Pareto tail p^-k: of a mean of 1 / (1 - k), S^(k - 1) of it lies beyond the quantile 1 / S. Of that the
    # top smoothed weight, which counts as reached, holds (1 - k) 2^k. The median over 20 seeds is within a factor of three.
    size, found = 10_000, []
    for seed in range(20):
        torch.manual_seed(seed)
        found.append(psis(-shape * torch.rand(size, dtype=torch.float64).log()).missing_mass)
    truth = size ** (shape - 1)
    truth *= 1 - (1 - shape) * 2**shape
    assert truth / 3 < float(torch.tensor(found).median()) < truth * 3


def test_missing_mass_is_nothing_without_a_tail_and_all_where_it_has_no_mean():
    torch.manual_seed(0)
    uniform = torch.rand(10_000, dtype=torch.float64)
    assert psis(uniform).missing_mass < 1e-3
    assert psis(torch.zeros(1000)).missing_mass == 0
    assert psis(-1.3 * uniform.log()).missing_mass == 1
