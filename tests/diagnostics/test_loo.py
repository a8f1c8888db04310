"""Leave-one-out cross-validation: against closed forms, arviz on posterior draws, and reference draws of eight schools."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.data import eight_schools
from pyro_flows.demo import non_centred
from pyro_flows.diagnostics import compare_loo, from_groups, loo
from pyro_flows.diagnostics.arviz import load

DRAWS = (
    Path(__file__).resolve().parents[2].parent / "shared/data/posteriordb/draws/eight_schools-eight_schools_noncentered.json.zip"
)


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def exact(y):
    """The posterior of the mean without an observation is normal."""
    precision = 0.01 + len(y) - 1
    centre = (y.sum() - y) / precision
    return dist.Normal(centre, math.sqrt(1 + 1 / precision)).log_prob(y)


def drawn(y, count, scale=1.0, shift=0.0):
    """Draws of a normal about the posterior, and their log-weights."""
    precision = 0.01 + len(y)
    q = dist.Normal(y.sum() / precision + shift / math.sqrt(precision), scale / math.sqrt(precision))
    mean = q.sample((count,))
    log_likelihood = dist.Normal(mean[:, None], 1.0).log_prob(y)
    return log_likelihood, dist.Normal(0.0, 10.0).log_prob(mean) + log_likelihood.sum(1) - q.log_prob(mean)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.3, 0.0), (1.5, 0.8)])
def test_a_conjugate_model_whatever_the_guide(scale, shift):
    """The error of 20,000 draws is below 0.05 nats for each of 15 observations, one far out; uncorrected draws are off by more."""
    torch.manual_seed(0)
    y = torch.randn(15, dtype=torch.float64) * 1.5
    log_likelihood, log_weights = drawn(y, 20_000, scale, shift)
    found = loo(log_likelihood, log_weights)
    assert float((found.pointwise - exact(y)).abs().max()) < 0.05
    assert found.elpd == pytest.approx(float(exact(y).sum()), abs=0.08) and 0.5 < found.p_loo < 3
    if shift:
        assert abs(loo(log_likelihood).elpd - found.elpd) > 0.1
    assert found.num_unreliable == 0 and "elpd_loo" in str(found)


def test_of_posterior_draws_it_is_that_of_arviz():
    torch.manual_seed(0)
    y = torch.randn(12, dtype=torch.float64)
    log_likelihood, _ = drawn(y, 2000)
    data = from_groups({"posterior": {"mean": torch.zeros(1, 2000).numpy()}, "log_likelihood": {"y": log_likelihood[None].numpy()}})
    theirs, ours = load().loo(data, pointwise=True), loo(log_likelihood)
    value = getattr(theirs, "elpd_loo", None)
    assert ours.elpd == pytest.approx(float(theirs.elpd if value is None else value), abs=0.02)
    assert ours.se == pytest.approx(float(theirs.se), rel=0.1)


@pytest.mark.skipif(not DRAWS.exists(), reason="the reference draws are not there")
def test_eight_schools_as_by_long_chains():
    """Within 0.05 nats of the same estimate from 10,000 reference draws."""
    study = eight_schools()
    with zipfile.ZipFile(DRAWS) as archive:
        chains = json.loads(archive.read(archive.namelist()[0]))
    theta = torch.stack([torch.cat([torch.tensor(chain[f"theta[{j}]"]) for chain in chains]) for j in range(1, 9)], 1)
    reference = loo(dist.Normal(theta, study.sigma).log_prob(study.y))
    fit = pf.fit(non_centred, study.y, study.sigma, seed=0, progress=False)
    found = fit.loo(20_000)
    assert abs(found.elpd - reference.elpd) < 0.05, (found.elpd, reference.elpd)
    assert found.num_unreliable == 0


def test_models_are_compared_on_the_same_observations():
    torch.manual_seed(0)
    y = torch.randn(40, dtype=torch.float64)
    right = loo(drawn(y, 4000)[0])
    wrong = loo(dist.Normal(2 + torch.randn(4000, 1) / 6, 1.0).log_prob(y))
    found = compare_loo({"wrong": wrong, "right": right})
    assert found.names == ("right", "wrong") and found.difference[0] == 0 and found.difference[1] > 3 * found.se[1]
    assert "behind" in str(found)
    with pytest.raises(ValueError, match="two estimates at least"):
        compare_loo({"one": right})
    with pytest.raises(ValueError, match="same observations"):
        compare_loo({"one": right, "other": loo(drawn(y[:5], 100)[0])})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The inplace keyword")  # pandas, of arviz
def test_fits_are_compared_by_arviz_too():
    """az.compare on resampled draws says what compare_loo says: the order, and how far the second is behind."""

    def polynomial(x, y, degree):
        coefficients = pyro.sample("coefficients", dist.Normal(torch.zeros(degree + 1), 3.0).to_event(1))
        powers = torch.stack([x**k for k in range(degree + 1)], -1)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(powers @ coefficients, 0.7), obs=y)

    torch.manual_seed(0)
    x = torch.linspace(-1.5, 1.5, 120)
    y = 1 + x + 0.5 * x**2 + 0.7 * torch.randn(120)
    fits = {f"degree {d}": pf.fit(polynomial, x, y, d, guide="affine", seed=0, progress=False) for d in (1, 2)}
    ours = compare_loo({name: fit.loo() for name, fit in fits.items()})
    theirs = load().compare({name: fit.to_arviz(resample="psis") for name, fit in fits.items()})
    assert list(theirs.index) == list(ours.names) == ["degree 2", "degree 1"]
    assert abs(float(theirs["elpd_diff"].iloc[1])) == pytest.approx(ours.difference[1], rel=0.05)


def test_what_is_refused():
    good = torch.zeros(100, 3)
    with pytest.raises(ValueError, match=r"shape \(S, N\)"):
        loo(torch.zeros(100))
    with pytest.raises(ValueError, match="one entry for each"):
        loo(good, torch.zeros(99))
    with pytest.raises(ValueError, match="NaN or plus infinity"):
        loo(torch.full((100, 3), torch.nan))
    bad = good.clone()
    bad[3, 1] = -torch.inf
    with pytest.raises(ValueError, match="minus infinity"):
        loo(bad)
    weights = torch.zeros(100)
    weights[3] = -torch.inf
    assert loo(bad, weights).pointwise.shape == (3,)

    def empty():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    fit = pf.fit(empty, guide="affine", max_steps=5, seed=0, progress=False)
    with pytest.raises(ValueError, match="no observed site"):
        fit.loo()


def test_nothing_is_made_on_a_default_device():
    log_likelihood = torch.randn(200, 3)
    with torch.device("meta"):
        assert loo(log_likelihood).pointwise.device.type == "cpu"
