"""What goes wrong around a fit: memory that runs out, other threads and processes, a parameter store that is cleared."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from raising import raises_above

import pyro_flows as pf
from pyro_flows.infer import traced_gradient
from pyro_flows.model import LogJoint
from pyro_flows.model.memory import is_out_of_memory

OPTIONS = {"guide": "affine", "max_steps": 80, "num_particles": 64, "progress": False}


def normal(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)


def learnt(y):
    mean = pyro.sample("mean", dist.Normal(pyro.param("prior", torch.tensor(0.0)), 1.0))
    pyro.deterministic("twice", 2 * mean + pyro.param("shift", torch.tensor(1.0), constraint=dist.constraints.positive))
    pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)


Y = torch.tensor([1.0, 2.0, 3.0])

# Memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) is expected


def test_where_memory_runs_out_the_model_runs_for_fewer_particles(monkeypatch):
    true = LogJoint._at_once

    def limited(self, z):
        if len(z) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(self, z)

    expected = pf.fit(normal, Y, seed=0, **OPTIONS)
    monkeypatch.setattr(LogJoint, "_at_once", limited)
    with pytest.warns(UserWarning, match="memory ran out with .* particles at once"):
        fit = pf.fit(normal, Y, seed=0, **OPTIONS)
    assert fit.record["particles_at_once"] <= 20 and any("memory ran out" in reason for reason in fit.record["path_reasons"])
    assert torch.allclose(torch.tensor(fit.losses), torch.tensor(expected.losses), atol=1e-4)


def test_memory_that_runs_out_on_the_way_back(monkeypatch):
    true = traced_gradient.path_gradient

    def limited(distribution, log_density, *args):
        if log_density.particles_at_once > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(distribution, log_density, *args)

    monkeypatch.setattr(traced_gradient, "path_gradient", limited)
    with pytest.warns(UserWarning, match="memory ran out"):
        fit = pf.fit(normal, Y, seed=0, **OPTIONS)
    assert fit.record["particles_at_once"] == 16 and fit.diagnose().verdict == "good"


def test_memory_that_is_not_enough_for_one_is_an_error(monkeypatch):
    log_joint = LogJoint(normal, (Y,))

    def nothing(self, z):
        raise MemoryError("no memory at all")

    monkeypatch.setattr(LogJoint, "_at_once", nothing)
    with pytest.warns(UserWarning), pytest.raises(MemoryError, match="no memory at all"):
        log_joint(torch.zeros(8, 1))
    monkeypatch.setattr(LogJoint, "_at_once", lambda self, z: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        log_joint(torch.zeros(8, 1))


# Threads and processes


def test_fits_in_threads_are_those_of_one_thread():
    def run(seed):
        fit = pf.fit(normal, Y + seed, seed=seed, **OPTIONS)
        return fit.losses, fit.sample(10, seed=1)["mean"]

    alone = [run(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(run, range(3)))
    for (losses, draws), (losses_then, draws_then) in zip(alone, together, strict=True):
        assert losses == losses_then and torch.equal(draws, draws_then)


def test_draws_while_another_thread_fits():
    fit = pf.fit(normal, Y, seed=0, **OPTIONS)
    expected = fit.sample(100, seed=3)["mean"], fit.diagnose(num_samples=500, seed=3).elbo
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(lambda: [pf.fit(normal, Y, seed=1, **OPTIONS).losses for _ in range(2)])
        found = [(fit.sample(100, seed=3)["mean"], fit.diagnose(num_samples=500, seed=3).elbo) for _ in range(10)]
        first, second = other.result()
    assert all(torch.equal(draws, expected[0]) and elbo == expected[1] for draws, elbo in found)
    assert first == second == pf.fit(normal, Y, seed=1, **OPTIONS).losses


@pytest.mark.slow
def test_two_processes_at_once_give_the_same():
    script = (
        "import torch, pyro, pyro.distributions as dist, pyro_flows as pf\n"
        "torch.set_num_threads(1)\n"
        "def model(y):\n"
        "    mean = pyro.sample('mean', dist.Normal(0.0, 5.0))\n"
        "    pyro.sample('y', dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)\n"
        "options = {'guide': 'affine', 'max_steps': 80, 'num_particles': 64, 'progress': False}\n"
        "fit = pf.fit(model, torch.tensor([1.0, 2.0, 3.0]), seed=0, **options)\n"
        "print(fit.losses[-1])\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    found = {run.communicate(timeout=300)[0] for run in runs}
    assert found == {f"{pf.fit(normal, Y, seed=0, **OPTIONS).losses[-1]}\n".encode()}


# The parameter store


def test_a_fit_keeps_what_its_model_learnt():
    fit = pf.fit(learnt, Y, seed=0, **OPTIONS)
    store = pyro.get_param_store()
    before, verdict, prior = fit.sample(20, seed=1), fit.diagnose(num_samples=500, seed=1), float(store["prior"].detach())
    assert abs(prior) > 0.05
    copies = [fit, copy.deepcopy(fit), pickle.loads(pickle.dumps(fit))]
    pyro.clear_param_store()
    pf.fit(learnt, Y - 5, seed=1, **OPTIONS)
    assert abs(float(store["prior"].detach()) - prior) > 0.05
    for each in copies:
        after = each.sample(20, seed=1)
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        assert each.diagnose(num_samples=500, seed=1).elbo == verdict.elbo


def test_saved_parameters_are_those_of_the_fit(tmp_path):
    fit = pf.fit(learnt, Y, seed=0, **OPTIONS)
    expected = fit.sample(20, seed=1)
    pyro.clear_param_store()
    fit.save(tmp_path / "fit")
    again = pf.load(tmp_path / "fit", learnt, Y)
    assert all(torch.equal(value, again.sample(20, seed=1)[name]) for name, value in expected.items())


def test_a_store_that_is_cleared_in_the_middle_is_said():
    def clear(step, loss):
        if step == 40:
            pyro.clear_param_store()

    with pytest.raises(ValueError, match="'prior' of the model was removed from Pyro's parameter store"):
        pf.fit(learnt, Y, seed=0, callback=clear, **OPTIONS)
    fit = pf.fit(normal, Y, seed=0, callback=clear, **OPTIONS)  # has nothing in it
    assert fit.losses == pf.fit(normal, Y, seed=0, **OPTIONS).losses


def test_a_fit_leaves_nothing_of_its_own_in_the_store():
    pyro.clear_param_store()
    pf.fit(normal, Y, seed=0, **OPTIONS)
    assert not list(pyro.get_param_store().keys())
    pf.fit(learnt, Y, seed=0, **OPTIONS)
    assert sorted(pyro.get_param_store().keys()) == ["prior", "shift"]


def test_a_model_that_raises_far_out_is_fitted_and_reported():
    """P(x > 2) is 0.004 under the posterior N(0.15, 0.5): draws there are left out, counted and explained."""

    fit = pf.fit(raises_above(2.0), torch.tensor(0.3), guide="affine", num_particles=32, max_steps=60, seed=0, progress=False)
    diagnosis = fit.diagnose(2000)
    assert diagnosis.verdict == "poor" and diagnosis.num_nonfinite > 0
    assert "It raised ValueError: the solver did not converge" in diagnosis.advice


def test_predictions_are_made_where_the_model_does_not_raise():
    fit = pf.fit(raises_above(1.5), torch.tensor(0.3), guide="affine", num_particles=32, max_steps=60, seed=0, progress=False)
    with pytest.warns(UserWarning, match="predictive draws are NaN, for the model raised ValueError"):
        drawn = fit.predict(500, seed=0)["y"]
    assert 0 < int(drawn.isnan().sum()) < 50
    assert fit.predict(100, resample="psis", seed=0)["y"].isfinite().all()
