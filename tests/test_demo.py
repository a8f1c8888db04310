"""The demonstration: what it writes, what it says, and that both forms of the model are one posterior."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_flows as pf
from pyro_flows import demo
from pyro_flows.__main__ import main


def log_joint(model, **values) -> torch.Tensor:
    y, sigma, _ = pf.data.eight_schools()
    return poutine.trace(poutine.condition(model, data=values)).get_trace(y, sigma).log_prob_sum()


def test_both_forms_are_one_posterior():
    mu, tau, z = torch.tensor(4.0), torch.tensor(2.5), torch.linspace(-1.5, 1.0, 8)
    centred = log_joint(demo.centred, mu=mu, tau=tau, theta=mu + tau * z)
    non_centred = log_joint(demo.non_centred, mu=mu, tau=tau, z=z)
    torch.testing.assert_close(centred, non_centred - 8 * tau.log())


def test_log_joint_is_the_one_of_the_study():
    y, sigma, _ = pf.data.eight_schools()
    mu, tau, theta = torch.tensor(4.0), torch.tensor(2.5), torch.linspace(-1.5, 9.0, 8)
    expected = (
        dist.Normal(0.0, 5.0).log_prob(mu)
        + dist.HalfCauchy(5.0).log_prob(tau)
        + dist.Normal(mu, tau).log_prob(theta).sum()
        + dist.Normal(theta, sigma).log_prob(y).sum()
    )
    torch.testing.assert_close(log_joint(demo.centred, mu=mu, tau=tau, theta=theta), expected)


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory):
    """The folder the demo wrote to (one that was not there before) and what it printed."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("demo") / "made" / "by-demo"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["demo", "--quick", "--no-progress", "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_demo_writes_what_it_says(quick_demo):
    out, printed = quick_demo
    for name in ("posterior.nc", "posterior_centred.nc", "posterior.png"):
        assert (out / name).stat().st_size > 1000
        assert str(out / name) in printed


def test_demo_prints_summary_and_diagnosis_of_both_forms(quick_demo):
    _, printed = quick_demo
    for heading in ("Eight schools, non-centred", "Eight schools, centred"):
        assert heading in printed
    assert printed.count("tau") >= 2
    assert printed.lower().count("verdict") >= 2


def test_written_posterior_can_be_read_again(quick_demo):
    import arviz

    out, _ = quick_demo
    for name in ("posterior.nc", "posterior_centred.nc"):
        posterior = arviz.from_netcdf(out / name)["posterior"]
        assert {"mu", "tau", "theta"} <= set(posterior.data_vars)
        assert posterior["theta"].sizes["school"] == 8


@pytest.mark.slow
def test_default_settings_earn_a_good_word(tmp_path):
    """The non-centred form is fitted well enough to use, and the file holds the known posterior mean of mu."""
    import arviz

    assert main(["demo", "--no-progress", "--out", str(tmp_path)]) == 0
    posterior = arviz.from_netcdf(tmp_path / "posterior.nc")["posterior"]
    assert float(posterior["mu"].mean()) == pytest.approx(4.4, abs=0.3)
