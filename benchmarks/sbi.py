"""Simulation-based inference: C2ST against the reference posteriors of sbibm, after 10,000 simulations with default settings.

The reference draws are those that PyPI's sbibm wheel ships. Fetch it without its own requirements, which clash with today's torch:

    pip download --no-deps sbibm -d /tmp/sbibm && unzip -q -o /tmp/sbibm/sbibm-*.whl -d /tmp/sbibm

C2ST is the accuracy of a classifier that tells 10,000 draws from 10,000 reference draws, as sbibm defines it: 0.5 is perfect. With
--peer, sbi's NPE with its neural spline flow is trained on the same simulations; each library can run in an environment without the
other, since the simulations and the draws are files.

Two of the four posteriors (the linear Gaussian ones) are, truncated, in the family from which our training starts.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import csv
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

# In place of this folder, where a module of the peer's name lies: this one.
sys.path[0] = str(Path(__file__).resolve().parents[1])

FIELDS = "method task seed observation c2st train_seconds train_cpu num_simulations".split()
PUBLISHED = {"two_moons": 0.61, "gaussian_mixture": 0.62, "gaussian_linear": 0.55, "gaussian_linear_uniform": 0.55}
TARGET = {"two_moons": 0.56, "gaussian_mixture": 0.56, "gaussian_linear": 0.53, "gaussian_linear_uniform": 0.53}
Array = np.ndarray
Draw = Callable[[Array, int], Array]


@dataclass(frozen=True)
class Task:
    """A prior, uniform on (-bound, bound) or normal, and a simulator."""

    dim: int
    simulate: Callable[[torch.Tensor], torch.Tensor]
    bound: float | None = None
    prior_sd: float = 1.0


def two_moons(theta: torch.Tensor) -> torch.Tensor:
    angle, radius = math.pi * (torch.rand(len(theta)) - 0.5), 0.1 + 0.01 * torch.randn(len(theta))
    centre = torch.stack([-(theta.sum(-1)).abs(), theta[:, 1] - theta[:, 0]], -1) / math.sqrt(2)
    return torch.stack([angle.cos() * radius + 0.25, angle.sin() * radius], -1) + centre


def gaussian_mixture(theta: torch.Tensor) -> torch.Tensor:
    scale = torch.where(torch.rand(len(theta), 1) < 0.5, 1.0, 0.1)
    return theta + scale * torch.randn_like(theta)


def gaussian_linear(theta: torch.Tensor) -> torch.Tensor:
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


TASKS = {
    "two_moons": Task(2, two_moons, bound=1.0),
    "gaussian_mixture": Task(2, gaussian_mixture, bound=10.0),
    "gaussian_linear": Task(10, gaussian_linear, prior_sd=math.sqrt(0.1)),
    "gaussian_linear_uniform": Task(10, gaussian_linear, bound=1.0),
}


def simulations(name: str, seed: int, count: int, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws of parameters and data, made once and kept in a file."""
    path = folder / f"{name}-{seed}-{count}.npz"
    if not path.exists():
        task = TASKS[name]
        torch.manual_seed(1000 + seed)
        noise = torch.randn(count, task.dim) if task.bound is None else 2 * torch.rand(count, task.dim) - 1
        theta = noise * (task.prior_sd if task.bound is None else task.bound)
        np.savez(path, theta=theta.numpy(), x=task.simulate(theta).numpy())
    with np.load(path) as stored:
        return torch.as_tensor(stored["theta"]), torch.as_tensor(stored["x"])


def public(name: str, number: int, sbibm: Path) -> tuple[Array, Array]:
    """An observation and its reference draws."""
    folder = sbibm / "sbibm" / "tasks" / name / "files" / f"num_observation_{number}"
    observation = np.loadtxt(folder / "observation.csv", delimiter=",", skiprows=1)
    with bz2.open(folder / "reference_posterior_samples.csv.bz2", "rt") as file:
        return observation, np.loadtxt(file, delimiter=",", skiprows=1)


def c2st(reference: Array, draws: Array, seed: int = 1) -> float:
    """Accuracy of a perceptron of two hidden layers of 10 D units in five-fold cross-validation, as sbibm has it."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, sd = reference.mean(0), reference.std(0, ddof=1)
    data = np.concatenate([(reference - mean) / sd, (draws - mean) / sd])
    label = np.concatenate([np.zeros(len(reference)), np.ones(len(draws))])
    width = 10 * reference.shape[1]
    classifier = MLPClassifier((width, width), activation="relu", solver="adam", max_iter=10_000, random_state=seed)
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, data, label, cv=folds, scoring="accuracy").mean())


def exact(name: str, observation: Array, count: int, seed: int) -> Array:
    """Exact posterior draws, to see what C2ST reads where nothing is wrong and that the simulators are sbibm's."""
    task, rng = TASKS[name], np.random.default_rng(seed)
    kept: list[Array] = []
    while sum(map(len, kept)) < count:
        noise = rng.standard_normal((count, task.dim))
        if name == "gaussian_linear":
            draws = observation / 2 + math.sqrt(0.05) * noise
        elif name == "gaussian_linear_uniform":
            sd, proposal = math.sqrt(0.1), rng.uniform(-1, 1, (40 * count, task.dim))
            chosen = [
                c[rng.uniform(size=len(c)) < np.exp(-0.5 * ((c - o) / sd) ** 2)][:count]
                for c, o in zip(proposal.T, observation, strict=True)
            ]
            rows = min(map(len, chosen))
            draws = np.stack([column[:rows] for column in chosen], -1)
        elif name == "gaussian_mixture":
            draws = observation + np.where(rng.uniform(size=(count, 1)) < 0.5, 1.0, 0.1) * noise
        else:
            angle, radius = math.pi * (rng.uniform(size=count) - 0.5), 0.1 + 0.01 * rng.standard_normal(count)
            p = np.stack([np.cos(angle) * radius + 0.25, np.sin(angle) * radius], -1) - observation
            sum_, difference = rng.choice([-1, 1], count) * p[:, 0] * math.sqrt(2), -p[:, 1] * math.sqrt(2)
            draws = np.stack([(sum_ - difference) / 2, (sum_ + difference) / 2], -1)[p[:, 0] >= 0]
        kept.append(draws if task.bound is None else draws[(np.abs(draws) < task.bound).all(-1)])
    return np.concatenate(kept)[:count]


def run_ours(name: str, theta: torch.Tensor, x: torch.Tensor, seed: int) -> tuple[Draw, tuple[float, float]]:
    """AmortizedFlow and fit_amortized with their defaults."""
    import pyro
    import pyro.distributions as dist

    import pyro_flows as pf

    task = TASKS[name]

    def model(data: torch.Tensor | None = None) -> None:
        # The draws are given, and the likelihood is never used: a stand-in of the right shape.
        if task.bound is None:
            values = pyro.sample("theta", dist.Normal(torch.zeros(task.dim), task.prior_sd).to_event(1))
        else:
            values = pyro.sample("theta", dist.Uniform(-task.bound * torch.ones(task.dim), task.bound).to_event(1))
        pyro.sample("x", dist.Normal(values, 1.0).to_event(1), obs=data)

    guide = pf.AmortizedFlow(model, observed=["x"])
    began, cpu = time.perf_counter(), time.process_time()
    given = pf.Simulations({"theta": theta}, {"x": x})
    pf.fit_amortized(guide, simulations=given, seed=seed, progress=False)
    seconds = time.perf_counter() - began, time.process_time() - cpu

    def draw(observation: Array, count: int) -> Array:
        return guide.sample(torch.as_tensor(observation, dtype=torch.float32), count, seed=seed)["theta"].numpy()

    return draw, seconds


def run_peer(name: str, theta: torch.Tensor, x: torch.Tensor, seed: int) -> tuple[Draw, tuple[float, float]]:
    """NPE of sbi with its neural spline flow and its defaults."""
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    task = TASKS[name]
    torch.manual_seed(seed)
    if task.bound is None:
        prior: Any = torch.distributions.MultivariateNormal(torch.zeros(task.dim), task.prior_sd**2 * torch.eye(task.dim))
    else:
        prior = BoxUniform(-task.bound * torch.ones(task.dim), task.bound * torch.ones(task.dim))
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # where it puts its logs
        inference = NPE(prior, density_estimator="nsf", show_progress_bars=False)
        inference.append_simulations(theta, x).train()
    posterior = inference.build_posterior()
    seconds = time.perf_counter() - began, time.process_time() - cpu

    def draw(observation: Array, count: int) -> Array:
        given = torch.as_tensor(observation, dtype=torch.float32)
        return posterior.sample((count,), x=given, show_progress_bars=False).numpy()

    return draw, seconds


def table(path: Path) -> str:
    """Mean C2ST over observations, by method, task and seed."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    titles = f"{'task':<24} {'method':<8} {'seed':>4} {'obs':>4} {'C2ST':>6} {'worst':>6} {'target':>6} {'NPE 2021':>8}"
    lines = [f"{titles} {'train s':>8} {'cpu s':>6}"]
    for task in TASKS:
        for method, seed in sorted({(row["method"], row["seed"]) for row in rows if row["task"] == task}):
            found = [row for row in rows if (row["task"], row["method"], row["seed"]) == (task, method, seed)]
            scores = [float(row["c2st"]) for row in found]
            seconds, cpu = (float(found[0][field]) for field in ("train_seconds", "train_cpu"))
            lines.append(
                f"{task:<24} {method:<8} {seed:>4} {len(found):>4} {np.mean(scores):>6.3f} {max(scores):>6.3f} "
                f"{TARGET[task]:>6.2f} {PUBLISHED[task]:>8.2f} {seconds:>8.0f} {cpu:>6.0f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each with simulations of its own (default 0)")
    parser.add_argument("--observations", nargs="+", type=int, default=list(range(1, 11)), help="numbers of public observations")
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=10_000, help="posterior draws per observation")
    parser.add_argument("--peer", action="store_true", help="run sbi's NPE instead of ours")
    parser.add_argument("--exact", action="store_true", help="score exact posterior draws instead: the floor of C2ST")
    parser.add_argument("--sbibm", type=Path, default=Path("/tmp/sbibm"), help="where the wheel was unpacked")
    parser.add_argument("--out", type=Path, default=Path("benchmark-output"), help="folder of simulations and results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (arguments.sbibm / "sbibm" / "tasks").is_dir():
        parser.error(f"{arguments.sbibm} holds no unpacked sbibm wheel; see the start of --help")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "sbi.csv"
    if not results.exists():
        results.write_text(",".join(FIELDS) + "\n")
    method = "exact" if arguments.exact else "sbi NPE" if arguments.peer else "ours"
    total = len(arguments.tasks) * len(arguments.seeds) * len(arguments.observations)
    with tqdm(total=total, unit="observation") as bar:
        for seed in arguments.seeds:
            for name in arguments.tasks:
                bar.set_postfix_str(f"{name}: training")
                theta, x = simulations(name, seed, arguments.simulations, arguments.out)
                draw, seconds = _method(method, name, theta, x, seed)
                for number in arguments.observations:
                    bar.set_postfix_str(f"{name}: observation {number}")
                    observation, reference = public(name, number, arguments.sbibm)
                    score = c2st(reference, draw(observation, arguments.draws))
                    with results.open("a") as file:
                        csv.writer(file).writerow(
                            [method, name, seed, number, f"{score:.4f}", *(f"{s:.1f}" for s in seconds), len(theta)]
                        )
                    bar.update()
    print(table(results))


def _method(method: str, name: str, theta: torch.Tensor, x: torch.Tensor, seed: int) -> tuple[Draw, tuple[float, float]]:
    if method == "exact":
        return (lambda observation, count: exact(name, observation, count, seed)), (0.0, 0.0)
    return (run_peer if method == "sbi NPE" else run_ours)(name, theta, x, seed)


if __name__ == "__main__":
    main()
