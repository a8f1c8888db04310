"""``fit``: conjugate answers, careless models, reproducibility, what is recorded, what is refused."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import diagnose

DATA = torch.tensor([1.0, 2.0, 4.0, 3.0])
QUICK = {"progress": False, "seed": 0, "num_particles": 64, "max_steps": 400}


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()


def conjugate(data=None, count=4):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", count if data is None else len(data)):
        return pyro.sample("y", dist.Normal(mean, 1.0), obs=data)


# Posterior N(10 / 4.25, 1 / 4.25); evidence of N(0, I + 4 * ones).
POSTERIOR_MEAN, POSTERIOR_SD = 10 / 4.25, 4.25**-0.5
EVIDENCE = float(dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 4 * torch.ones(4, 4)).log_prob(DATA))


@pytest.fixture(scope="module")
def fitted():
    return pf.fit(conjugate, DATA, **QUICK)


def test_a_conjugate_posterior_is_found(fitted):
    """20,000 draws: standard errors of mean and sd are 0.007 and 0.005 sd; six of them allowed (false alarms below 1e-8)."""
    draws = fitted.sample(20_000, seed=1)["mean"]
    assert abs(draws.mean() - POSTERIOR_MEAN) < 0.05 * POSTERIOR_SD
    assert abs(draws.std() / POSTERIOR_SD - 1) < 0.05


def test_the_diagnosis_knows_the_evidence(fitted):
    diagnosis = fitted.diagnose()
    assert diagnosis.verdict == "good"
    assert diagnosis.ess_fraction > 0.95
    assert abs(diagnosis.log_evidence - EVIDENCE) < 0.01
    assert diagnosis.elbo <= diagnosis.log_evidence + 6 * diagnosis.elbo_mcse


def test_a_seed_makes_it_reproducible_and_leaves_the_global_generator_alone(fitted):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = pf.fit(conjugate, DATA, **QUICK)
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.losses == fitted.losses
    assert torch.equal(again.sample(5, seed=3)["mean"], fitted.sample(5, seed=3)["mean"])


def test_the_record_says_what_was_done(fitted):
    record = fitted.record
    assert record["path"] == "vmap"
    assert record["path_reasons"]
    assert record["start"] in record["starts"]
    assert record["stop_reason"] == fitted.stop_reason
    assert record["steps"] == len(fitted.losses)


def test_prediction_for_covariates_of_another_length(fitted):
    draws = fitted.predict(500, None, 7, seed=0)["y"]
    assert draws.shape == (500, 7)
    # sd of a prediction is sqrt(1 + 1 / 4.25) = 1.11; 500 draws of one column: six standard errors (false alarms below 1e-8)
    assert abs(draws[:, 0].mean() - POSTERIOR_MEAN) < 6 * 1.11 / math.sqrt(500)


def test_arviz_data_has_all_groups_and_named_dims(fitted):
    data = fitted.to_arviz(500, resample="psis")
    for group in ("posterior", "log_likelihood", "posterior_predictive", "observed_data", "sample_stats"):
        assert len(data[group].data_vars)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert set(data.sample_stats.data_vars) == {"log_p", "log_q", "log_weight"}
    assert data.posterior.attrs["path"] == "vmap"


def test_resampling_corrects_a_guide_that_is_off():
    # Lighter tails than those of a normal guide, so that weights are bounded; what is off is the fourth moment.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        pyro.factor("quartic", -(x**4) / 4)

    fit = pf.fit(model, guide="affine", **QUICK)
    grid = torch.linspace(-6, 6, 4001)
    density = (-(grid**4) / 4 - grid**2 / 18).exp()
    truth = float((grid**4 * density).sum() / density.sum())
    assert float((fit.sample(40_000, seed=0)["x"] ** 4).mean()) > truth + 0.15
    # 4,000 draws: standard error 0.032.
    assert float((fit.resample(4000, seed=0)["x"] ** 4).mean()) == pytest.approx(truth, abs=0.128)


# Careless models


def loop_over_groups(y, group):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    effects = [pyro.sample(f"effect_{j}", dist.Normal(mu, tau)) for j in range(3)]
    for i in range(len(y)):
        pyro.sample(f"y_{i}", dist.Normal(effects[int(group[i])], 1.0), obs=y[i])


def gaussian_process(x, y):
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    covariance = torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-3) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def hidden_markov(y):
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    state = pyro.sample("state_0", dist.Normal(0.0, 1.0))
    for t in range(1, len(y)):
        state = pyro.sample(f"state_{t}", dist.Normal(state, scale))
        pyro.sample(f"y_{t}", dist.Normal(state, 0.5), obs=y[t])


def compositional(counts, z):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("counts", dist.Multinomial(10, p), obs=counts)
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    sds = pyro.sample("sds", dist.HalfNormal(torch.ones(2)).to_event(1))
    with pyro.plate("rows", len(z)):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), scale_tril=sds[..., None] * corr), obs=z)


_NOISE = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
CARELESS = {
    "a loop over groups": (loop_over_groups, (_NOISE[:6, 0], torch.tensor([0, 1, 2, 0, 1, 2]))),
    "a covariance built inside": (gaussian_process, (torch.linspace(0, 3, 8), torch.linspace(0, 3, 8).sin())),
    "a loop over time": (hidden_markov, (_NOISE[:6, 1],)),
    "Dirichlet, Multinomial, LKJCholesky": (compositional, (torch.tensor([3.0, 3.0, 4.0]), _NOISE)),
}


@pytest.mark.parametrize("name", CARELESS)
def test_a_careless_model_is_fitted_and_the_path_reported(name):
    model, args = CARELESS[name]
    fit = pf.fit(model, *args, seed=0, progress=False, max_steps=150)
    assert fit.record["path"] in ("vmap", "plate", "loop")
    assert fit.record["num_particles"] == 256
    assert fit.record["path_reasons"]
    assert math.isfinite(fit.diagnose(2000).elbo)
    assert fit.predict(3)


def test_a_model_that_a_particle_plate_gets_wrong_is_right():
    """Posterior of th given y ~ N(th - mean(th), 1), th ~ N(0, 1): precision I + (I - 11'/3), mean = precision^-1 C'y."""

    def model(y):
        with pyro.plate("j", 3):
            th = pyro.sample("th", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(th - th.mean(), 1.0).to_event(1), obs=y)

    y = torch.tensor([1.0, 2.0, 0.0])
    centring = torch.eye(3) - 1 / 3
    covariance = torch.linalg.inv(torch.eye(3) + centring)
    fit = pf.fit(model, y, guide="affine", **QUICK)
    draws = fit.sample(20_000, seed=0)["th"]
    assert (draws.mean(0) - covariance @ centring @ y).abs().max() < 0.05
    assert (torch.cov(draws.T) - covariance).abs().max() < 0.05


def test_learnable_parameters_of_the_model_are_trained_and_listed():
    def model(y):
        scale = pyro.param("scale", torch.tensor(5.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    fit = pf.fit(model, DATA, **QUICK)
    assert fit.record["model_parameters"] == ["scale"]
    assert pyro.param("scale").item() < 4.0


def test_float64_models_are_fitted_in_float64():
    def model():
        pyro.sample("x", dist.Normal(torch.tensor(3.0, dtype=torch.float64), 1.0))

    assert pf.fit(model, guide="affine", **QUICK).sample(3)["x"].dtype == torch.float64


def test_improper_priors_are_fitted():
    def model(y):
        scale = pyro.sample("scale", dist.ImproperUniform(dist.constraints.positive, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    assert pf.fit(model, 0.1 * torch.arange(1.0, 20.0), **QUICK).diagnose().verdict == "good"


# Bad input


def test_arguments_are_checked_by_name():
    for name, value in (("num_particles", 2.5), ("max_steps", 0), ("max_time", -1.0), ("objective", "magic"), ("seed", "x")):
        with pytest.raises(ValueError, match=name):
            pf.fit(conjugate, DATA, progress=False, **{name: value})
    with pytest.raises(ValueError, match="model must be callable"):
        pf.fit(DATA)


def test_observed_nan_is_refused_by_site():
    with pytest.raises(ValueError, match="'y'.*NaN"):
        pf.fit(conjugate, torch.tensor([1.0, math.nan, 2.0]), **QUICK)


def test_a_model_that_raises_is_reported_with_its_site():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise RuntimeError("boom")

    with pytest.raises(ValueError, match=r"(?s)boom|'x'"):
        pf.fit(model, **QUICK)


def test_a_likelihood_that_is_never_finite_is_reported_with_its_site():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("nowhere", x * -math.inf)

    with pytest.raises((ValueError, ArithmeticError), match="nowhere"):
        pf.fit(model, **QUICK)


def test_ctrl_c_returns_what_there_is():
    def interrupt(step, loss):
        if step == 20:
            raise KeyboardInterrupt

    fit = pf.fit(conjugate, DATA, guide="real_nvp", callback=interrupt, **QUICK)
    assert fit.stop_reason == "interrupted"
    assert torch.isfinite(fit.sample(3)["mean"]).all()


def test_a_time_limit_is_kept():
    fit = pf.fit(conjugate, DATA, guide="real_nvp", seed=0, progress=False, max_time=1.0, max_steps=100_000)
    assert fit.stop_reason == "max_time"
    assert fit.record["seconds"] < 20


def test_the_verdict_looks_at_the_models_own_space_too():
    # Log-normal with a tail that the guide cuts: the logarithm's sd is 10 % short, that of the value much more.
    def model():
        pyro.sample("x", dist.LogNormal(0.0, 1.0))

    fit = pf.fit(model, guide="affine", **QUICK)
    with torch.no_grad():
        fit.guide.whitening.set(torch.zeros(1), torch.full((1, 1), 0.93))
        for parameter in fit.guide.flow.parameters():
            parameter.zero_()
    latents, log_p, log_q = fit._weighted(10_000, 0)
    assert fit.diagnose().worst_sd_ratio < 0.9
    assert diagnose(log_p, log_q, draws=latents).worst_sd_ratio > 0.9


def test_predictions_at_arguments_by_name_with_deterministic_sites():
    def line(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        mean = pyro.deterministic("mean", slope * x)
        pyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)

    x = torch.linspace(-1.0, 1.0, 10)
    fit = pf.fit(line, x, 2 * x, **QUICK)
    new = torch.tensor([1.0, 5.0])
    drawn = fit.predict(500, x=new, y=None, seed=0)
    assert drawn["mean"].shape == drawn["y"].shape == (500, 2)
    torch.testing.assert_close(drawn["mean"], fit.predict(500, new, None, seed=0)["mean"])
    assert fit.predict(5)["mean"].shape == (5, 10)
    by_weight = fit.predict(4000, new, None, resample="psis", seed=0)["mean"]
    torch.testing.assert_close(by_weight[:, 0], fit.resample(4000, seed=0)["slope"])
    with pytest.raises(ValueError, match="resample must be None or 'psis'"):
        fit.predict(5, resample="all")
