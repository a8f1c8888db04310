"""Continuous flows: regularisers, flow matching, and zuko's CNF at equal tolerance and at equal time of one core.

``regularisers``: maximum likelihood with and without kinetic energy and Jacobian norm (0.03 of each; RNODE), equal time: nats of
held-out points, and evaluations of the field to score and to draw 2,000 points by the solver that adapts. As in the paper, training
is on a fixed grid, here of eight steps; ``plain, adaptive`` is trained by the solver that adapts. ``matching``: processor seconds
after which flow matching, with minibatches of 2,048, has the nats that maximum likelihood has after ``--seconds``; the time doubles
from an eighth of a second on until it has. Evaluations tell how straight the paths are. ``peers``: milliseconds of log_prob with
its gradient and of draws, and nats at equal time, ours beside zuko's, of the same hidden layers and tolerance; rounds are
interleaved, medians are shown.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.contestants import train
from benchmarks.densities import DATA
from benchmarks.kept_rows import run_and_keep
from pyro_flows import flows
from pyro_flows.infer import flow_matching_loss
from pyro_flows.transforms import on_grid, record_costs

FIELDS = ("part", "data", "method", "seed", "seconds", "steps", "nats", "score", "draw")
PARTS = ("regularisers", "matching", "peers")
COUNT = 20_000
TOLERANCE = 1e-5
#: Weight of both regularisers, and steps of the grid.
WEIGHT, GRID = 0.03, 8


def rows_of(data: str, count: int) -> tuple[Tensor, Tensor]:
    """Points to train on and held out, standardised by the former; nats are in these units."""
    if data == "breast_cancer":
        from sklearn.datasets import load_breast_cancer

        points = torch.as_tensor(load_breast_cancer().data).float().log1p()
        points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))]
        train_rows, held_out = points[:455], points[455:]
    else:
        train_rows, held_out = DATA[data](count)[0], DATA[data](count // 4)[0]
    loc, scale = train_rows.mean(0), train_rows.std(0)
    return (train_rows - loc) / scale, (held_out - loc) / scale


def density(dim: int, tolerance: float = TOLERANCE) -> pf.FlowDistribution:
    return pf.FlowDistribution(flows.get("cnf")(dim, tolerance=tolerance))


@torch.no_grad()
def judged(q: pf.FlowDistribution, held_out: Tensor) -> dict[str, float]:
    """Nats, and evaluations to score and to draw."""
    some = held_out[:2000]
    with record_costs(regularisers=False) as score:
        q.log_prob(some)
    with record_costs(regularisers=False) as draw:
        q.sample((2000,))
    nats = torch.cat([q.log_prob(part) for part in held_out.split(2000)]).mean()
    return {"nats": float(nats), "score": score.evaluations, "draw": draw.evaluations}


def likelihood(data: str, weight: float, grid: bool, seconds: float, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    points, held_out = rows_of(data, COUNT)
    q = density(points.shape[1])

    def log_prob(x: Tensor) -> Tensor:
        if not weight or not q.training:
            return q.log_prob(x)
        with record_costs() as costs:
            found = q.log_prob(x)
        return found - weight * (costs.kinetic_energy + costs.jacobian_norm)

    with on_grid(q, GRID) if grid else nullcontext():
        steps = train(q, log_prob, points, seconds, 5e-3)
    return {"seconds": seconds, "steps": steps, **judged(q, held_out)}


def matched(data: str, path: str, wanted: float, seed: int, most: float) -> dict[str, float]:
    """The least time, of those that double, in which flow matching has as many nats."""
    seconds = 0.125
    while True:
        torch.manual_seed(seed)
        points, held_out = rows_of(data, COUNT)
        q = density(points.shape[1])
        loss = flow_matching_loss(q, path)  # type: ignore[arg-type]
        steps = train(q, lambda x, loss=loss: -loss(x)[None], points, seconds, 2e-2, batch=2048)  # type: ignore[misc]
        found = judged(q, held_out)
        if found["nats"] >= wanted or seconds >= most:
            return {"seconds": seconds, "steps": steps, **found}
        seconds *= 2


# Beside zuko


def contestant(name: str, dim: int) -> tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[int], Tensor]]:
    if name == "ours":
        q = density(dim, 2 * TOLERANCE)  # ours is relative to the mean of 1 and the size, theirs to the sum
        return q, q.log_prob, lambda n: q.sample((n,))
    import zuko

    theirs = zuko.flows.CNF(dim, hidden_features=(64, 64), atol=TOLERANCE, rtol=TOLERANCE)
    return theirs, lambda x: theirs().log_prob(x), lambda n: theirs().sample((n,))


def timed(dim: int, seed: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of log_prob with gradient and of draws, 256 rows, of fields that were trained for five seconds."""
    made = {}
    for name in ("ours", "zuko"):
        torch.manual_seed(seed)
        module, log_prob, sample = contestant(name, dim)
        points = torch.randn(COUNT, dim).sinh()
        points = points / points.std(0)
        train(module, log_prob, points, 5.0, 5e-3)
        module.train()
        made[name] = (log_prob, sample, points)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in made}
    for _ in range(rounds):
        for name, (log_prob, sample, points) in made.items():
            began = time.process_time()
            log_prob(points[:256]).mean().backward()
            middle = time.process_time()
            with torch.no_grad():
                sample(256)
            times[name][0].append(middle - began)
            times[name][1].append(time.process_time() - middle)
    return {name: tuple(1000 * statistics.median(part) for part in parts) for name, parts in times.items()}  # type: ignore[misc]


def fitted(name: str, data: str, seconds: float, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    points, held_out = rows_of(data, COUNT)
    module, log_prob, _ = contestant(name, points.shape[1])
    steps = train(module, log_prob, points, seconds, 5e-3)
    with torch.no_grad():
        nats = float(torch.cat([log_prob(part) for part in held_out.split(2000)]).mean())
    return {"seconds": seconds, "steps": steps, "nats": nats, "score": math.nan, "draw": math.nan}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=("regularisers", "matching", "peers"), default=["regularisers", "matching", "peers"]
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="processor time of each training (default 120)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing (default 15)")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 32], help="variables of the timing (default 2 8 32)")
    parser.add_argument("--csv", type=Path, default=Path("cnf.csv"), help="where rows are kept (default cnf.csv)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted: list[tuple[str, str, str, int]] = []
    for seed in range(options.seeds):
        if "regularisers" in options.parts:
            wanted += [
                ("regularisers", data, method, seed)
                for data in ("checkerboard", "two_spirals")
                for method in ("plain, adaptive", "plain", "regularised")
            ]
        if "matching" in options.parts:
            methods = ("likelihood", "linear", "variance_preserving", "optimal_transport")
            wanted += [("matching", data, method, seed) for data in ("checkerboard", "breast_cancer") for method in methods]
        if "peers" in options.parts:
            wanted += [
                ("peers", data, method, seed)
                for data in ("checkerboard", "two_spirals", "breast_cancer")
                for method in ("ours", "zuko")
            ]

    kept: dict[tuple[str, str, str, str], dict[str, str]] = {}

    def run(part: str, data: str, method: str, seed: int) -> dict[str, object]:
        if part == "regularisers" or method == "likelihood":
            on = part == "regularisers" and method != "plain, adaptive"
            found = likelihood(data, WEIGHT if method == "regularised" else 0.0, on, options.seconds, seed)
        elif part == "matching":
            target = float(kept["matching", data, "likelihood", str(seed)]["nats"])
            found = matched(data, method, target, seed, 2 * options.seconds)
        else:
            found = fitted(method, data, options.seconds, seed)
        row = {"part": part, "data": data, "method": method, "seed": seed, **found}
        kept[part, data, method, str(seed)] = {key: str(value) for key, value in row.items()}
        return row

    def show(row: dict[str, str]) -> str:
        return (
            f"{row['part']:<13} {row['data']:<14} {row['method']:<20} {float(row['seconds']):>8.2f} s {int(row['steps']):>6} steps "
            f"{float(row['nats']):>9.3f} nats {float(row['score']):>5.0f} {float(row['draw']):>5.0f} evaluations to score, to draw"
        )

    if options.csv.exists():
        import csv

        for row in csv.DictReader(options.csv.open()):
            kept[row["part"], row["data"], row["method"], row["seed"]] = row
    rows = run_and_keep(options.csv, FIELDS, FIELDS[:4], wanted, run, show)
    for row in rows:
        print(show(row))
    if "peers" in options.parts:
        print(f"{'D':>3} {'log_prob + backward, ms':>32} {'256 draws, ms':>32}")
        for dim in tqdm(options.dims, desc="timing", dynamic_ncols=True):
            found = timed(dim, 0, options.rounds)
            cells = [
                f"{found['ours'][i]:>9.1f} {found['zuko'][i]:>9.1f} zuko {found['zuko'][i] / found['ours'][i]:>5.2f}x"
                for i in (0, 1)
            ]
            tqdm.write(f"{dim:>3} {cells[0]:>32} {cells[1]:>32}")


if __name__ == "__main__":
    main()
