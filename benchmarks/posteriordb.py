"""Posteriors of posteriordb with default settings, beside Pyro's guides given the same time, against the reference draws.

Prints a row per posterior, guide and seed, and what follows from all of them. Rows are written to a CSV file as they come; a run
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import iterated, spline_coupling
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal, AutoNormalizingFlow
from scipy.stats import wasserstein_distance
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.posteriors import Posterior, all_posteriors
from pyro_flows.diagnostics import diagnose
from pyro_flows.model import LogJoint, initial_point

FIELDS = (
    "posterior guide seed dim chosen steps seconds cpu to_target khat ess log_weight_sd mean_error sd_error w1 mean_error_psis "
    "sd_error_psis mean_excess sd_excess verdict stop"
).split()
HEADER = (
    f"{'posterior':<38} {'guide':<12} {'s':>2} {'chosen':<12} {'secs':>6} {'k-hat':>6} {'ess/S':>6} {'sd logw':>7} "
    f"{'mean e':>7} {'sd e':>7} {'mean e*':>7} {'sd e*':>7} {'W1':>7}  verdict"
)
#: Error of a mean, in posterior sd, up to which the time is taken.
TARGET = 0.1


class Reference:
    """Moments and quantiles of the reference draws."""

    def __init__(self, posterior: Posterior) -> None:
        chains = posterior.draws()
        self.draws = chains.flatten(0, 1)
        self.mean, self.sd = self.draws.mean(0), self.draws.std(0)
        self.noise = self.standard_errors(chains)
        self.floor = self.distance(self.draws[::2], self.draws[1::2])

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> float:
        """Mean Wasserstein-1 distance of the margins, in sd."""
        return sum(wasserstein_distance(x, y) / float(s) for x, y, s in zip(a.T, b.T, self.sd, strict=True)) / a.shape[1]

    def errors(self, draws: torch.Tensor) -> tuple[float, float]:
        """Worst error of a mean in sd, worst relative error of an sd."""
        mean = ((draws.mean(0) - self.mean).abs() / self.sd).max()
        return float(mean), float((draws.std(0) / self.sd - 1).abs().max())

    def standard_errors(self, batches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of mean and sd of draws ``(batches, draws, K)``, over the sd, from what differs between the batches."""
        means, sds = batches.mean(1) / self.sd, batches.std(1) / self.sd
        return means.std(0) / math.sqrt(len(batches)), sds.std(0) / math.sqrt(len(batches))

    def excess(self, draws: torch.Tensor) -> tuple[float, float]:
        """Errors as above, each less three standard errors of reference and draws together: heavy tails have large ones."""
        own = self.standard_errors(torch.stack(draws[: len(draws) // 10 * 10].chunk(10)))
        mean, sd = (3 * (a.square() + b.square()).sqrt() for a, b in zip(self.noise, own, strict=True))
        above = ((draws.mean(0) - self.mean).abs() / self.sd - mean, (draws.std(0) / self.sd - 1).abs() - sd)
        return float(above[0].max().clamp_min(0)), float(above[1].max().clamp_min(0))

    def w1(self, draws: torch.Tensor) -> float:
        """Distance of draws to half of the reference, over that between its halves."""
        return self.distance(draws[: len(self.draws) // 2], self.draws[::2]) / self.floor


def peers(flat: Callable[[], None]) -> dict[str, Callable[[], Any]]:
    """Pyro's own guides, by name."""
    stack = partial(iterated, 4, partial(spline_coupling, hidden_dims=[32, 32], count_bins=8, bound=5.0))
    return {
        "AutoNormal": lambda: AutoNormal(flat),
        "AutoMultivariateNormal": lambda: AutoMultivariateNormal(flat),
        "AutoIAFNormal": lambda: AutoIAFNormal(flat, num_transforms=2),
        "AutoNormalizingFlow": lambda: AutoNormalizingFlow(flat, stack),
    }


def run_peer(
    name: str, posterior: Posterior, seconds: float, seed: int, num_draws: int, reference: Reference, particles: int = 64
) -> dict[str, Any]:
    """Train one of Pyro's guides for a time with SVI and Adam, its step size falling from 0.01 to 0.0001.

    The guide sees one site, the unconstrained vector, and the log joint density of all particles at once: the same that ``fit``
    sees, and more than the guide would get from the model.
    """
    torch.manual_seed(seed)
    log_joint = LogJoint(posterior.model, posterior.args)
    start = initial_point(log_joint)

    def flat() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(start), 1.0).to_event(1).mask(False))
        pyro.factor("log_joint", log_joint(z) if z.dim() > 1 else log_joint(z[None])[0])

    guide = peers(flat)[name]()
    optimizer = pyro.optim.Adam({"lr": 0.01})
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    svi, began, steps, reached, checked = SVI(flat, guide, optimizer, loss), time.perf_counter(), 0, math.inf, 0.0
    failed, check_every, spent = "", seconds / 40, 0.0
    while (elapsed := time.perf_counter() - began - spent) < seconds:
        for inner in optimizer.optim_objs.values():
            for group in inner.param_groups:
                group["lr"] = 0.01 * 100 ** -(elapsed / seconds)
        try:
            svi.step()
        except (ValueError, RuntimeError, ArithmeticError) as error:
            failed = type(error).__name__
            break
        steps += 1
        if math.isinf(reached) and elapsed - checked > check_every:
            checked, pause = elapsed, time.perf_counter()
            with torch.no_grad():
                draws = posterior.flat(log_joint.constrained(peer_draws(guide, 4000)[0]))
            reached = elapsed if reference.errors(draws)[0] < TARGET else math.inf
            spent += time.perf_counter() - pause
    with torch.no_grad():
        z, log_q = peer_draws(guide, num_draws)
        log_p = (
            torch.cat([log_joint(part) for part in z.split(1024)])
            if bool(torch.isfinite(z).all())
            else torch.full_like(log_q, math.nan)
        )
        draws = posterior.flat(log_joint.constrained(z))
    diagnosis = diagnose(log_p.double(), log_q.double(), draws=z.double(), stop_reason=failed or None)
    errors, excess = reference.errors(draws), reference.excess(draws)
    return {
        "dim": len(start), "chosen": name, "steps": steps, "seconds": seconds, "to_target": reached, "khat": diagnosis.khat,
        "ess": diagnosis.ess_fraction, "log_weight_sd": diagnosis.log_weight_sd, "mean_error": errors[0], "sd_error": errors[1],
        "w1": reference.w1(draws), "mean_excess": excess[0], "sd_excess": excess[1], "verdict": diagnosis.verdict,
        "stop": failed or "time",
    }  # fmt: skip


def peer_draws(guide: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws ``(S, D)`` and their log-density."""
    trace = pyro.poutine.trace(pyro.plate("particles", count, dim=-1)(guide)).get_trace()
    trace.compute_log_prob()
    log_q = sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and not site["name"] == "particles")
    return trace.nodes["_RETURN"]["value"]["z"], log_q


def run_ours(posterior: Posterior, seed: int, num_draws: int, reference: Reference) -> dict[str, Any]:
    """``fit`` with defaults."""
    began, cpu = time.perf_counter(), time.process_time()
    fit = pf.fit(posterior.model, *posterior.args, seed=seed, progress=False)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    diagnosis = fit.diagnose(num_draws)
    draws, better = (posterior.flat(d) for d in (fit.sample(num_draws, seed=seed), fit.resample(num_draws, seed=seed)))
    (mean, sd), (mean_psis, sd_psis) = reference.errors(draws), reference.errors(better)
    reached, excess = seconds if mean < TARGET else math.inf, reference.excess(draws)
    return {
        "dim": fit.record["dim"], "chosen": fit.record["flow"], "steps": fit.record["steps"], "seconds": seconds, "cpu": cpu,
        "to_target": reached, "khat": diagnosis.khat, "ess": diagnosis.ess_fraction, "log_weight_sd": diagnosis.log_weight_sd,
        "mean_error": mean, "sd_error": sd, "w1": reference.w1(draws), "mean_error_psis": mean_psis, "sd_error_psis": sd_psis,
        "mean_excess": excess[0], "sd_excess": excess[1], "verdict": diagnosis.verdict, "stop": fit.stop_reason,
    }  # fmt: skip


def rows(options: argparse.Namespace, done: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """All rows that are not done yet."""
    finished = {(row["posterior"], row["guide"], row["seed"]): row for row in done}
    posteriors = {name: posterior for name, posterior in all_posteriors().items() if options.only in name}
    guides = ["ours", *(["AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal", "AutoNormalizingFlow"] if options.peers else [])]
    everything = [(name, seed) for seed in range(options.seeds) for name in posteriors]
    for name, seed in tqdm(everything, desc="posteriors", dynamic_ncols=True):
        posterior, seconds = posteriors[name], 30.0
        reference = Reference(posterior)
        for guide in guides:
            key = (name, guide, str(seed))
            if key in finished:
                seconds = float(finished[key]["seconds"]) if guide == "ours" else seconds
                continue
            pyro.clear_param_store()
            try:
                if guide == "ours":
                    row = run_ours(posterior, seed, options.draws, reference)
                    seconds = row["seconds"]
                else:
                    row = run_peer(guide, posterior, seconds, seed, options.draws, reference)
            except (ArithmeticError, ValueError, RuntimeError) as error:
                tqdm.write(f"{name} {guide}: {type(error).__name__}: {error}")
                row = {"verdict": "error", "stop": type(error).__name__}
            yield {"posterior": name, "guide": guide, "seed": seed, **row}


def number(row: dict[str, Any], name: str) -> float:
    """A figure of a row, NaN where it has none."""
    return float(row[name]) if row.get(name) not in (None, "") else math.nan


def show(row: dict[str, Any]) -> str:
    """A row of the table."""
    figures = " ".join(
        f"{number(row, name):{width}.{digits}f}"
        for name, width, digits in (
            ("seconds", 6, 1), ("khat", 6, 2), ("ess", 6, 3), ("log_weight_sd", 7, 3), ("mean_error", 7, 3), ("sd_error", 7, 3),
            ("mean_error_psis", 7, 3), ("sd_error_psis", 7, 3), ("w1", 7, 2),
        )
    )  # fmt: skip
    name = f"{row['posterior'][:38]:<38} {row['guide'][:12]:<12} {row['seed']:>2} {row.get('chosen') or '-':<12.12}"
    return f"{name} {figures}  {row['verdict']}"


def summary(table: list[dict[str, Any]]) -> None:
    """What the rows together say."""
    ours = [row for row in table if row["guide"] == "ours"]
    for seed in sorted({row["seed"] for row in ours}):
        of_seed = [row for row in ours if row["seed"] == seed]
        counts = [
            sum(number(row, "ess") >= 0.95 for row in of_seed), sum(number(row, "ess") >= 0.9 for row in of_seed),
            sum(number(row, "mean_error") <= 0.05 and number(row, "sd_error") <= 0.05 for row in of_seed),
        ]  # fmt: skip
        print(f"seed {seed}: of {len(of_seed)}, IS-ESS/S >= 0.95: {counts[0]}, >= 0.90: {counts[1]}, within 0.05: {counts[2]}")
    for guide in sorted({row["guide"] for row in table} - {"ours"}):
        pairs = [
            (row, other)
            for row in ours
            for other in table
            if other["guide"] == guide and (row["posterior"], row["seed"]) == (other["posterior"], other["seed"])
        ]
        ahead = sum(number(a, "mean_error") <= 0.05 or not number(a, "mean_error") > number(b, "mean_error") for a, b in pairs)
        times = [(number(a, "to_target"), number(b, "to_target")) for a, b in pairs]
        both = [(a, b) for a, b in times if math.isfinite(a) and math.isfinite(b)]
        never = sum(not math.isfinite(b) for _, b in times)
        ratio = sum(b for _, b in both) / max(sum(a for a, _ in both), 1e-9)
        print(
            f"{guide}: ours ahead or within 0.05 on {ahead} of {len(pairs)}; time to 0.1 sd / ours {ratio:.2f}, never there {never}"
        )
    judged = [row for row in table if row["verdict"] in ("good", "reweight", "poor")]
    wrong = [row for row in judged if row["verdict"] == "good" and max(number(row, "mean_error"), number(row, "sd_error")) > 0.1]
    beyond = sum(max(number(row, "mean_excess"), number(row, "sd_excess")) > 0.1 for row in wrong)
    exact = [row for row in judged if number(row, "mean_error") < 0.03 and number(row, "sd_error") < 0.03]
    strict = sum(row["verdict"] == "poor" for row in exact)
    print(
        f"good with an error above 0.1 sd: {len(wrong)} of {len(judged)}, {beyond} of them beyond three standard errors of "
        f"reference and draws; poor below 0.03 sd: {strict} of {len(exact)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--draws", type=int, default=10_000, help="draws per fit (default 10,000)")
    parser.add_argument("--only", default="", help="posteriors whose name contains this")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave Pyro's guides out")
    parser.add_argument("--csv", type=Path, default=Path("posteriordb.csv"), help="where rows are kept (default posteriordb.csv)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for row in rows(options, done):
            writer.writerow(row)
            file.flush()
            tqdm.write(show(row))
    table = list(csv.DictReader(options.csv.open()))
    print(HEADER)
    for row in table:
        print(show(row))
    print("errors in reference sd, * after Pareto-smoothed importance resampling; W1 over that between halves of the reference")
    summary(table)


if __name__ == "__main__":
    main()
