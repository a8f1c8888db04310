"""Typicality of batches and anomaly scores of points: exact level for any density, power where likelihood is blind."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import anomaly_scores, typicality_scores, typicality_test, typicality_test_of

NORMAL = dist.Normal(torch.zeros(50), 1.0).to_event(1)
#: A density that fits badly: the level does not hang on it.
WRONG = dist.StudentT(3.0, torch.full((50,), 0.7), 2.0).to_event(1)


@pytest.mark.parametrize("density", [NORMAL, WRONG])
def test_the_level_is_five_percent(density):
    """200 batches with reference points of their own: 1 to 20 alarms, outside of which binomial draws fall once in 1,000."""
    torch.manual_seed(0)
    alarms = sum(
        not typicality_test(density.log_prob, NORMAL.sample((10,)), NORMAL.sample((100,)), num_permutations=199, seed=i).typical
        for i in range(200)
    )
    assert 1 <= alarms <= 20


def test_what_likelihood_does_not_see():
    """Points at the mode are likelier than all that were drawn; points of the same density on one axis have another gradient."""
    torch.manual_seed(0)
    reference = NORMAL.sample((500,))
    dense = 0.5 * NORMAL.sample((10,))
    found = typicality_test(NORMAL.log_prob, dense, reference)
    assert not found.typical and found.shift["log-density"] > 3 and "not such as" in str(found)
    single = anomaly_scores(NORMAL.log_prob, dense, reference)
    assert bool(single.anomalous(0.02).all()) and bool((single.log_prob > NORMAL.log_prob(reference).max()).all())
    assert typicality_test(NORMAL.log_prob, NORMAL.sample((10,)), reference).typical


def test_scores_of_right_points_have_their_level():
    """1,000 points at 5 %: at most 80 alarms, 4.4 standard errors above."""
    torch.manual_seed(0)
    found = anomaly_scores(NORMAL.log_prob, NORMAL.sample((1000,)), NORMAL.sample((2000,)))
    assert int(found.anomalous(0.05).sum()) <= 80


def test_points_without_density_are_anomalies():
    torch.manual_seed(0)

    def log_prob(x):
        inside = (x.abs() < 5).all(-1)
        return torch.where(inside, NORMAL.log_prob(x), -torch.inf)

    reference, outside = NORMAL.sample((200,)), torch.full((10, 50), 9.0)
    assert not typicality_test(log_prob, outside, reference).typical
    scores = anomaly_scores(log_prob, outside, reference)
    assert bool(scores.anomalous(0.05).all()) and bool(torch.isneginf(scores.log_prob).all())
    with pytest.raises(ValueError, match="does not fit even these"):
        typicality_test(log_prob, reference[:5], outside.repeat(5, 1))


def test_a_flow_and_its_fit_are_densities():
    torch.manual_seed(0)
    data = torch.randn(600, 3) @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 1.0]])
    fit = pf.fit_density("nsf_coupling", data[:400], max_epochs=15, seed=0, progress=False)
    swapped = data[400:420] * torch.tensor([1.0, -1.0, 1.0])
    for density in (fit, fit.distribution):
        assert not typicality_test(density, swapped, data[420:]).typical
        assert typicality_test(density, data[400:420], data[420:]).typical


@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_points_of_the_right_density_and_gradient(unit):
    """Absolute values of normal draws have the density and gradient norms of these; in one variable of small units they do not."""
    torch.manual_seed(0)
    scale = torch.ones(20)
    scale[0] = unit
    normal = dist.Normal(torch.zeros(20), scale).to_event(1)
    reference, batch = normal.sample((400,)), normal.sample((10,))
    assert typicality_test(normal.log_prob, batch, reference).typical
    batch = torch.where(torch.arange(20) == 0, batch + 3 * unit, batch) if unit < 1 else batch.abs()
    found = typicality_test(normal.log_prob, batch, reference)
    assert not found.typical and found.p_values["points"] < 0.01 and "points themselves p =" in str(found)
    assert (found.p_values["scores"] > 0.05) == (unit == 1.0)
    batch[0, 0] = torch.inf
    assert not typicality_test(normal.log_prob, batch, reference).typical


def test_the_level_of_both_parts_together_is_five_percent():
    """200 batches: 1 to 20 alarms, outside of which binomial draws fall once in 1,000."""
    torch.manual_seed(0)
    flow = pf.FlowDistribution(pf.flows.affine(5))
    scores = typicality_scores(flow, torch.randn(4000, 5))
    alarms = 0
    for i in range(200):
        order = torch.randperm(4000)
        alarms += not typicality_test_of(scores[order[:10]], scores[order[10:110]], num_permutations=199, seed=i).typical
    assert 1 <= alarms <= 20


def test_bad_input():
    good = NORMAL.sample((100,))
    with pytest.raises(ValueError, match="40 points at least"):
        typicality_test(NORMAL.log_prob, good, good[:39])
    with pytest.raises(ValueError, match=r"\(50,\), got \(49,\)"):
        typicality_test(NORMAL.log_prob, good[:, 1:], good)
    with pytest.raises(ValueError, match="at least 19"):
        typicality_test(NORMAL.log_prob, good, good, num_permutations=5)
    with pytest.raises(ValueError, match="one log-density for each"):
        typicality_test(lambda x: x, good, good)
    with pytest.raises(ValueError, match="gradients"):
        anomaly_scores(lambda x: NORMAL.log_prob(x).detach(), good, good)
    with pytest.raises(ValueError, match="between 0 and 1"):
        anomaly_scores(NORMAL.log_prob, good, good).anomalous(1.0)
    scores = typicality_scores(NORMAL.log_prob, good)
    with pytest.raises(ValueError, match="what typicality_scores returns, got Tensor"):
        typicality_test_of(good, scores)
    with pytest.raises(ValueError, match="of points of one shape"):
        typicality_test_of(scores, typicality_scores(lambda x: -x.square().sum(-1), good[:, :9]))


def test_ties_are_no_evidence():
    """The norm of a Laplace density's gradient is the same everywhere, and a constant density ties in both scores."""
    torch.manual_seed(0)
    laplace = dist.Laplace(torch.zeros(5), 1.0).to_event(1)
    alarms = sum(
        not typicality_test(laplace.log_prob, laplace.sample((20,)), laplace.sample((200,)), num_permutations=199, seed=i).typical
        for i in range(40)
    )
    assert alarms <= 7  # more fall once in 500 at 5 %
    constant = typicality_test(lambda x: (0 * x).sum(-1), NORMAL.sample((10,)), NORMAL.sample((100,)))
    assert constant.p_values["scores"] == 1.0 and constant.typical
    with pytest.raises(ValueError, match="got NoneType"):
        typicality_test(None, NORMAL.sample((10,)), NORMAL.sample((100,)))


def test_nothing_is_made_on_a_default_device():
    torch.manual_seed(0)
    batch, reference = NORMAL.sample((10,)), NORMAL.sample((100,))
    expected = typicality_test(NORMAL.log_prob, batch, reference), anomaly_scores(NORMAL.log_prob, batch, reference).p_value
    with torch.device("meta"):
        found = typicality_test(NORMAL.log_prob, batch, reference), anomaly_scores(NORMAL.log_prob, batch, reference).p_value
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])
