"""Simulation-based calibration: its level, its power, fits and guides, files and failures."""

from __future__ import annotations

import json

import matplotlib
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics.uniformity import uniformity_test
from pyro_flows.studies import Calibration, ranks_of, sbc

matplotlib.use("Agg")
WRONG = {"exact": (1.0, 0.0), "narrow": (0.8, 0.0), "shifted": (1.0, 0.3)}


def conjugate(scale=1.0, shift=0.0, count=500, num_draws=99, ignores_data=False):
    """Normal latents and data, whose posterior has mean y / 2 and variance 1 / 2; wrong by a factor and by a shift in sd."""
    x = torch.randn(count)
    y = x + torch.randn(count)
    sd = 0.5**0.5
    draws = torch.randn(count, num_draws)
    draws = draws if ignores_data else y[:, None] / 2 + sd * (shift + scale * draws)
    seed = int(torch.randint(10**6, ()))
    return ranks_of({"x": x}, {"x": draws}, data=y[:, None], seed=seed)


@pytest.mark.parametrize("name", ["x", "tarp", "tarp, near"])
def test_the_level_is_five_percent(name):
    """200 studies of exact posteriors: 1 to 20 alarms, outside of which binomial draws fall once in 1,000."""
    torch.manual_seed(0)
    alarms = sum(conjugate(count=200).test(name).p_value < 0.05 for _ in range(200))
    assert 1 <= alarms <= 20


@pytest.mark.slow
def test_the_level_in_a_thousand_studies():
    """The bounds are those of 5 % of 1,000, two standard errors each way."""
    torch.manual_seed(0)
    studies = [conjugate() for _ in range(1000)]
    for name in ("x", "tarp", "tarp, near"):
        assert 37 <= sum(study.test(name).p_value < 0.05 for study in studies) <= 64


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("narrow", "shifted") for name in ("x", "tarp")])
def test_wrong_posteriors_are_caught(kind, name):
    """In 19 of 20 studies of 500 data sets at least, by a statistic alone."""
    torch.manual_seed(0)
    assert sum(conjugate(*WRONG[kind]).test(name).p_value < 0.05 for _ in range(20)) >= 19


def test_what_is_wrong_is_said():
    torch.manual_seed(0)
    said = {kind: conjugate(*WRONG[kind], count=2000) for kind in WRONG}
    assert said["exact"].calibrated and "Nothing in 2000" in said["exact"].sentence
    assert "posteriors of 'x' are too narrow" in said["narrow"].sentence
    assert "too high" in conjugate(shift=1.0, count=2000).sentence and "too low" in conjugate(shift=-1.0, count=2000).sentence
    share, error = said["narrow"].coverage(0.9, "x")
    assert abs(share - 0.8117) < 5 * error  # 2 Phi(0.8 * 1.645) - 1
    assert said["shifted"].bias("x")[0] < -0.05 and said["narrow"].spread("x")[0] > 1.15
    assert "coverage of 90 %" in str(said["exact"])
    ignorant = conjugate(ignores_data=True, count=2000)
    assert ignorant.test("tarp, near").p_value < 0.001 and not ignorant.calibrated


def test_uniformity_against_its_binomial():
    """With two places the statistic is that of one binomial, whose tail is known."""
    ranks = torch.tensor([0] * 70 + [1] * 30)
    found = uniformity_test(ranks, 1)
    exact = 2 * float(torch.distributions.Binomial(100, torch.tensor(0.5)).log_prob(torch.arange(70, 101).float()).exp().sum())
    assert abs(found.p_value - exact) < 0.002 and float(found.difference[0]) == pytest.approx(0.2)
    assert found.lower[0] < 0 < found.upper[0] < found.difference[0]


def model(y=None, sd=1.0):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(torch.stack([x, z[0] + z[1]]), sd).to_event(1), obs=y)


def exactly(data, num_draws):
    y = data["y"]
    x = y[0] / 2 + 0.5**0.5 * torch.randn(num_draws)
    a, b = torch.randn(2, num_draws)  # the sum has mean 2 y / 3 and variance 2 / 3, the difference variance 2
    total, apart = 2 * y[1] / 3 + (2 / 3) ** 0.5 * a, 2**0.5 * b
    return {"x": x, "z": torch.stack([total + apart, total - apart], -1) / 2}


def test_a_function_is_studied(tmp_path):
    study = sbc(model, posterior=exactly, observed=["y"], num_simulations=300, progress=False)
    assert list(study.ranks) == ["x", "z[0]", "z[1]", "tarp", "tarp, near"] and len(study) == 300
    assert study.calibrated, str(study)
    study.plot(tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_fits_are_studied():
    options = {"guide": "affine", "max_steps": 5, "max_time": 0.5}
    study = sbc(model, fit_options=options, observed=["y"], num_simulations=10, num_draws=20, progress=False)
    assert len(study) == 10 and study.failures == {} and study.p_value > 0.001


def test_a_study_that_was_killed_goes_on_where_it_was(tmp_path):
    calls = []

    def counted(data, num_draws):
        calls.append(1)
        return exactly(data, num_draws)

    options = {"posterior": counted, "observed": ["y"], "num_draws": 20, "num_simulations": 12, "progress": False}
    file = tmp_path / "study.jsonl"
    whole = sbc(model, **options)
    sbc(model, file=file, **options)
    lines = file.read_text().splitlines()
    assert len(lines) == 13 and len(calls) == 24
    file.write_text("\n".join(lines[:6]) + "\n" + lines[6][:10])
    resumed = sbc(model, file=file, **options)
    assert len(calls) == 24 + 7
    for name, ranks in whole.ranks.items():
        assert torch.equal(resumed.ranks[name], ranks)
    with pytest.raises(ValueError, match=r"of another study \(other num_draws\)"):
        sbc(model, file=file, **{**options, "num_draws": 30})
    with pytest.raises(ValueError, match=r"of another study \(other how\)"):
        sbc(model, file=file, **{**options, "posterior": exactly})
    assert len(file.read_text().splitlines()) == 13
    file.write_text("no study\n")
    with pytest.raises(ValueError, match="holds no study"):
        sbc(model, file=file, **options)


def test_processes_give_what_one_gives():
    options = {"posterior": exactly, "observed": ["y"], "num_simulations": 20, "num_draws": 9, "progress": False}
    one, two = sbc(model, **options), sbc(model, num_workers=2, **options)
    assert all(torch.equal(one.ranks[name], two.ranks[name]) for name in one.ranks)


def test_an_amortised_guide_is_studied_with_its_densities():
    guide = pf.AmortizedFlow(model, observed=["y"])
    pf.fit_amortized(guide, num_simulations=3000, max_epochs=5, seed=0, progress=False)
    study = sbc(model, posterior=guide, observed=["y"], num_simulations=400, progress=False)
    assert list(study.ranks) == ["x", "z[0]", "z[1]", "coverage", "tarp", "tarp, near"]
    assert study.p_value > 0.001, str(study)  # the regression of its start is exact here, but for its noise


def test_failures_are_counted_or_end_the_study():
    calls = [0]

    def sometimes(data, num_draws, every=20):
        calls[0] += 1
        if calls[0] % every == 0:
            raise ArithmeticError("did not converge")
        draws = exactly(data, num_draws)
        if calls[0] % every == 1:
            draws["x"][0] = torch.nan
        return draws

    study = sbc(model, posterior=sometimes, observed=["y"], num_simulations=40, progress=False)
    assert len(study) == 36 and study.failures == {"ArithmeticError: did not converge": 2, "draws of 'x' are not finite": 2}
    assert "Not counted: 2 x" in str(study)
    with pytest.raises(ArithmeticError, match="of 40 data sets had no posterior"):
        sbc(model, posterior=lambda data, count: sometimes(data, count, 3), observed=["y"], num_simulations=40, progress=False)


def test_what_is_refused():
    for options, words in (
        ({"num_simulations": 5}, "num_simulations must be"),
        ({"num_draws": 0}, "num_draws must be"),
        ({"max_failed": 1.0}, "max_failed must be"),
        ({"posterior": pf.AutoFlow(model)}, "posterior must be None"),
        ({"posterior": exactly, "fit_options": {"guide": "affine"}}, "fit_options are for posterior=None"),
        ({"fit_options": {"seed": 1}}, "must not hold"),
        ({"posterior": exactly, "resample": True}, "resample is for"),
        ({"posterior": pf.AmortizedFlow(model, observed=["y"]), "file": "study"}, "no effect on an AmortizedFlow"),
    ):
        with pytest.raises(ValueError, match=words):
            sbc(model, observed=["y"], progress=False, **options)
    with pytest.raises(ValueError, match="same sites"):
        ranks_of({"x": torch.zeros(3)}, {"y": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match=r"must have shape \(N, S"):
        ranks_of({"x": torch.zeros(3)}, {"x": torch.zeros(4, 3)})
    with pytest.raises(ValueError, match="finite"):
        ranks_of({"x": torch.zeros(3)}, {"x": torch.full((3, 4), torch.nan)})
    with pytest.raises(ValueError, match="ranks must be a tensor of 10 integers"):
        uniformity_test(torch.zeros(20), 5)
    with pytest.raises(ValueError, match="between 0 and num_draws"):
        uniformity_test(torch.full((20,), 7), 5)
    with pytest.raises(ValueError, match="no ranks of 'y'"):
        conjugate(count=20).test("y")
    with pytest.raises(ValueError, match="one length"):
        Calibration({}, 5)
    assert json.dumps(conjugate(count=20).p_values)


def test_nothing_is_made_on_a_default_device():
    torch.manual_seed(0)
    truth, draws, data = torch.randn(30), torch.randn(30, 20), torch.randn(30, 2)
    expected = ranks_of({"x": truth}, {"x": draws}, data=data)
    with torch.device("meta"):
        found = ranks_of({"x": truth}, {"x": draws}, data=data)
        assert found.p_values == expected.p_values


def test_a_guide_does_not_draw_the_noise_of_the_prior():
    """With the seed of the simulations the first draw of a guide would be made of what made the truth."""

    def unseen(y=None):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    guide = pf.AmortizedFlow(unseen, observed=["y"])
    pf.fit_amortized(guide, num_simulations=400, max_epochs=1, seed=0, progress=False)
    kept = {}
    draw = guide.sample

    def sample(observations, num_samples, *, seed):
        kept["draws"] = draw(observations, num_samples, seed=seed)
        return kept["draws"]

    guide.sample = sample
    sbc(unseen, posterior=guide, observed=["y"], num_simulations=300, num_draws=9, seed=3, progress=False)
    truth = pf.simulate(unseen, num_simulations=300, observed=["y"], seed=3, progress=False).latents["x"]
    together = torch.corrcoef(torch.stack([truth, kept["draws"]["x"][0]]))[0, 1]
    assert abs(float(together)) < 0.25  # of independent draws 4.3 standard errors
