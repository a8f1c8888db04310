"""Effects of hierarchical models are found, and standardised where that helps."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_median

import pyro_flows as pf
from pyro_flows.data import eight_schools
from pyro_flows.infer.hierarchy import read_hierarchy
from pyro_flows.model import LogJoint

QUICK = {"progress": False, "seed": 0}
STUDY = eight_schools()


def centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def read(model, *args, dim):
    return read_hierarchy(LogJoint(model, args), torch.zeros(dim), torch.ones(dim))


def test_effects_are_read_with_their_data():
    layer, names = read(centred, STUDY.y, STUDY.sigma, dim=10)
    assert names == ["theta"]
    loc, log_scale = torch.zeros(10, 10), torch.zeros(10, 10)
    loc[2:, 0] = log_scale[2:, 1] = 1.0
    torch.testing.assert_close(layer.loc_weight, loc, atol=1e-4, rtol=0)
    torch.testing.assert_close(layer.log_scale_weight, log_scale, atol=1e-4, rtol=0)
    # A normal likelihood is known exactly: its precision and its centre.
    torch.testing.assert_close(layer.precision[2:], STUDY.sigma**-2, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(layer.centre[2:], STUDY.y, rtol=0.1, atol=1.0)
    assert not layer.precision[:2].any()


def test_given_the_scales_what_is_left_is_standard_normal():
    layer, _ = read(centred, STUDY.y, STUDY.sigma, dim=10)
    log_joint = LogJoint(centred, (STUDY.y, STUDY.sigma))
    noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    for head in ([2.0, -3.0], [5.0, 0.5], [0.0, 2.0]):
        x = torch.cat([torch.tensor(head).expand(50, 2), noise], 1)
        z, log_det = layer.forward_and_log_det(x)
        left = log_joint(z) + log_det + 0.5 * noise.square().sum(-1)
        assert float(left.std()) < 0.02 * 8


def log_normal():
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("a", dist.LogNormal(torch.zeros(3), scale).to_event(1))


def precision_scale():
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    pyro.sample("b", dist.StudentT(4.0, torch.zeros(3), tau.rsqrt()).to_event(1))


def nested():
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    middle = pyro.sample("middle", dist.Normal(torch.zeros(2), top.exp()).to_event(1))
    pyro.sample("low", dist.Normal(torch.zeros(2), middle.exp()).to_event(1))


@pytest.mark.parametrize(
    ("model", "dim", "names", "slope"),
    [(log_normal, 4, ["a"], 1.0), (precision_scale, 4, ["b"], -0.5), (nested, 5, ["middle", "low"], 1.0)],
)
def test_scales_of_all_kinds_are_linear_in_the_unconstrained_latents(model, dim, names, slope):
    layer, found = read(model, dim=dim)
    assert found == names
    assert layer.log_scale_weight[1, 0].item() == pytest.approx(slope, abs=1e-3)
    assert layer.depth == len(names)


def fixed_scale():
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, torch.ones(3)).to_event(1))


def crooked():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, (3 * x).sin().exp()))


@pytest.mark.parametrize("model", [fixed_scale, crooked])
def test_sites_without_such_a_scale_are_left_as_they_are(model):
    assert read(model, dim=len(LogJoint(model).latents.unconstrain(LogJoint(model).structure.initial))) is None


def test_a_funnel_is_a_gaussian_to_fit():
    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(9), (0.5 * v).exp()).to_event(1))

    fit = pf.fit(funnel, **QUICK)
    assert fit.record["flow"] == "gaussian"
    assert fit.record["non_centred"] == ["x"]
    assert fit.diagnose().ess_fraction > 0.999
    v = fit.sample(40_000, seed=1)["v"]
    assert abs(float(v.mean())) < 0.07 and float(v.std()) == pytest.approx(3.0, abs=0.05)  # 4.6 standard errors


@pytest.fixture(scope="module")
def schools():
    return pf.fit(centred, STUDY.y, STUDY.sigma, **QUICK)


def test_the_tail_of_the_scale_is_there(schools):
    # By quadrature: P(log tau < -3) = 0.0101 and P(log tau < -5) = 0.0014; an affine flow of centred effects has 0.004 and 0.
    log_tau = schools.sample(100_000, seed=1)["tau"].log()
    assert float((log_tau < -3).float().mean()) == pytest.approx(0.0101, abs=0.003)
    assert float((log_tau < -5).float().mean()) == pytest.approx(0.0014, abs=0.001)
    assert schools.diagnose().ess_fraction > 0.99


@pytest.mark.parametrize("how", [copy.deepcopy, lambda fit: pickle.loads(pickle.dumps(fit))])
def test_copies_keep_the_coordinates(schools, how):
    guide = how(schools.guide)
    z = torch.randn(3, 10)
    assert torch.equal(guide.distribution.log_prob(z), schools.guide.distribution.log_prob(z))


def test_the_guide_works_where_pyro_expects_one(schools):
    torch.manual_seed(0)
    elbo = pyro.infer.Trace_ELBO(num_particles=500, vectorize_particles=True)
    assert -elbo.loss(centred, schools.guide, STUDY.y, STUDY.sigma) == pytest.approx(schools.diagnose().elbo, abs=0.05)
    values = schools.sample(5, seed=0)
    z = schools.guide.unconstrain({name: values[name] for name in ("mu", "tau", "theta")})
    assert torch.allclose(schools.guide.constrain(z)[0]["theta"], values["theta"], rtol=1e-3, atol=1e-3)


def test_another_fit_starts_in_the_coordinates_of_an_earlier_one(schools):
    again = pf.fit(centred, STUDY.y, STUDY.sigma, guide="affine", init=schools, max_steps=1, **QUICK)
    assert again.record["start"] == "earlier fit"
    assert again.guide.coordinates is not None
    assert again.diagnose().ess_fraction > 0.1


def test_coordinates_are_put_in_place_and_taken_away():
    guide = pf.AutoFlow(fixed_scale, "affine", init_loc_fn=init_to_median)
    with pytest.raises(ValueError, match="not set up"):
        guide.set_coordinates(None)
    guide.setup()
    layer, _ = read(nested, dim=5)
    with pytest.raises(ValueError, match="5 variables and the guide 4"):
        guide.set_coordinates(layer)
    with pytest.raises(ValueError, match="must be a FlowTransform"):
        guide.set_coordinates("non-centred")
    assert guide.coordinates is None


@pytest.mark.parametrize("wanted", [True, False])
def test_the_coordinates_can_be_named(wanted):
    fit = pf.fit(centred, STUDY.y, STUDY.sigma, guide="affine", non_centred=wanted, max_steps=1, **QUICK)
    assert fit.record["non_centred"] == (["theta"] if wanted else [])
    with pytest.raises(ValueError, match="non_centred must be True, False or None"):
        pf.fit(centred, STUDY.y, STUDY.sigma, non_centred="yes", **QUICK)


@pytest.mark.slow
def test_a_prior_of_changing_family_is_no_hierarchy():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        pyro.sample("a", dist.Normal(mu, tau) if mu.item() > 0 else dist.Logistic(mu, tau))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(0.5))

    fit = pf.fit(model, guide="affine", max_steps=2, **QUICK)
    assert fit.record["non_centred"] == []


def test_what_is_no_truth_value_is_refused():
    for wrong in (0, 1, "no"):
        with pytest.raises(ValueError, match="non_centred must be True, False or None"):
            pf.fit(fixed_scale, non_centred=wrong, **QUICK)
    with pytest.raises(ValueError, match="init: "):
        pf.fit(fixed_scale, init={"mean": "a", "x": torch.zeros(3)}, **QUICK)


def test_a_state_of_other_coordinates_is_refused(schools):
    guide = pf.AutoFlow(centred, "real_nvp").setup(STUDY.y, STUDY.sigma)
    with pytest.raises(ValueError, match="of another flow, base or coordinates"):
        guide.load_state_dict(schools.guide.state_dict())
