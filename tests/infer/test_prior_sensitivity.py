"""Power-scaling sensitivity of fits: a prior that matters, one that does not, one that the data contradict."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf


def model(y, scale):
    mean = pyro.sample("mean", dist.Normal(0.0, scale))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def fitted(y, scale):
    return pf.fit(model, y, scale, guide="affine", max_steps=400, seed=0, progress=False)


def test_the_prior_where_it_matters():
    torch.manual_seed(0)
    y = torch.randn(20)
    vague = fitted(y, 100.0).prior_sensitivity()
    assert vague.matters == [] and vague.likelihood["mean"] > 0.05 and "does not matter" in str(vague)
    strong = fitted(y[:1], 0.1).prior_sensitivity()
    assert strong.matters == ["mean"] and strong.likelihood["mean"] < 0.05 and "the prior says most" in str(strong)
    conflict = fitted(y + 10, 1.0).prior_sensitivity()
    assert conflict.matters == ["mean"] and "may disagree" in conflict.diagnosis("mean")


def test_the_value_is_that_of_the_conjugate_posterior():
    """Against arviz on draws of the posterior itself, with the same densities."""
    from pyro_flows.diagnostics import from_groups
    from pyro_flows.diagnostics.arviz import power_scaling_sensitivity

    torch.manual_seed(0)
    y = torch.randn(10) + 1
    sd = (1 / (10 + 4)) ** 0.5
    draws = 10 * y.mean() * sd**2 + sd * torch.randn(20_000)
    groups = {
        "posterior": {"mean": draws[None].numpy()},
        "log_prior": {"mean": dist.Normal(0.0, 0.5).log_prob(draws)[None].numpy()},
        "log_likelihood": {"y": dist.Normal(draws[:, None], 1.0).log_prob(y)[None].numpy()},
    }
    exact = float(power_scaling_sensitivity(from_groups(groups), "prior")["mean"])
    assert fitted(y, 0.5).prior_sensitivity(20_000).prior["mean"] == pytest.approx(exact, rel=0.15)


def test_positive_latents_are_judged_in_the_models_own_space():
    """The Jacobian of log is no part of the prior: a flat prior of a scale on an interval has no influence."""

    def scale_model(y):
        sd = pyro.sample("sd", dist.Uniform(0.01, 100.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(0.0, sd), obs=y)

    torch.manual_seed(0)
    fit = pf.fit(scale_model, torch.randn(10), guide="affine", max_steps=400, seed=0, progress=False)
    assert fit.prior_sensitivity().prior["sd"] < 0.02


def test_effects_of_a_hierarchy_are_no_prior():
    """Of group effects the model says N(0, tau): that part is left as it is, and a vague prior of tau has little influence."""

    def hierarchy(y):
        tau = pyro.sample("tau", dist.HalfNormal(50.0))
        with pyro.plate("groups", 30):
            effect = pyro.sample("effect", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(effect, 0.1), obs=y)

    torch.manual_seed(0)
    fit = pf.fit(hierarchy, torch.randn(30), guide="affine", max_steps=400, seed=0, progress=False)
    assert fit.prior_sensitivity(2000).matters == []


def test_what_is_refused():
    def empty():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    fit = pf.fit(empty, guide="affine", max_steps=5, seed=0, progress=False)
    with pytest.raises(ValueError, match="no observed site"):
        fit.prior_sensitivity()
    with pytest.raises(ValueError, match="at least 100"):
        fit.prior_sensitivity(5)
    with pytest.raises(ValueError, match="no number 'z'"):
        fitted(torch.zeros(3), 1.0).prior_sensitivity(200).diagnosis("z")
