"""Distances between draws: exact values of normals, levels, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_flows.diagnostics import c2st, energy_distance, marginal_wasserstein, mmd, sliced_wasserstein

ALL = (c2st, mmd, sliced_wasserstein, marginal_wasserstein, energy_distance)


def normals(count=2000, dim=2, shift=0.0, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(count, dim, generator=generator)


@pytest.mark.parametrize("distance", ALL)
def test_draws_of_one_distribution_are_at_the_floor(distance):
    """Within five of the stated errors."""
    found = distance(normals(600, seed=1), normals(600, seed=2))
    assert abs(found.value - found.floor) < 5 * found.error, found
    assert math.isnan(found.p_value) or found.p_value > 0.001


@pytest.mark.parametrize("distance", ALL)
def test_other_draws_are_far_from_it(distance):
    found = distance(normals(600, shift=0.7, seed=1), normals(600, seed=2))
    assert found.value > found.floor + 5 * found.error, found
    assert math.isnan(found.p_value) or found.p_value < 0.01


def test_exact_values_of_shifted_normals():
    """W1 is the shift; the accuracy of the best classifier of two normals at distance d is Phi(d / 2); five standard errors."""
    x, y = normals(20_000, shift=torch.tensor([1.0, 0.0]), seed=1), normals(15_000, seed=2)
    assert marginal_wasserstein(x, y).value == pytest.approx(1.0, abs=0.05)
    # Along a random direction of the plane the shift is |cos|, of mean 2 / pi.
    assert sliced_wasserstein(x, y).value == pytest.approx(2 / math.pi, abs=0.06)
    found = c2st(x[:1500], y[:1500])
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    assert abs(found.value - best) < 5 * found.error
    one = energy_distance(x[:4000, :1], y[:4000, :1])
    mean = lambda d: 2 * math.exp(-(d**2) / 4) / math.sqrt(math.pi) + d * math.erf(d / 2)  # noqa: E731
    assert one.value == pytest.approx(2 * mean(1.0) - 2 * mean(0.0), abs=0.05)


def test_the_level_of_the_permutation_test():
    """100 tests at 5 %: at most 13 alarms, more of which come once in 1,000."""
    alarms = sum(
        mmd(normals(60, seed=2 * i), normals(60, seed=2 * i + 1), num_permutations=99, seed=i).p_value <= 0.05 for i in range(100)
    )
    assert alarms <= 13


@pytest.mark.parametrize("distance", ALL)
def test_what_is_refused(distance):
    good = normals(50)
    for bad, words in (
        (good[:5], "S of 20 at least"),
        (good[:, 0], r"shape \(S, D\)"),
        ([1.0], "list"),
        (torch.full((50, 2), torch.nan), "must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            distance(bad, good)
    with pytest.raises(ValueError, match="as many variables"):
        distance(good, normals(50, dim=3))


@pytest.mark.parametrize("distance", ALL)
def test_nothing_is_made_on_a_default_device(distance):
    x, y = normals(60), normals(60, seed=1)
    expected = distance(x, y)
    with torch.device("meta"):
        assert distance(x, y) == expected or math.isnan(expected.p_value)
