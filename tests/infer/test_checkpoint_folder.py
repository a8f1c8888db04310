"""Runs that are killed and go on: the end is bit by bit that of a run that was not."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_flows as pf
from pyro_flows.infer import CheckpointFolder, traced_gradient
from pyro_flows.infer.digest import digest
from pyro_flows.infer.noted_run import checkpoints, remembered
from pyro_flows.io import tensor_file

Y = torch.tensor([1.0, 2.0, 3.0, 5.0])


class Killed(BaseException):
    """Stands for the end of the process."""


def normal(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    sd = pyro.sample("sd", dist.HalfNormal(5.0))
    pyro.sample("y", dist.Normal(mean, sd).expand([4]).to_event(1), obs=y)


def subsampled(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 4, subsample_size=2) as i:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[i])


class Killer:
    """Counts what training does in all runs, and ends a run after so many steps."""

    def __init__(self, monkeypatch):
        self.steps, self.last = 0, None
        true_step = torch.optim.Adam.step

        def step(optimizer, *args, **kwargs):
            self.steps += 1
            if self.last is not None and self.steps > self.last:
                raise Killed
            return true_step(optimizer, *args, **kwargs)

        monkeypatch.setattr(torch.optim.Adam, "step", step)

    def run(self, make, last):
        self.steps, self.last = 0, last
        return make()

    def killed_and_resumed(self, make, every):
        """Runs that are killed after ever more steps until one comes through, and how many steps they took in all."""
        steps, runs = 0, 0
        while True:
            runs += 1
            try:
                done = self.run(make, every)
            except Killed:
                steps += self.steps
                assert runs < 60
            else:
                return done, steps + self.steps, runs


@pytest.fixture
def killer(monkeypatch):
    return Killer(monkeypatch)


def same(a, b):
    if isinstance(a, pf.Fit):
        first, second = a.sample(20, seed=5), b.sample(20, seed=5)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        assert a.losses == b.losses and a.stop_reason == b.stop_reason
        ours, theirs = dict(a.record), dict(b.record)
        for record in (ours, theirs):
            for key in ("seconds", "resumed", "traced"):
                record.pop(key, None)
        assert ours == theirs
    else:
        assert a.losses == b.losses and a.validation_losses == b.validation_losses and a.stop_reason == b.stop_reason


def small(input_dim, context_dim=0):
    return pf.flows.real_nvp(input_dim, context_dim, num_layers=2, hidden_dims=(8,))


FITS = {
    "a flow": lambda **o: pf.fit(normal, Y, guide=small, max_steps=90, num_particles=16, **o),
    "the search": lambda **o: pf.fit(normal, Y, max_steps=90, num_particles=16, **o),
    "a model that draws minibatches": lambda **o: pf.fit(subsampled, Y, max_steps=60, num_particles=16, **o),
    "flows on grids": lambda **o: pf.fit(normal, Y, guide="naf", max_steps=40, num_particles=16, **o),
}


def quick(**options):
    return pf.fit(normal, Y, guide="affine", max_steps=90, num_particles=16, **options)


SLOW = ("a flow", "flows on grids", "the search")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in FITS])
def test_a_fit_that_is_killed_ends_as_one_that_is_not(kind, killer, tmp_path, monkeypatch):
    monkeypatch.setattr(traced_gradient, "HOT", 20)
    whole = killer.run(lambda: FITS[kind](seed=3, progress=False), None)
    straight = killer.steps

    def part():
        return FITS[kind](seed=3, progress=False, checkpoint=CheckpointFolder(tmp_path / "run", every=0.0))

    resumed, steps, runs = killer.killed_and_resumed(part, straight // 2 + 7)
    assert runs > 1 and steps <= straight + 2 * runs
    same(resumed, whole)
    assert resumed.record["resumed"]
    again = killer.run(part, 0)  # no step is taken any more
    same(again, whole)


def test_steps_between_the_last_checkpoint_and_the_kill_are_made_again(killer, tmp_path, monkeypatch):
    """The clock stands still: no checkpoint of the training under way is written, and all of its steps are made twice."""
    whole = killer.run(lambda: quick(seed=3, progress=False), None)
    straight = killer.steps

    def part():
        return quick(seed=3, progress=False, checkpoint=CheckpointFolder(tmp_path / "run", every=1e6))

    with pytest.raises(Killed):
        killer.run(part, straight // 2)
    same(killer.run(part, None), whole)
    assert killer.steps == straight


@pytest.mark.parametrize("batches", ["list", "shuffled", "own generator"])
def test_a_guide_of_plates_goes_on_at_its_minibatch(batches, killer, tmp_path):
    x = torch.linspace(-1, 1, 24)

    def model(i, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 24, subsample=i):
            local = pyro.sample("local", dist.Normal(slope * x[i], 0.5))
            pyro.sample("y", dist.Normal(local, 0.3), obs=y)

    index, y = torch.arange(24), 0.7 * x

    def run(**options):
        data = TensorDataset(index, y)
        torch.manual_seed(8)  # of the guide's weights, as a user would
        guide = pf.AutoPlateFlow(model, {"data": 4}, flow="affine")
        minibatches = {
            "list": [(index[k : k + 8], y[k : k + 8]) for k in (0, 8, 16)],
            "shuffled": DataLoader(data, batch_size=8, shuffle=True),
            "own generator": DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1)),
        }[batches]
        more = {"minibatches": minibatches, "max_steps": 40, "num_particles": 2, "seed": 0, "progress": False}
        return pf.fit(model, index, y, guide=guide, **more, **options)

    whole = killer.run(run, None)
    straight = killer.steps
    part = lambda: run(checkpoint=CheckpointFolder(tmp_path / "run", every=0.0))  # noqa: E731
    resumed, _, runs = killer.killed_and_resumed(part, straight // 3 + 1)
    assert runs > 1
    same(resumed, whole)


DENSITIES = {
    "a named flow": lambda x, **o: pf.fit_density("real_nvp", x, **o),
    "a flow of one's own": lambda x, **o: pf.fit_density(pf.flows.maf(2), x, **o),
    "flow matching": lambda x, **o: pf.fit_density("cnf", x, objective="flow_matching", **o),
    "mixture by EM": lambda x, **o: pf.fit_density(
        pf.distributions.FlowMixture([pf.FlowDistribution(pf.flows.affine(2)) for _ in range(2)]), x, objective="em", **o
    ),
}


@pytest.mark.parametrize("kind", DENSITIES)
def test_a_density_that_is_killed_ends_as_one_that_is_not(kind, killer, tmp_path):
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))

    def run(**options):
        torch.manual_seed(8)  # of the weights of a flow of one's own
        return DENSITIES[kind](x, max_epochs=6, batch_size=100, seed=1, progress=False, **options)

    whole = killer.run(run, None)
    straight = killer.steps
    part = lambda: run(checkpoint=CheckpointFolder(tmp_path / "run", every=0.0))  # noqa: E731
    resumed, _, runs = killer.killed_and_resumed(part, straight - 9 if "mixture" in kind else straight // 3 + 2)
    assert runs > 1
    same(resumed, whole)
    assert torch.equal(resumed.log_prob(x), whole.log_prob(x))


@pytest.mark.parametrize("fresh", [True, False])
def test_an_amortised_guide_that_is_killed_ends_as_one_that_is_not(fresh, killer, tmp_path):
    drawn = []

    def model(y=None):
        drawn.append(None)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)

    def run(**options):
        torch.manual_seed(8)
        guide = pf.AmortizedFlow(model, observed=["y"], num_members=2)
        more = {"num_simulations": 300, "fresh": fresh, "max_epochs": 3, "batch_size": 60, "seed": 1, "progress": False}
        fit = pf.fit_amortized(guide, **more, **options)
        return fit, guide.sample(torch.ones(3), 10, seed=2)["mean"]

    whole, draws = killer.run(run, None)
    straight = killer.steps
    part = lambda: run(checkpoint=CheckpointFolder(tmp_path / "run", every=0.0))  # noqa: E731
    (resumed, resumed_draws), _, runs = killer.killed_and_resumed(part, straight // 3 + 1)
    assert runs > 1
    same(resumed, whole)
    assert torch.equal(resumed_draws, draws)
    assert torch.equal(resumed.simulations.observations["y"], whole.simulations.observations["y"])


def test_without_a_seed_a_run_goes_on_with_its_own_random_numbers(killer, tmp_path):
    part = lambda: quick(progress=False, checkpoint=CheckpointFolder(tmp_path / "run", every=0.0))  # noqa: E731
    state = torch.get_rng_state()
    whole = killer.run(lambda: quick(progress=False), None)
    torch.set_rng_state(state)
    with pytest.raises(Killed):
        killer.run(part, 60)
    torch.manual_seed(12345)
    same(killer.run(part, None), whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": Y + 1}, "its arguments differ"),
        ({"seed": 4}, "its seed differ"),
        ({"max_steps": 59}, "its options differ"),
        ({"guide": "maf"}, "its guide differ"),
    ],
)
def test_another_run_is_refused_and_leaves_the_folder_alone(change, said, tmp_path):
    def run(data=Y, guide="affine", max_steps=60, seed=3):
        return pf.fit(normal, data, guide=guide, max_steps=max_steps, seed=seed, progress=False, checkpoint=tmp_path / "run")

    run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=said):
        run(**change)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_another_model_with_the_same_data_is_refused(tmp_path):
    def run(scale):
        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)

        return pf.fit(model, Y, guide="affine", max_steps=60, seed=3, progress=False, checkpoint=tmp_path / "run")

    run(1.0)
    with pytest.raises(ValueError, match="of another run: its weights differ"):
        run(2.0)


def test_a_guide_that_is_given_is_not_trained_on_under_another_model(tmp_path):
    def run(scale):
        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)

        torch.manual_seed(8)
        return pf.fit(
            model, Y, guide=pf.AutoFlow(model, flow="affine"), max_steps=60, seed=3, progress=False, checkpoint=tmp_path / "run"
        )

    assert run(1.0).losses == run(1.0).losses
    with pytest.raises(ValueError, match="of another run: its model differ"):
        run(2.0)


def test_other_minibatches_are_another_run(tmp_path):
    def model(y):
        with pyro.plate("data", 4, subsample=torch.arange(2)):
            local = pyro.sample("local", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(local, 1.0), obs=y)

    options = {"max_steps": 4, "num_particles": 2, "seed": 0, "progress": False, "checkpoint": tmp_path / "run"}
    fits = [[(Y[:2],)], [(Y[:2],)], [(Y[2:],)]]
    for batches in fits[:2]:
        torch.manual_seed(8)
        pf.fit(model, Y[:2], guide=pf.AutoPlateFlow(model, {"data": 4}, flow="affine"), minibatches=batches, **options)
    with pytest.raises(ValueError, match="its arguments differ"):
        pf.fit(model, Y[:2], guide=pf.AutoPlateFlow(model, {"data": 4}, flow="affine"), minibatches=fits[2], **options)


def test_a_folder_in_use_is_refused(tmp_path):
    with CheckpointFolder(tmp_path / "run"), pytest.raises(ValueError, match="is in use by a run that has not ended"):
        quick(progress=False, checkpoint=tmp_path / "run")


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x04\x95", "truncated", "flipped"])
def test_a_damaged_file_is_named(damage, tmp_path):
    run = lambda: pf.fit(normal, Y, guide="affine", max_steps=60, seed=3, progress=False, checkpoint=tmp_path / "run")  # noqa: E731
    run()
    path = tmp_path / "run" / "0.safetensors"
    whole = path.read_bytes()
    flipped = bytes(byte ^ (255 if 20 < i < 60 else 0) for i, byte in enumerate(whole))
    path.write_bytes({"truncated": whole[: len(whole) // 2], "flipped": flipped}.get(damage, damage))
    with pytest.raises(ValueError, match=r"0\.safetensors"):
        run()


def test_a_missing_file_is_missed(tmp_path):
    run = lambda: pf.fit(normal, Y, guide="affine", max_steps=60, seed=3, progress=False, checkpoint=tmp_path / "run")  # noqa: E731
    run()
    (tmp_path / "run" / "0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"0\.safetensors is missing"):
        run()


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    whole = quick(seed=3, progress=False)
    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.warns(UserWarning, match="could not be written .*No space left on device.*training goes on"):
        fit = quick(seed=3, progress=False, checkpoint=CheckpointFolder(tmp_path / "run", every=0.0))
    same(fit, whole)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name != ".lock"]


def test_ctrl_c_leaves_a_run_that_can_go_on(tmp_path, killer):
    whole = killer.run(lambda: quick(seed=3, progress=False), None)

    def stop(step, loss):
        if step == 50:
            raise KeyboardInterrupt

    options = {"seed": 3, "progress": False, "checkpoint": CheckpointFolder(tmp_path / "run", every=0.0)}
    stopped = quick(callback=stop, **options)
    assert stopped.stop_reason == "interrupted"
    same(quick(**options), whole)


def test_generators_of_python_and_numpy_go_on_too(tmp_path):
    drawn = []
    for attempt in range(2):
        random.seed(attempt)
        np.random.seed(attempt)
        with checkpoints(tmp_path / "run", dict):
            drawn.append((random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_a_value_that_took_long_is_remembered_alone_in_its_run(tmp_path):
    assert remembered("x", lambda: 1, torch.device("cpu")) == 1
    seen = []
    for _ in range(2):
        with checkpoints(tmp_path / "run", dict):
            found = remembered("x", lambda: seen.append(None) or [1.5, float("inf"), torch.ones(1)], torch.device("cpu"))
            assert found[:2] == [1.5, float("inf")] and torch.equal(found[2], torch.ones(1))
    assert len(seen) == 1
    with checkpoints(tmp_path / "run", dict):  # a file is of no device
        assert remembered("x", list, torch.device("meta"))[2].is_meta


BAD = [("", 1.0, "checkpoint"), (3, 1.0, "checkpoint"), ("x", -1.0, "every"), ("x", True, "every")]


@pytest.mark.parametrize(("path", "every", "said"), BAD)
def test_bad_arguments_are_named(path, every, said):
    with pytest.raises(ValueError, match=said):
        CheckpointFolder(path, every=every)


def test_digests_tell_data_apart():
    tensors = [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, 1),
        torch.zeros(0),
        torch.tensor([0.0, -0.0, 0.0]),
    ]
    plain = [[0.0] * 3, None, "a", b"a", 1, 1.0, True, {"a": 1}, {"a": 2}]
    values = [*tensors, *plain, np.zeros(3), torch.nn.Linear(1, 1), torch.tensor(True)]
    assert len({digest(value) for value in values}) == len(values)
