"""The audit of inverses: every registered flow after training, and flows that are not what they say."""

from __future__ import annotations

import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import audit_inverse
from pyro_flows.transforms import AffineTril, FlowTransform


def two_moons(count):
    torch.manual_seed(0)
    angle, upper = torch.pi * torch.rand(count), torch.rand(count) < 0.5
    x = torch.stack([angle.cos(), angle.sin()], -1)
    x = torch.where(upper[:, None], x, torch.tensor([1.0, 0.5]) - x)
    return x + 0.05 * torch.randn(count, 2)


@pytest.mark.parametrize("name", pf.flows.names())
def test_a_trained_flow_is_invertible_in_single_precision_or_says_that_it_is_not(name):
    """The bound of 1e-4 on data and noise; far out a wrong round trip is reported."""
    data = two_moons(512)
    options = {"num_layers": 2} if name in ("naf", "umnn", "sospf", "bernstein", "bnaf", "gaussianization") else {}
    fit = pf.fit_density(name, data, flow_options=options, max_epochs=5, lr=1e-2, seed=0, progress=False)
    audit = audit_inverse(fit.distribution, data)
    assert audit.verdict in ("invertible", "near the data"), audit
    assert all(row.worst < 1e-4 and row.refused == 0 for row in audit.rows[:2]), audit


class Lossy(FlowTransform):
    """Says that it is its own inverse to three digits."""

    def forward_and_log_det(self, x, context=None):
        return x, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return (y * 1000).round() / 1000 + 0 * y, y.new_zeros(y.shape[:-1])


class Bounded(FlowTransform):
    """Right up to 10, NaN beyond."""

    def forward_and_log_det(self, x, context=None):
        return x.masked_fill(x.abs() >= 10, torch.nan), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return self.forward_and_log_det(y)


def test_verdicts():
    data = torch.randn(200, 2)
    assert audit_inverse(AffineTril(2), data).verdict == "invertible"
    assert audit_inverse(Lossy(2), data).verdict == "broken"
    bounded = audit_inverse(Bounded(2), data)
    assert bounded.verdict == "near the data" and bounded.rows[2].refused > 0
    assert "near the data" in str(bounded) and len(str(bounded).splitlines()) == 6


def test_lipschitz_estimates_are_those_of_a_matrix():
    layer = AffineTril(3, 2)
    with torch.no_grad():
        layer.params.log_diagonal.copy_(torch.tensor([2.0, 0.0, -3.0]).log1p().nan_to_num(-2.0))
        layer.params.lower.fill_(0.5)
    audit = audit_inverse(layer, torch.randn(50, 3), torch.zeros(50, 2))
    matrix = layer.matrix(torch.zeros(2)).detach().double()
    for row in audit.rows:
        forward, backward = (row.squeeze, row.stretch) if "data" in row.points else (row.stretch, row.squeeze)
        assert forward == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-4)
        assert backward == pytest.approx(float(torch.linalg.matrix_norm(matrix.inverse(), 2)), rel=1e-4)


def test_bad_input_is_named():
    data = torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"data must have shape \(N, 3\)"):
        audit_inverse(AffineTril(3), data)
    with pytest.raises(ValueError, match="context_dim=1, got none"):
        audit_inverse(AffineTril(2, 1), data)
    with pytest.raises(ValueError, match="far must be greater than 1"):
        audit_inverse(AffineTril(2), data, far=0.5)
    with pytest.raises(ValueError, match="flow must be a FlowTransform"):
        audit_inverse("real_nvp", data)
