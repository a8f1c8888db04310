"""Calls in processes of which some are killed."""

from __future__ import annotations

import os
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flows import studies
from pyro_flows.model.parallel import WorkerDiedError, in_processes
from pyro_flows.model.simulate import simulate
from pyro_flows.model.simulator import SimulatorModel


def deadly(number, bad):
    if number in bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_a_process_that_dies_costs_its_own_call_only():
    found = dict(in_processes(deadly, [(number, (3,)) for number in range(20)], 2))
    died = {number for number, result in found.items() if isinstance(result, WorkerDiedError)}
    assert died == {3}
    assert all(found[number] == number**2 for number in range(20) if number not in died)


@pytest.mark.parametrize("wrong", [0, -2, 1.5, True, "all"])
def test_a_number_of_processes_that_is_none(wrong):
    with pytest.raises(ValueError, match="num_workers must be a number of processes"):
        list(in_processes(pow, [(1, 1)], wrong))


def prior():
    pyro.sample("rate", dist.Uniform(0.0, 1.0))


def crashing(latents):
    if latents["rate"] > 0.9:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(latents["rate"])


@pytest.mark.slow
def test_a_simulator_that_takes_its_process_down_has_failed_there():
    model = SimulatorModel(prior, crashing)
    with pytest.warns(UserWarning, match="WorkerDiedError: the process that ran it died"):
        found = simulate(model, num_simulations=40, num_workers=2, seed=0, progress=False)
    rates = found.latents["rate"]
    assert rates.max() <= 0.9 and torch.equal(found.observations["x"], rates)
    assert 30 <= len(found) < 40


class Crashing:
    """An exact posterior that kills its process for large data."""

    def __call__(self, data, count):
        if data["y"] > 2.0:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": data["y"] / 2 + 0.5**0.5 * torch.randn(count)}


def conjugate(y=None):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


@pytest.mark.slow
def test_a_fit_of_a_study_that_takes_its_process_down_is_counted():
    options = {"num_simulations": 40, "observed": ["y"], "seed": 0, "progress": False, "max_failed": 0.3}
    found = studies.sbc(conjugate, posterior=Crashing(), num_workers=2, **options)
    (words,) = found.failures
    assert "died" in words and 0 < found.failures[words] < 10
