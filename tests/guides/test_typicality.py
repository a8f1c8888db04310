"""Typicality: neighbours and calibration are different draws, and what leaves the span of the simulations is seen."""

from __future__ import annotations

import pytest
import torch

from pyro_flows.guides import Typicality


def test_calibration_scores_are_of_draws_that_are_no_neighbours():
    torch.manual_seed(0)
    data = torch.randn(400, 3)
    typicality = Typicality(3, data)
    typicality.set(data)
    coordinates = typicality._coordinates(typicality._tamed(data))
    torch.testing.assert_close(typicality.neighbours, coordinates[:200])
    expected = torch.cdist(coordinates[200:], coordinates[:200]).sort(-1).values[:, 4].sort().values
    torch.testing.assert_close(typicality.calibration, expected)


def test_data_off_the_span_of_the_simulations_are_untypical():
    # 100 variables that lie in 2 dimensions but for a little noise, and data that leave these.
    torch.manual_seed(0)
    span = torch.linalg.qr(torch.randn(100, 100)).Q
    data = torch.randn(4000, 2) @ span[:2] + 0.01 * torch.randn(4000, 100)
    typicality = Typicality(100, data)
    typicality.set(data)
    assert float(typicality.p_value(span[60])) <= 0.001
    assert float(typicality.p_value(span[0] + 0.01 * torch.randn(100))) > 0.05


def test_level_is_the_smallest_that_few_simulations_allow():
    typicality = Typicality(1, torch.zeros(()))
    with pytest.raises(ValueError, match="at least 20"):
        typicality.set(torch.randn(19, 1))
    typicality.set(torch.randn(40, 1))
    assert typicality.smallest == pytest.approx(1 / 21)
    assert float(typicality.p_value(torch.tensor([50.0]))) == pytest.approx(1 / 21)
