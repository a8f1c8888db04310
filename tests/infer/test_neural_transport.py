"""Chains in the latent space of a flow: right whatever the flow, and honest about themselves."""

from __future__ import annotations

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.infer.neural_transport import Chains, neural_transport

Y = torch.tensor([1.2, 0.4, 2.1, 1.7])


def conjugate(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    pyro.deterministic("double", 2 * mean)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture(scope="module")
def rough():
    """A guide trained so little that it is wrong."""
    return pf.fit(conjugate, Y, guide="affine", init={"mean": torch.tensor(3.0)}, max_steps=3, seed=0, progress=False)


@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
def test_a_wrong_guide_is_corrected(rough, kernel):
    data = rough.refine_mcmc(400, num_chains=2, warmup_steps=200, kernel=kernel, seed=1, progress=False)
    posterior = data["posterior"]
    assert posterior["mean"].shape == (2, 400)
    precision = 1 / 4 + 4
    ess = float(arviz.ess(posterior["mean"].values))
    error = precision**-0.5 / ess**0.5
    assert abs(float(posterior["mean"].mean()) - float(Y.sum()) / precision) < 4.5 * error
    assert float(arviz.rhat(posterior["mean"].values)) < 1.03
    assert np.allclose(posterior["double"], 2 * posterior["mean"], atol=1e-5)
    assert data["log_likelihood"]["y"].shape == (2, 400, 4)
    assert int(data["sample_stats"]["diverging"].sum()) == 0
    assert posterior.attrs["num_gradients"] > 2 * 600


def test_the_parameters_of_the_flow_stay_and_can_be_trained_on(rough):
    before = {name: value.clone() for name, value in rough.guide.state_dict().items()}
    rough.refine_mcmc(20, num_chains=1, warmup_steps=20, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in rough.guide.state_dict().items())
    assert all(parameter.requires_grad for parameter in rough.guide.parameters())


def test_a_seed_makes_chains_reproducible(rough):
    first, second = (
        rough.refine_mcmc(20, num_chains=2, warmup_steps=20, seed=3, progress=False)["posterior"]["mean"].values for _ in range(2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_bad_arguments_are_named(rough):
    for name, value in (("num_samples", 0), ("num_chains", 1.5), ("warmup_steps", -1), ("target_accept", 1.0), ("kernel", "gibbs")):
        with pytest.raises(ValueError, match=name):
            rough.refine_mcmc(**{name: value, "progress": False})


def test_draws_follow_the_density_of_any_flow():
    from pyro_flows import flows
    from pyro_flows.distributions import FlowDistribution

    torch.manual_seed(0)
    q = FlowDistribution(flows.planar(2, num_layers=2))
    chains = neural_transport(
        q, lambda z: -0.5 * (z - 1).square().sum(-1), num_samples=300, num_chains=2, warmup_steps=150, progress=False
    )
    assert isinstance(chains, Chains)
    draws = chains.latents.flatten(0, 1)
    assert (draws.mean(0) - 1).abs().max() < 0.35  # 4.5 standard errors at an effective size of 165 of 600
