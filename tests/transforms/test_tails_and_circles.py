"""Maps of tails, limits and angles: what they promise beyond the laws of a transform."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.transforms import (
    Autoregressive,
    CircularSpline,
    Coupling,
    Elementwise,
    HeavyTails,
    LogSoftExtension,
    MoebiusMixture,
    NonCompactProjection,
    SoftClip,
)
from pyro_flows.transforms.univariate import heavy_tails

F64 = torch.float64


def raw(univariate, count=1, scale=1.0):
    return univariate.split(scale * torch.randn(univariate.param_count, count, dtype=F64))


CIRCLE_MAPS = {
    "spline": lambda: CircularSpline(5),
    "projection": NonCompactProjection,
    "Möbius": lambda: MoebiusMixture(4),
}


@pytest.mark.parametrize("name", CIRCLE_MAPS)
def test_a_map_of_the_circle_commutes_with_turns_and_has_no_seam(name):
    spline = CIRCLE_MAPS[name]().double()
    params = raw(spline)
    x = torch.linspace(-20, 20, 4001, dtype=F64)
    y, log_slope = spline.forward_and_log_det(x, params)
    turned, turned_slope = spline.forward_and_log_det(x + 2 * math.pi, params)
    torch.testing.assert_close(turned, y + 2 * math.pi)
    torch.testing.assert_close(turned_slope, log_slope)
    for seam in (math.pi, -math.pi, 3 * math.pi):
        sides = torch.tensor([seam - 1e-9, seam + 1e-9], dtype=F64)
        value, slope = spline.forward_and_log_det(sides, params)
        assert abs(value.diff()) < 1e-7 and abs(slope.diff()) < 1e-6
    back, _ = spline.inverse_and_log_det(y, params)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CIRCLE_MAPS)
def test_a_density_on_the_circle_integrates_to_one(name):
    spline = CIRCLE_MAPS[name]().double()
    params = raw(spline)
    angles = torch.linspace(-math.pi, math.pi, 200_001, dtype=F64)[:-1]
    _, log_slope = spline.inverse_and_log_det(angles, params)
    assert abs(float(log_slope.exp().mean()) - 1) < 1e-3  # of the uniform density, times 2 pi


def test_heavy_tails_are_those_of_student_t():
    """The survival function of y = T(z) falls like y^(-1 / h): its slope between two far points."""
    weight = torch.tensor(0.5, dtype=F64)
    params = tuple(((weight.logit() - heavy_tails._START) / heavy_tails._GAIN).expand(1) for _ in range(2))
    z = torch.tensor([5.0, 7.0], dtype=F64)
    y, _ = HeavyTails().forward_and_log_det(z, params)
    log_survival = torch.special.log_ndtr(-z)
    slope = float(log_survival.diff() / y.log().diff())
    assert abs(slope + 2.0) < 0.1, slope


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_heavy_tails_invert_over_many_orders_of_magnitude(dtype):
    tails = HeavyTails()
    x = torch.cat([torch.linspace(-12, 12, 500, dtype=dtype), torch.tensor([1e-30, -1e-8, 0.0], dtype=dtype)])
    for value in (-50.0, -3.0, 0.0, 3.0, 50.0):
        params = (torch.full((1,), value, dtype=dtype), torch.full((1,), -value, dtype=dtype))
        y, log_slope = tails.forward_and_log_det(x, params)
        back, log_slope_back = tails.inverse_and_log_det(y, params)
        tolerance = 1e-12 if dtype == F64 else 2e-5
        torch.testing.assert_close(back, x, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(log_slope_back, -log_slope, atol=10 * tolerance, rtol=10 * tolerance)


def test_a_flow_with_a_tail_transform_fits_student_t_and_one_without_does_not():
    """Held-out nats of 4,000 draws of two independent variables with 2 degrees of freedom, against their entropy."""
    torch.manual_seed(0)
    student = torch.distributions.StudentT(2.0)
    data, held_out = student.sample((4000, 2)), student.sample((20_000, 2))
    truth = student.log_prob(held_out).sum(-1).mean()
    lost = {}
    for name in ("ttf", "nsf_autoregressive"):
        options = {"num_layers": 2, "hidden_dims": (16,)}
        fit = pf.fit_density(name, data, flow_options=options, max_epochs=25, batch_size=400, lr=1e-2, seed=0, progress=False)
        lost[name] = float(truth - fit.log_prob(held_out).mean())
    assert lost["ttf"] < 0.15 < lost["nsf_autoregressive"], lost


def test_soft_clip_keeps_values_inside_and_refuses_others():
    clip = Elementwise(2, SoftClip(2.0))
    y = clip(torch.tensor([1e4, -3.0]))
    assert bool((y.abs() < 2.0).all())
    torch.testing.assert_close(clip.inv(torch.tensor([1.0, -1.2])), torch.tensor([2.0, -3.0]))
    with pytest.raises(ValueError, match=r"inside \(-2.0, 2.0\), the image of SoftClip, got 2"):
        clip.inv(torch.tensor([0.0, 2.0]))
    q = pf.FlowDistribution(clip)
    assert bool(q.support.check(q.sample((100,))).all()) and not bool(q.support.check(torch.tensor([0.0, 3.0])))
    grid = torch.linspace(-2, 2, 200_002, dtype=F64)[1:-1]
    _, log_slope = SoftClip(2.0).inverse_and_log_det(grid, ())
    x, _ = SoftClip(2.0).inverse_and_log_det(grid, ())
    total = (Normal(0.0, 1.0).log_prob(x) + log_slope).exp().sum() * (grid[1] - grid[0])
    assert abs(float(total) - 1) < 1e-4


def test_log_soft_extension_is_the_identity_and_then_a_logarithm():
    extension = LogSoftExtension(10.0)
    x = torch.tensor([-1e6, -10.0, 3.0, 10.0 + math.expm1(2.0)], dtype=F64)
    y, log_slope = extension.forward_and_log_det(x, ())
    torch.testing.assert_close(y, torch.tensor([-10.0 - math.log1p(1e6 - 10), -10.0, 3.0, 12.0], dtype=F64))
    torch.testing.assert_close(log_slope, torch.tensor([-math.log1p(1e6 - 10), 0.0, 0.0, -2.0], dtype=F64))
    torch.testing.assert_close(extension.inverse_and_log_det(y, ())[0], x)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: CircularSpline(1), "num_bins"),
        (lambda: CircularSpline(2000), "num_bins \\* min_bin below 1"),
        (lambda: CircularSpline(4, min_slope=2.0), "min_slope"),
        (lambda: SoftClip(0.0), "bound"),
        (lambda: LogSoftExtension(math.inf), "threshold"),
        (lambda: Elementwise(2, SoftClip(), 3), "context_dim must be 0 for SoftClip"),
        (lambda: Coupling(2, SoftClip()), "must have parameters"),
        (lambda: Autoregressive(2, LogSoftExtension()), "must have parameters"),
        (lambda: flows.ttf(2, num_layers=0), "num_layers"),
    ],
)
def test_bad_arguments_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()
