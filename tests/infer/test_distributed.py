"""Two processes of torchrun train as one process on all the data does, and go on where they were killed."""

from __future__ import annotations

import copy
import importlib.util
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn

import pyro_flows as pf
from pyro_flows.infer import Checkpoint, Distributed, FullSize

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "distributed_vae.py"


def load_worker():
    spec = importlib.util.spec_from_file_location("distributed_worker", HERE / "distributed_worker.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()


def torchrun(script: Path, *arguments: str, cwd: Path, restarts: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
    # A restart through the store of the first attempt reads its addresses: https://github.com/pytorch/pytorch/issues/135712
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), environment.get("PYTHONPATH", "")])
    options = {"capture_output": True, "text": True, "check": False, "timeout": 200}
    done = subprocess.run([*command, str(script), *arguments], cwd=cwd, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What both processes found, the folder that they wrote to, and what they printed."""
    folder = tmp_path_factory.mktemp("distributed")
    done = torchrun(HERE / "distributed_worker.py", "check", str(folder), cwd=folder)
    # Files of our own, of this moment; they hold dictionaries of tensors.
    return [torch.load(folder / f"check-{rank}.pt", weights_only=True) for rank in (0, 1)], folder, done.stdout + done.stderr


# Two processes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("name", ["shard", "minibatch"])
def test_gradient_is_that_of_one_process_on_all_rows(checked, name, dtype, tolerance):
    """On the same noise, with 7 and 5 of 12 rows, and with minibatches of 3 and 2 of these."""
    y, noise, global_noise = worker.rows_and_noise(dtype)
    rows = torch.tensor([0, 1, 2, 7, 8])
    arguments = (y, noise, global_noise) if name == "shard" else (y[rows], noise[rows], global_noise, rows)
    expected = worker.gradients(worker.Loss(worker.LatentPerRow(dtype)), *arguments)
    for result in checked[0]:
        found = result[f"{name} {dtype}"]
        assert found.keys() == expected.keys()
        difference = torch.cat([(found[key] - expected[key]).flatten() for key in expected])
        assert float(difference.norm() / torch.cat([g.flatten() for g in expected.values()]).norm()) < tolerance


def test_posterior_is_that_of_all_data(checked):
    """Conjugate, shards of 18 and 12; without the full size its sd is that of half of the data, about √2 too large."""
    mean, sd = worker.posterior()
    for result in checked[0]:
        loc, scale = result["conjugate"]
        assert scale == pytest.approx(sd, rel=0.03)
        assert loc == pytest.approx(mean, abs=0.1 * sd)
        assert result["conjugate without full size"][1] == pytest.approx(sd * 2**0.5, rel=0.05)


def test_parameters_stay_equal_across_processes(checked):
    first, second = (result["trained"] for result in checked[0])
    for name in first.keys() - {"noise"}:
        assert torch.equal(first[name], second[name]), name


def test_noise_differs_between_processes(checked):
    first, second = checked[0]
    assert not torch.isclose(first["noise"], second["noise"]).any()
    assert not torch.isclose(first["trained"]["noise"], second["trained"]["noise"]).any()


def test_parameters_of_pyro_param_in_functions_are_shared_and_trained(checked):
    first, second = (result["params"] for result in checked[0])
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["begun"], first["scale"])


def test_mean_over_processes(checked):
    assert [result["mean"] for result in checked[0]] == [1.5, 1.5]


def test_only_the_first_process_shows_progress_and_writes(checked):
    _, folder, printed = checked
    assert "bar of rank 0" in printed and "bar of rank 1" not in printed
    assert {path.name for path in folder.glob("straight*")} == {"straight.pt"}


def test_killed_run_ends_in_the_same_place(checked, tmp_path):
    """The second process is killed by SIGKILL at step 20, four steps after a checkpoint; torchrun starts both again."""
    torchrun(HERE / "distributed_worker.py", "train", str(tmp_path), cwd=tmp_path, restarts=1)
    for rank in (0, 1):
        result = torch.load(tmp_path / f"train-{rank}.pt", weights_only=True)
        assert int(result.pop("restarts")) == 1
        expected = checked[0][rank]["trained"]
        assert result.keys() == expected.keys()
        for name, value in result.items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
def test_a_lost_process_is_an_error_of_the_other(sign, tmp_path):
    """Killed it is missed at once, stopped after the timeout of 12 seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    first, second = (
        subprocess.Popen(
            [sys.executable, str(HERE / "lost_worker.py"), sign],
            cwd=tmp_path,
            env={**os.environ, **address, "PYTHONPATH": path, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    )
    try:
        _, errors = first.communicate(timeout=100)
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert first.returncode == 1
    assert "RuntimeError: process 0 of 2 lost another one, which died or did not answer in time" in errors, errors


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), "60"])
def test_a_timeout_that_is_none(wrong):
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds, or None, got"):
        Distributed(timeout=wrong)


def test_checkpoint_of_two_processes_is_read_by_one(checked):
    results, folder, _ = checked
    with Distributed(device="cpu") as group:
        guide = pf.AutoFlow(worker.conjugate, flow="nsf_coupling", flow_options={"num_layers": 1, "hidden_dims": (4,)})
        guide.setup(worker.Y)
        loss = group.wrap(Trace_ELBO()(worker.conjugate, guide), worker.Y, full_size={"data": worker.TOTAL})
        optimizer = torch.optim.Adam(loss.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        checkpoint = Checkpoint(folder / "straight.pt", loss=loss, optimizer=optimizer, schedule=schedule)
        with pytest.raises(ValueError, match="written by 2 processes and is read by 1"):
            checkpoint.load()
        assert checkpoint.load(new_noise=True) == 24
    assert guide.state_dict().keys() == results[0]["trained"].keys() - {"noise"}


def test_example_runs_in_two_processes(tmp_path):
    printed = torchrun(EXAMPLE, "--quick", "--checkpoint", str(tmp_path / "vae.pt"), cwd=tmp_path).stdout
    assert printed.count("2 processes, 1800 images") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"vae.pt", "distributed_vae.png"}


# The full size of a plate, in one process


def TraceEnum():
    return pyro.infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)


def local_model(y, size=None, rows=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    plate = pyro.plate("data", len(y)) if size is None else pyro.plate("data", size, subsample=rows)
    with plate:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def local_guide(y, size=None, rows=None):
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))
    with pyro.plate("data", len(y)) if size is None else pyro.plate("data", size, subsample=rows):
        pyro.sample("z", dist.Normal(y * pyro.param("slope", torch.tensor(0.4)), 0.5))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceEnum, pyro.infer.TraceMeanField_ELBO])
def test_minibatch_counts_as_a_subsample_of_the_full_size(elbo):
    y, rows = torch.randn(4), torch.tensor([0, 2, 5, 9])
    pyro.set_rng_seed(1)
    expected = elbo().differentiable_loss(local_model, local_guide, y, 20, rows)
    pyro.set_rng_seed(1)
    with FullSize({"data": 20}):
        found = elbo().differentiable_loss(local_model, local_guide, y)
    torch.testing.assert_close(found, expected)
    pyro.set_rng_seed(1)
    with FullSize({"data": 20}):  # a plate that has its full size stays as it is
        again = elbo().differentiable_loss(local_model, local_guide, y, 20, rows)
    torch.testing.assert_close(again, expected)


def test_a_loop_over_a_plate_and_a_plate_inside_it_are_scaled_and_others_are_not():
    def model():
        pyro.sample("other", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))
        for i in pyro.plate("groups", 3):
            with pyro.plate(f"rows_{i}", 2):
                pyro.sample(f"y_{i}", dist.Normal(0.0, 1.0), obs=torch.ones(2))

    with FullSize({"groups": 12}):
        trace = poutine.trace(model).get_trace()
    assert [trace.nodes[name]["scale"] for name in ("other", "y_0", "y_1", "y_2")] == [1.0, 4.0, 4.0, 4.0]


def run_with(sizes, model=local_model, *arguments):
    with FullSize(sizes):
        return model(*arguments)


def two_sizes():
    for size in (2, 3):
        with pyro.plate("data", size):
            pyro.sample(f"y_{size}", dist.Normal(0.0, 1.0), obs=torch.zeros(size))


@pytest.mark.parametrize(
    ("sizes", "model", "arguments", "message"),
    [
        ({"date": 20}, local_model, (torch.zeros(4),), "no site of the model is in plate 'date'; it has \\['data'\\]"),
        ({"data": 3}, local_model, (torch.zeros(4),), "4 elements, more than its full size 3"),
        ({"data": 9}, two_sizes, (), "2 elements at one site and 3 at another"),
        ({"data": 2.5}, local_model, (), "must be a positive integer, got 2.5"),
        ({"data": 0}, local_model, (), "must be a positive integer, got 0"),
        (20, local_model, (), "must be a dictionary"),
    ],
)
def test_full_size_that_does_not_suit_is_refused(sizes, model, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_with(sizes, model, *arguments)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
def test_jit_elbo_is_refused():
    with pytest.raises(ValueError, match="JIT ELBO"), FullSize({"data": 20}):
        JitTrace_ELBO(ignore_jit_warnings=True).differentiable_loss(local_model, local_guide, torch.zeros(4))


# Wrapping


def embedding(model):
    return pf.AutoPlateFlow(model, context={"data": 2})


def test_encoder_of_auto_plate_flow_is_taken():
    y = torch.randn(4)

    class Encoder(nn.Linear):
        def forward(self, y):
            return super().forward(y[:, None])

    guide = pf.AutoPlateFlow(local_model, context={"data": Encoder(1, 3)}).setup(y)
    with Distributed(device="cpu") as group:
        loss = group.wrap(Trace_ELBO()(local_model, guide), y, full_size={"data": 8})
    loss(y).backward()
    assert all(parameter.grad is not None for parameter in guide.parameters() if parameter.numel())


@pytest.mark.parametrize("guide", [AutoNormal, AutoDiagonalNormal, pf.AutoFlow, embedding], ids=lambda guide: guide.__name__)
def test_guide_with_a_latent_per_element_of_a_shard_is_refused(guide):
    y = torch.randn(4)
    guide = guide(local_model)
    guide(y)
    with (
        Distributed(device="cpu") as group,
        pytest.raises(ValueError, match="a row for each of the 4 elements of plate 'data'.* of 8"),
    ):
        group.wrap(Trace_ELBO()(local_model, guide), y, full_size={"data": 8})


def test_guide_with_a_latent_per_element_of_all_data_is_taken():
    y = torch.randn(4)
    guide = pf.AutoFlow(local_model, flow="affine").setup(y)
    with Distributed(device="cpu") as group:
        group.wrap(Trace_ELBO()(local_model, guide), y, full_size={"data": 4})(y).backward()


def test_parameters_of_functions_and_constrained_parameters_are_trained():
    with Distributed(device="cpu") as group:
        loss = group.wrap(Trace_ELBO()(worker.conjugate, worker.guide_of_params), worker.Y, full_size={"data": worker.TOTAL})
    assert {name for name, _ in loss.named_parameters()} == {"loc", "scale"}
    before = pyro.param("scale").detach().clone()
    loss(worker.Y).backward()
    torch.optim.Adam(loss.parameters(), lr=0.1).step()
    assert not torch.equal(pyro.param("scale"), before)


def test_flow_of_pyro_module_in_a_function_is_trained():
    flow = pf.flows.affine(1)

    def model(y):
        pyro.module("flow", flow)
        with pyro.plate("data", len(y)):
            pyro.sample("y", pf.FlowDistribution(flow), obs=y[:, None])

    with Distributed(device="cpu") as group:
        loss = group.wrap(Trace_ELBO()(model, lambda y: None), worker.Y, full_size={"data": worker.TOTAL})
    assert {id(parameter) for parameter in loss.parameters()} == {id(parameter) for parameter in flow.parameters()}


def test_parameter_that_appears_later_is_refused():
    def guide(y, late=False):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
        if late:
            pyro.param("late", torch.zeros(()))

    def model(y, late=False):
        worker.conjugate(y)

    with Distributed(device="cpu") as group:
        loss = group.wrap(Trace_ELBO()(model, guide), worker.Y, full_size={})
    with pytest.raises(ValueError, match="'late' was not there when the loss was wrapped.*guide.setup"):
        loss(worker.Y, late=True)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self):
        return self.value


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda: None, "loss must be a module.*got function"),
        (Constant(torch.zeros(2)), "one number as a tensor, got \\(2,\\)"),
        (Constant(1.0), "one number as a tensor, got float"),
        (Constant(torch.zeros(())), "reaches no parameter that trains; call guide.setup"),
    ],
)
def test_loss_that_does_not_suit_is_refused(loss, message):
    with Distributed(device="cpu") as group, pytest.raises(ValueError, match=message):
        group.wrap(loss, full_size={})


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None, True])
def test_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        Distributed(seed)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU of its own, there are 2"), Distributed():
        pass


# Checkpoints


def small_state():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2)).backward()
    optimizer.step()
    return module, optimizer


def test_checkpoint_restores_states_and_generators(tmp_path):
    module, optimizer = small_state()
    checkpoint = Checkpoint(tmp_path / "new" / "run.pt", module=module, optimizer=optimizer)
    assert checkpoint.load() == 0
    checkpoint.save(5)
    weight = module.weight.detach().clone()
    expected = torch.rand(()), np.random.rand(), random.random(), random.gauss(0, 1)
    other, other_optimizer = small_state()
    assert Checkpoint(tmp_path / "new" / "run.pt", module=other, optimizer=other_optimizer).load() == 5
    assert (torch.rand(()), np.random.rand(), random.random(), random.gauss(0, 1)) == expected
    assert torch.equal(other.weight, weight)
    assert torch.equal(next(iter(other_optimizer.state.values()))["exp_avg"], next(iter(optimizer.state.values()))["exp_avg"])


def test_write_that_is_cut_short_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    module, _ = small_state()
    checkpoint = Checkpoint(tmp_path / "run.pt", module=module)
    checkpoint.save(5)

    def cut_short(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut_short)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(6)
    assert checkpoint.load() == 5


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1, "states": Evil(), "generators": []}, "run.pt")
    with pytest.raises(ValueError, match="no checkpoint, or a damaged one"):
        Checkpoint("run.pt", module=nn.Linear(1, 1)).load()
    assert not Path("evil").exists()


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:200], lambda data: b"text"], ids=["empty", "cut", "text"])
def test_damaged_file_is_refused(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path / "run.pt", module=nn.Linear(1, 1))
    checkpoint.save(1)
    checkpoint.path.write_bytes(damage(checkpoint.path.read_bytes()))
    with pytest.raises(ValueError, match="no checkpoint, or a damaged one"):
        checkpoint.load()


def test_checkpoint_of_something_else_is_refused(tmp_path):
    Checkpoint(tmp_path / "run.pt", module=nn.Linear(1, 1)).save(1)
    with pytest.raises(ValueError, match="holds another module than the one"):
        Checkpoint(tmp_path / "run.pt", module=nn.Linear(2, 1)).load()
    with pytest.raises(ValueError, match=r"holds the states of \['module'\], and those of \['loss'\]"):
        Checkpoint(tmp_path / "run.pt", loss=nn.Linear(1, 1)).load()
    with pytest.raises(ValueError, match="states is empty"):
        Checkpoint(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="optimizer must have state_dict"):
        Checkpoint(tmp_path / "run.pt", optimizer=3)


# Devices


def device_model(y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), y.new_ones(())))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, y.new_ones(())), obs=y)


def train_on(group, path, guide, y):
    guide = copy.deepcopy(guide)
    loss = group.wrap(Trace_ELBO()(device_model, guide), y, full_size={"data": 2 * len(y)})
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    checkpoint = Checkpoint(path, loss=loss, optimizer=optimizer)
    values = []
    for step in range(checkpoint.load(), 4):
        optimizer.zero_grad()
        value = loss(y)
        value.backward()
        optimizer.step()
        values.append(group.mean(value))
        if step == 1:
            checkpoint.save(2)
    return values


def test_nothing_is_made_on_the_default_device(tmp_path):
    y = torch.randn(5)
    guide = pf.AutoFlow(device_model, flow="nsf_coupling").setup(y)
    with torch.device("meta"), Distributed(device="cpu") as group:
        straight = train_on(group, tmp_path / "run.pt", guide, y)
        assert len(straight) == 4 and train_on(group, tmp_path / "run.pt", guide, y) == straight[2:]


@pytest.mark.gpu
def test_on_a_gpu_over_nccl(tmp_path, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29571",
    }.items():
        monkeypatch.setenv(name, value)
    with Distributed() as group:
        assert torch.distributed.get_backend() == "nccl" and group.device.type == "cuda"
        y = torch.randn(5, device=group.device)
        guide = pf.AutoFlow(device_model, flow="nsf_coupling").setup(y)
        straight = train_on(group, tmp_path / "run.pt", guide, y)
        assert train_on(group, tmp_path / "run.pt", guide, y) == pytest.approx(straight[2:], rel=1e-5)
