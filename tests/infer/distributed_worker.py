"""What each process of the tests of distributed training runs; started by torchrun, and imported for its models."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_flows as pf
from pyro_flows.distributions import StandardNormal
from pyro_flows.infer import Checkpoint, Distributed

N, SHARDS = 12, (7, 5)
TOTAL = 30
Y = 3.0 + 2.0 * torch.randn(TOTAL, generator=torch.Generator().manual_seed(1))
PRIOR_SD, NOISE_SD = 5.0, 2.0


class GivenNoise(StandardNormal):
    """A standard normal that draws what it is given."""

    noise: Tensor

    def rsample(self, sample_shape=()):
        return self.noise


class LatentPerRow(PyroModule):
    """y = w + z + noise with a global w and a local z, whose guide is amortised; all noise is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.global_flow = pf.flows.affine(1).to(dtype)
        self.local_flow = pf.flows.get("nsf_coupling")(2, context_dim=3, num_layers=2, hidden_dims=(8,)).to(dtype)
        self.decoder = nn.Linear(2, 3).to(dtype)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype))

    def model(self, y: Tensor, noise: Tensor, global_noise: Tensor, rows: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros_like(global_noise), 2.0).to_event(1))
        with self.plate(y, rows):
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(w + self.decoder(z), 0.5).to_event(1), obs=y)

    def guide(self, y: Tensor, noise: Tensor, global_noise: Tensor, rows: Tensor | None = None) -> None:
        base = GivenNoise((1,), dtype=y.dtype)
        base.noise = global_noise
        pyro.sample("w", pf.FlowDistribution(self.global_flow, base))
        base = GivenNoise((2,), dtype=y.dtype).expand((len(y),))
        base.noise = noise
        with self.plate(y, rows):
            pyro.sample("z", pf.FlowDistribution(self.local_flow.condition(y), base))

    @staticmethod
    def plate(y: Tensor, rows: Tensor | None) -> pyro.plate:
        return pyro.plate("data", len(y)) if rows is None else pyro.plate("data", N, subsample=rows)


class Loss(nn.Module):
    def __init__(self, pair: LatentPerRow) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, *args):
        return Trace_ELBO().differentiable_loss(self.pair.model, self.pair.guide, *args)


def rows_and_noise(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in ((N, 3), (N, 2), (1,)))


def gradients(loss: nn.Module, *args) -> dict[str, Tensor]:
    loss.zero_grad()
    loss(*args).backward()
    return {name.split("pair.")[-1]: parameter.grad.clone() for name, parameter in loss.named_parameters()}


def conjugate(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, PRIOR_SD))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, NOISE_SD), obs=y)


def posterior() -> tuple[float, float]:
    precision = PRIOR_SD**-2 + TOTAL * NOISE_SD**-2
    return float(Y.sum()) / NOISE_SD**2 / precision, precision**-0.5


def fit_conjugate(group: Distributed, full_size: dict[str, int]) -> tuple[float, float]:
    y = Y[:18] if group.rank == 0 else Y[18:]
    guide = AutoNormal(conjugate)
    guide(y)
    loss = group.wrap(Trace_ELBO(16, max_plate_nesting=1, vectorize_particles=True)(conjugate, guide), y, full_size=full_size)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.975)
    for _ in range(250):
        optimizer.zero_grad()
        loss(y).backward()
        optimizer.step()
        schedule.step()
    pyro.clear_param_store()
    return float(guide.locs.mean.detach()), float(guide.scales.mean.detach())


def train(group: Distributed, path: Path, kill_at: int | None = None) -> dict[str, Tensor]:
    """A run with noise of torch and NumPy, a schedule of the step size and minibatches of a shard."""
    shard = Y.tensor_split(group.world_size)[group.rank]
    guide = pf.AutoFlow(conjugate, flow="nsf_coupling", flow_options={"num_layers": 1, "hidden_dims": (4,)}).setup(shard)
    loss = group.wrap(Trace_ELBO()(conjugate, guide), shard, full_size={"data": TOTAL})
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    checkpoint = Checkpoint(path, loss=loss, optimizer=optimizer, schedule=schedule)
    for step in group.progress(range(checkpoint.load(), 30), desc=f"bar of rank {group.rank}"):
        rows = torch.from_numpy(np.random.permutation(len(shard))[:4])
        optimizer.zero_grad()
        loss(shard[rows]).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 8 == 0:
            checkpoint.save(step + 1)
        if step == kill_at and group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    return {**state, "noise": torch.randn(3)}


def guide_of_params(y: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", lambda: torch.rand(()) + 0.5, constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def params_in_functions(group: Distributed) -> dict[str, Tensor]:
    """Parameters of ``pyro.param``, begun with other numbers in each process."""
    torch.manual_seed(10 + group.rank)
    loss = group.wrap(Trace_ELBO()(conjugate, guide_of_params), Y[:15], full_size={"data": TOTAL})
    begun = pyro.param("scale").detach().clone()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(Y[:15]).backward()
        optimizer.step()
    return {"begun": begun, "loc": pyro.param("loc").detach().clone(), "scale": pyro.param("scale").detach().clone()}


def check_all(group: Distributed, folder: Path) -> dict[str, object]:
    result: dict[str, object] = {}
    mine = slice(0, SHARDS[0]) if group.rank == 0 else slice(SHARDS[0], N)
    batch = slice(0, 3) if group.rank == 0 else slice(SHARDS[0], SHARDS[0] + 2)
    for dtype in (torch.float32, torch.float64):
        y, noise, global_noise = rows_and_noise(dtype)
        for name, rows in (("shard", mine), ("minibatch", batch)):
            loss = group.wrap(Loss(LatentPerRow(dtype)), y[rows], noise[rows], global_noise, full_size={"data": N})
            result[f"{name} {dtype}"] = gradients(loss, y[rows], noise[rows], global_noise)
            pyro.clear_param_store()
    result["noise"] = torch.randn(5)
    result["conjugate"] = fit_conjugate(group, {"data": TOTAL})
    result["conjugate without full size"] = fit_conjugate(group, {})
    result["params"] = params_in_functions(group)
    pyro.clear_param_store()
    pyro.set_rng_seed(group.seed)
    result["trained"] = train(group, folder / "straight.pt")
    result["mean"] = group.mean(group.rank + 1.0)
    return result


def main() -> None:
    torch.set_num_threads(1)
    task, folder = sys.argv[1], Path(sys.argv[2])
    with Distributed(seed=7, device="cpu") as group:
        if task == "check":
            result = check_all(group, folder)
        else:
            first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
            result = train(group, folder / "killed.pt", kill_at=20 if first else None)
            result["restarts"] = torch.tensor(int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
        torch.save(result, folder / f"{task}-{group.rank}.pt")


if __name__ == "__main__":
    main()
