"""Batch normalisation: two modes, each of them defined."""

from __future__ import annotations

import copy

import pytest
import torch

import pyro_flows as pf
from pyro_flows.transforms import AffineTril, BatchNorm, Compose, PerPixel


def test_training_normalises_the_batch_and_is_that_of_torch():
    ours, theirs = BatchNorm(3, momentum=0.2), torch.nn.BatchNorm1d(3, momentum=0.2)
    for seed in range(3):
        torch.manual_seed(seed)
        x = 2 + 3 * torch.randn(50, 3)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.mean, theirs.running_mean)
    x = torch.randn(7, 3)
    theirs.running_var.copy_(ours.variance)  # torch keeps the unbiased one
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_the_log_determinant_of_a_batch_is_that_of_its_moments():
    norm, x = BatchNorm(2).double(), torch.randn(20, 2, dtype=torch.float64)
    expected = -0.5 * (x.var(0, correction=0) + norm.eps).log().sum()
    torch.testing.assert_close(norm.forward_and_log_det(x)[1], expected.expand(20))


def test_evaluation_has_no_memory_of_the_batch_and_an_inverse():
    norm = BatchNorm(2)
    norm(5 + torch.randn(100, 2))
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(4, 2)
    torch.testing.assert_close(norm.inv(norm(x)), x)
    torch.testing.assert_close(norm(x)[0], norm(x[0]))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert BatchNorm(2).eval()(x).allclose(x)


def test_a_batch_of_one_is_refused_in_training():
    with pytest.raises(ValueError, match="at least two rows in training mode"):
        BatchNorm(2)(torch.zeros(2))
    assert BatchNorm(2).eval()(torch.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 1.5}, {"eps": 0.0}])
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BatchNorm(2, **options)


def test_a_density_that_is_trained_with_it_is_scored_without_batches():
    data = torch.randn(600, 2) * torch.tensor([2.0, 0.5]) + 3
    flow = Compose([AffineTril(2), BatchNorm(2).inv])
    fit = pf.fit_density(flow, data, standardise=False, max_epochs=80, lr=0.02, patience=80, seed=0, progress=False)
    assert not fit.distribution.training
    truth = torch.distributions.Normal(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 0.5])).log_prob(data).sum(-1).mean()
    assert abs(fit.log_prob(data).mean() - truth) < 0.05
    torch.testing.assert_close(fit.log_prob(data)[:3], torch.stack([fit.log_prob(row) for row in data[:3]]))


def test_of_pixels():
    norm = PerPixel((2, 4, 4), BatchNorm(2))
    y = norm(3 + torch.randn(10, 2, 4, 4))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
