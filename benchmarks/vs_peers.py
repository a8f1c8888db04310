"""Time and memory of flows beside those of zuko, nflows, normflows and Pyro: one process each, one thread, rounds interleaved.

``log_prob``: log-density of data and its gradient, flows in the role of a density. ``draw``: draws with their log-density and the
gradient, flows in the role of a guide. ``slow``: draws of an autoregressive density, which is its slow direction, and the gradient,
after 300 steps of maximum likelihood on the same data. Six layers, conditioners of two hidden layers of 64, eight bins. A library
that makes no such flow, or raises, is left out of the row. All networks have the activation of ours, SiLU, so that all do the same
work; with ``--own-activations`` the others keep theirs, ReLU. Times are those of the processor, which other jobs on a machine
disturb less than a clock. Ratios are the median over rounds of the fastest peer's time over ours in the same round, in brackets the
quartiles; memory is what the process grew by in one step, at most.

``--growth`` measures ours alone from 4 to 1,024 variables and from 1 to 100,000 rows, and fits exponents.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import random
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.libraries import KINDS, LIBRARIES, Flow, Shape, make

SIZES = ("8x256", "32x1024", "64x4096")
WORKS = ("log_prob", "draw", "slow")
CONTESTANTS = (*LIBRARIES, "ours, compiled")
FIELDS = "work kind dim batch contestant parameters ms quarter three_quarters mib".split()


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    work: str
    kind: str
    dim: int
    batch: int

    def __str__(self) -> str:
        return f"{self.work}, {self.kind}, D = {self.dim}, {self.batch} rows"


def prepare(contestant: str, case: Case, training: int, silu: bool) -> tuple[Flow, Callable[[], None]]:
    """The flow, and one step of its work."""
    torch.compiler.reset()  # what was compiled for earlier cases counts towards a limit, beyond which nothing is compiled
    torch.manual_seed(0)
    shape = Shape(case.kind, case.dim, "guide" if case.work == "draw" else "density", silu=silu)
    flow = make(contestant.removesuffix(", compiled"), shape)
    mixing = torch.randn(case.dim, case.dim) / case.dim**0.5
    data = torch.randn(case.batch, case.dim) @ mixing
    data = data + 0.3 * torch.sin(2 * data.roll(1, -1))

    def score(x: torch.Tensor) -> torch.Tensor:
        return -flow.log_prob(x).mean()

    def draw() -> torch.Tensor:
        draws, log_prob = flow.draw(case.batch)
        return log_prob.mean() + 0.5 * draws.square().sum(-1).mean()

    if case.work == "slow" and training:
        optimizer = torch.optim.Adam(flow.module.parameters(), lr=1e-3)
        for _ in range(training):
            optimizer.zero_grad()
            score(data[torch.randint(len(data), (256,))]).backward()
            optimizer.step()
    loss: Callable[[], torch.Tensor] = draw
    if case.work == "log_prob":
        compiled_score = torch.compile(score) if "compiled" in contestant else score
        loss = lambda: compiled_score(data.clone())  # noqa: E731  (another tensor each time, as in training)
    elif "compiled" in contestant:
        loss = torch.compile(draw)

    parameters = list(flow.module.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        loss().backward()

    return flow, step


def peak_mib(step: Callable[[], None]) -> float:
    """How much the process grows by in one step, MiB; NaN where Linux does not tell."""

    def status(name: str) -> int:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        step()
        return (status("VmHWM") - before) / 1024
    except OSError:
        return math.nan


def work(pipe: Connection, contestant: str) -> None:
    """A process of one contestant: prepares a case, then times steps whenever it is told to."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    step: Callable[[], None] = lambda: None  # noqa: E731
    while True:
        order, *arguments = pipe.recv()
        try:
            if order == "prepare":
                flow, step = prepare(contestant, *arguments)
                began = time.perf_counter()
                step()
                first = time.perf_counter() - began
                mib = peak_mib(step)
                pipe.send({"parameters": flow.parameters, "mib": mib, "first": first})
            elif order == "time":
                times: list[float] = []
                while sum(times) < arguments[0] or len(times) < 3:
                    began = time.process_time()
                    step()
                    times.append(time.process_time() - began)
                pipe.send(statistics.median(times))
            else:
                return
        except Exception:
            pipe.send(traceback.format_exc().strip().splitlines()[-1])


class Contestants:
    """Processes, one for each contestant."""

    def __init__(self, names: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[str, Connection] = {}
        self.processes = []
        for name in names:
            self.pipes[name], other = context.Pipe()
            process = context.Process(target=work, args=(other, name), daemon=True)
            process.start()
            self.processes.append(process)

    def ask(self, name: str, *order: Any) -> Any:
        """An order, and its answer."""
        self.pipes[name].send(order)
        return self.pipes[name].recv()

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes.values():
            pipe.send(("end",))
        for process in self.processes:
            process.join(timeout=10)
            process.kill()


def measure(
    contestants: Contestants, case: Case, rounds: int, seconds: float, training: int, silu: bool
) -> tuple[list[dict[str, Any]], str]:
    """Rows of one case, and its ratios in words."""
    ready, refused = {}, {}
    for name in contestants.pipes:
        answer = contestants.ask(name, "prepare", case, training, silu)
        (ready if isinstance(answer, dict) else refused)[name] = answer
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name in random.sample(list(ready), len(ready)):
            answer = contestants.ask(name, "time", seconds)
            times[name].append(answer if isinstance(answer, float) else math.nan)
    rows = []
    for name, taken in times.items():
        quarter, median, three_quarters = _quartiles([1000 * t for t in taken])
        rows.append(
            asdict(case)
            | {"contestant": name, "parameters": ready[name]["parameters"], "ms": median, "quarter": quarter}
            | {"three_quarters": three_quarters, "mib": ready[name]["mib"]}
        )
    peers = [name for name in times if not name.startswith("ours")]
    words = [str(case)]
    for row in rows:
        words.append(f"  {row['contestant']:<15} {row['parameters']:>8,} parameters {row['ms']:>10.2f} ms {row['mib']:>8.1f} MiB")
    for name in refused:
        words.append(f"  {name:<15} left out: {refused[name][:100]}")
    for ours in [name for name in times if name.startswith("ours")]:
        ratios = ratios_to_fastest(times, ours, peers)
        if ratios:
            quarter, median, three_quarters = _quartiles(ratios)
            words.append(f"  {ours}: {median:.2f} times as fast as the fastest peer ({quarter:.2f} … {three_quarters:.2f})")
    return rows, "\n".join(words)


def ratios_to_fastest(times: dict[str, list[float]], ours: str, peers: Sequence[str]) -> list[float]:
    """The time of the peer that is fastest in median over ours, round by round."""
    if not peers:
        return []
    fastest = min(peers, key=lambda name: statistics.median(times[name]))
    return [theirs / own for theirs, own in zip(times[fastest], times[ours], strict=True)]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    quarter, median, three_quarters = statistics.quantiles(values, n=4, method="inclusive")
    return quarter, median, three_quarters


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table: a line for each case, and geometric means."""
    cases: dict[Case, dict[str, float]] = {}
    for row in rows:
        case = Case(row["work"], row["kind"], int(row["dim"]), int(row["batch"]))
        cases.setdefault(case, {})[row["contestant"]] = float(row["ms"])
    names = [name for name in CONTESTANTS if any(name in found for found in cases.values())]
    lines = [f"{'work':<9} {'flow':<22} {'D':>3} {'rows':>5} " + " ".join(f"{name:>14}" for name in names) + "   eager compiled"]
    logs: dict[tuple[str, str], list[float]] = {}
    for case, found in cases.items():
        fastest = min((ms for name, ms in found.items() if not name.startswith("ours")), default=math.nan)
        ratios = []
        for name in ("ours", "ours, compiled"):
            ratio = fastest / found[name] if name in found else math.nan
            ratios.append(f"{ratio:>7.2f}")
            if math.isfinite(ratio):
                logs.setdefault((case.work, name), []).append(math.log(ratio))
        times = " ".join(f"{found[name]:>14.2f}" if name in found else f"{'—':>14}" for name in names)
        lines.append(f"{case.work:<9} {case.kind:<22} {case.dim:>3} {case.batch:>5} {times} {' '.join(ratios)}")
    for (kind, name), values in logs.items():
        mean, worst = math.exp(statistics.fmean(values)), math.exp(min(values))
        lines.append(
            f"{kind}, {name}: {mean:.2f} times as fast as the fastest peer (geometric mean of {len(values)}), worst {worst:.2f}"
        )
    return "\n".join(lines)


def growth(seconds: float, figure: Path) -> None:
    """Time of ours over variables and rows, with exponents of the upper half of the range, where no overhead hides them."""
    import matplotlib.pyplot as plt

    torch.set_num_threads(1)
    figures, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    ranges = {"variables": [4, 16, 64, 256, 1024], "rows": [1, 10, 100, 1000, 10_000, 100_000]}
    lines = []
    for axis, (what, values) in zip(axes, ranges.items(), strict=True):
        for kind in KINDS:
            times, memory = [], []
            for value in tqdm(values, desc=f"{kind}, {what}", leave=False):
                dim, batch = (value, 256) if what == "variables" else (8, value)
                _, step = prepare("ours", Case("log_prob", kind, dim, batch), 0, False)
                step()
                memory.append(peak_mib(step))
                taken: list[float] = []
                while sum(taken) < seconds or len(taken) < 3:
                    began = time.process_time()
                    step()
                    taken.append(time.process_time() - began)
                times.append(1000 * statistics.median(taken))
            half = len(values) // 2
            exponents = [
                math.log(max(series[-1], 1e-3) / max(series[half], 1e-3)) / math.log(values[-1] / values[half])
                for series in (times, memory)
            ]
            axis.loglog(values, times, "o-", label=f"{kind}: exponent {exponents[0]:.2f}")
            listed = ", ".join(f"{t:.1f}" for t in times)
            lines.append(
                f"{what:<10} {kind:<22} time exponent {exponents[0]:.2f}, memory {exponents[1]:.2f}; ms at {values}: {listed}"
            )
        axis.set_xlabel(what)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("log_prob and gradient, ms")
    figures.tight_layout()
    figures.savefig(figure, dpi=120)
    print("\n".join(lines))
    print(f"picture: {figure}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--sizes", nargs="+", metavar="DxROWS", default=SIZES, help=f"variables and rows (default {' '.join(SIZES)})"
    )
    parser.add_argument("--own-activations", action="store_true", help="leave the networks of others as they are, with ReLU")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--seconds", type=float, default=0.5, help="timed for this long in each round, at least (default 0.5)")
    parser.add_argument("--training", type=int, default=300, help="steps before the slow direction is timed (default 300)")
    parser.add_argument("--csv", type=Path, default=Path("vs_peers.csv"), help="where rows are kept (default vs_peers.csv)")
    parser.add_argument("--growth", type=Path, metavar="PICTURE", help="measure growth instead, and draw it here")
    options = parser.parse_args(arguments)
    if options.growth is not None:
        growth(options.seconds, options.growth)
        return
    done = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    finished = {(row["work"], row["kind"], row["dim"], row["batch"]) for row in done}
    cases = [
        Case(work, kind, *map(int, size.split("x")))
        for work in options.works
        for kind in options.kinds
        for size in options.sizes
        if work != "slow" or "autoregressive" in kind
    ]
    cases = [case for case in cases if (case.work, case.kind, str(case.dim), str(case.batch)) not in finished]
    contestants = Contestants(options.contestants)
    random.seed(0)
    try:
        with options.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if not done:
                writer.writeheader()
            for case in tqdm(cases, desc="cases", dynamic_ncols=True):
                rows, words = measure(
                    contestants, case, options.rounds, options.seconds, options.training, not options.own_activations
                )
                writer.writerows(rows)
                file.flush()
                tqdm.write(words)
    finally:
        contestants.close()
    print(summary(list(csv.DictReader(options.csv.open()))))


if __name__ == "__main__":
    main()
