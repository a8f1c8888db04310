"""Runs that are killed at random moments, checkpoints under way included, until so many kills are done.

Every run is started again until one comes through, and has to end bit by bit as the run that was not killed: draws, losses,
densities. After every kill all files of the folder are read. Three kinds of run take turns: ``fit`` of eight schools, ``fit`` of a
guide of plates on minibatches, and ``fit_density``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from pyro_flows.infer import CheckpointFolder
from pyro_flows.infer.digest import digest
from pyro_flows.io.tensor_file import read_tensor_file

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def lines(index: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 60, subsample=index):
        local = pyro.sample("local", dist.Normal(slope * (index / 30 - 1), 0.5))
        pyro.sample("y", dist.Normal(local, 0.3), obs=y)


def small(input_dim: int, context_dim: int = 0) -> pf.transforms.Compose:
    return pf.flows.real_nvp(input_dim, context_dim, num_layers=2, hidden_dims=(16,))


def fit(checkpoint: CheckpointFolder | None) -> list[Any]:
    options: dict[str, Any] = {"max_steps": 300, "num_particles": 32, "seed": 0, "progress": False, "checkpoint": checkpoint}
    found = pf.fit(schools, Y, SIGMA, guide=small, **options)
    return [found.losses, found.stop_reason, found.sample(100, seed=1)]


def plates(checkpoint: CheckpointFolder | None) -> list[Any]:
    torch.manual_seed(3)
    index, y = torch.arange(60), torch.linspace(-1, 1, 60)
    guide = pf.AutoPlateFlow(lines, {"data": 4}, flow="affine")
    batches = DataLoader(TensorDataset(index, y), batch_size=20, shuffle=True)
    options: dict[str, Any] = {"max_steps": 300, "seed": 0, "progress": False, "checkpoint": checkpoint}
    found = pf.fit(lines, index, y, guide=guide, minibatches=batches, **options)
    return [found.losses, found.stop_reason, found.sample(100, seed=1)]


def density(checkpoint: CheckpointFolder | None) -> list[Any]:
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    found = pf.fit_density("nsf_coupling", x, max_epochs=15, seed=0, progress=False, checkpoint=checkpoint)
    return [found.losses, found.validation_losses, found.log_prob(x[:100])]


RUNS: dict[str, Callable[[CheckpointFolder | None], list[Any]]] = {f.__name__: f for f in (fit, plates, density)}


def child(name: str, folder: Path, every: float, result: Path) -> None:
    """A run in a process of its own; says what came out."""
    torch.set_num_threads(1)
    result.write_text(digest(RUNS[name](CheckpointFolder(folder, every=every))))


def check(folder: Path) -> int:
    """Read all files; returns how many there are."""
    files = list(folder.glob("*.safetensors"))
    for path in files:
        read_tensor_file(path)
    return len(files)


def until_through(name: str, expected: str, longest: float, every: float, bar: tqdm) -> tuple[int, int, bool]:
    """A run that is killed until it comes through: kills, those between checkpoints being written, whether the end was the same."""
    context = multiprocessing.get_context("fork")
    kills = partial = 0
    with tempfile.TemporaryDirectory() as path:
        folder, result = Path(path) / "run", Path(path) / "result"
        while True:
            process = context.Process(target=child, args=(name, folder, every, result))
            process.start()
            process.join(random.uniform(0.0, longest))
            if process.exitcode is not None:
                if process.exitcode != 0:
                    raise SystemExit(f"a run of {name} failed with exit code {process.exitcode} after {kills} kills")
                return kills, partial, result.read_text() == expected
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            process.join()
            kills += 1
            bar.update()
            partial += any(folder.glob(".*.partial"))
            check(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills in all (default 200)")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--every", type=float, default=0.02, help="seconds between checkpoints (default 0.02)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default 0)")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    expected, longest = {}, {}
    for name in tqdm(options.runs, desc="runs that are not killed"):
        began = time.monotonic()
        expected[name] = digest(RUNS[name](None))
        longest[name] = 0.9 * (time.monotonic() - began)
    rows: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in options.runs}
    with tqdm(total=options.kills, desc="kills", unit="kill", dynamic_ncols=True) as bar:
        while sum(row[1] for row in rows.values()) < options.kills:
            for name, row in rows.items():
                kills, partial, same = until_through(name, expected[name], longest[name], options.every, bar)
                for i, value in enumerate((1, kills, partial, int(same))):
                    row[i] += value
                tqdm.write(json.dumps({"run": name, "kills": kills, "while writing": partial, "same": same}))
    print(f"{'run':<10}{'runs':>6}{'kills':>7}{'while a file was written':>26}{'ended the same':>16}")
    for name, row in rows.items():
        print(f"{name:<10}{row[0]:>6}{row[1]:>7}{row[2]:>26}{row[3]:>16}")


if __name__ == "__main__":
    main()
