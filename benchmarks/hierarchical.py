"""Hierarchical posteriors of 28 to 175 latents with default settings, against long NUTS runs.

The reference draws lie in ``benchmarks/reference`` with the script that made them, ``reference_draws.py``; its moments come from
40,000 draws. Errors are in reference sd, the worst over all latents and over the effects that they make; those with * are after
Pareto-smoothed importance resampling.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.posteriors.core import data

REFERENCE = Path(__file__).resolve().parent / "reference"
FIELDS = "posterior seed dim chosen seconds cpu khat ess mean_error sd_error mean_error_psis sd_error_psis verdict stop".split()
HEADER = (
    f"{'posterior':<22} {'s':>2} {'D':>4} {'chosen':<24} {'secs':>6} {'cpu':>6} {'k-hat':>6} {'ess/S':>6} "
    f"{'mean e':>7} {'sd e':>7} {'mean e*':>7} {'sd e*':>7}  verdict"
)
Draws = dict[str, Tensor]


@dataclass(frozen=True)
class Hierarchical:
    """A model, the name of its reference, and what the draws make besides the latents."""

    model: Callable[..., None]
    args: tuple[Any, ...]
    reference: str
    derived: Callable[[Draws], Draws] = lambda draws: {}


def _scale(name: str, flat: bool) -> Tensor:
    positive = dist.constraints.positive
    return pyro.sample(name, dist.ImproperUniform(positive, (), ()) if flat else dist.HalfNormal(1.0))


def radon(county: Tensor, floor: Tensor, y: Tensor, centred: bool, flat: bool = False) -> None:
    """Radon in houses: an intercept and a slope of the floor per county."""
    means = [pyro.sample(name, dist.Normal(0.0, 10.0)) for name in ("m_a", "m_b")]
    scales = [_scale(name, flat) for name in ("s_a", "s_b")]
    noise = _scale("s_y", flat)
    effects = []
    for name, mean, scale in zip("ab", means, scales, strict=True):
        if centred:
            effects.append(pyro.sample(name, dist.Normal(mean, scale).expand((85,)).to_event(1)))
        else:
            effects.append(mean + scale * pyro.sample(f"z_{name}", dist.Normal(0.0, 1.0).expand((85,)).to_event(1)))
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(effects[0][county] + effects[1][county] * floor, noise), obs=y)


def _effects(draws: Draws) -> Draws:
    """The effects that the non-centred form has no site for."""
    return {n: draws[f"m_{n}"][:, None] + draws[f"s_{n}"][:, None] * draws[f"z_{n}"] for n in "ab"}


def irt_2pl(y: Tensor) -> None:
    """Two-parameter item response: 20 items, 100 persons."""
    s_th, s_a, s_b = (pyro.sample(name, dist.HalfCauchy(2.0)) for name in ("s_th", "s_a", "s_b"))
    m_b = pyro.sample("m_b", dist.Normal(0.0, 5.0))
    th = pyro.sample("th", dist.Normal(0.0, s_th).expand((100,)).to_event(1))
    a = pyro.sample("a", dist.LogNormal(0.0, s_a).expand((20,)).to_event(1))
    b = pyro.sample("b", dist.Normal(m_b, s_b).expand((20,)).to_event(1))
    pyro.sample("y", dist.Bernoulli(logits=a[:, None] * (th - b[:, None])).to_event(2), obs=y)


def seeds(x1: Tensor, x2: Tensor, total: Tensor, n: Tensor) -> None:
    """Germination: random effects of plates."""
    a0, a1, a2, a12 = (pyro.sample(name, dist.Normal(0.0, 1000.0)) for name in ("a0", "a1", "a2", "a12"))
    tau = pyro.sample("tau", dist.Gamma(0.001, 0.001))
    with pyro.plate("plates", len(n)):
        b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
        pyro.sample("n", dist.Binomial(total, logits=a0 + a1 * x1 + a2 * x2 + a12 * x1 * x2 + b), obs=n)


def rats(rat: Tensor, x: Tensor, y: Tensor) -> None:
    """Growth curves of rats, scales flat."""
    m_al, m_be = (pyro.sample(name, dist.Normal(0.0, 100.0)) for name in ("m_al", "m_be"))
    s_al, s_be, s_y = (_scale(name, flat=True) for name in ("s_al", "s_be", "s_y"))
    al = pyro.sample("al", dist.Normal(m_al, s_al).expand((30,)).to_event(1))
    be = pyro.sample("be", dist.Normal(m_be, s_be).expand((30,)).to_event(1))
    pyro.sample("y", dist.Normal(al[rat] + be[rat] * x, s_y).to_event(1), obs=y)


def hierarchical() -> dict[str, Hierarchical]:
    """The posteriors by name."""
    r, s, g = data("radon_mn"), data("seeds_data"), data("rats_data")
    houses = (r["county_idx"].long() - 1, r["floor_measure"], r["log_radon"])
    plates = tuple(torch.as_tensor(s[key]).float() for key in ("x1", "x2", "N", "n"))
    growth = (g["rat"].long() - 1, g["x"] - g["xbar"], g["y"])
    return {
        "radon non-centred": Hierarchical(radon, (*houses, False), "radon", _effects),
        "radon centred": Hierarchical(radon, (*houses, True), "radon"),
        "radon flat scales": Hierarchical(radon, (*houses, False, True), "radon_flat", _effects),
        "irt_2pl": Hierarchical(irt_2pl, (data("irt_2pl")["y"],), "irt_2pl"),
        "seeds": Hierarchical(seeds, plates, "seeds", lambda draws: {"log_tau": draws["tau"].log()}),
        "rats": Hierarchical(rats, growth, "rats"),
    }


def errors(draws: Draws, reference: Any) -> tuple[float, float]:
    """Worst error of a mean in reference sd, worst relative error of an sd."""
    mean = sd = 0.0
    for name, value in draws.items():
        if name == "tau":  # sd of an inverse variance that may be anything: its logarithm is compared
            continue
        value = value.double().reshape(len(value), -1).numpy()
        true_mean, true_sd = (np.asarray(reference[f"{what}:{name}"], float).reshape(-1) for what in ("mean", "sd"))
        mean = max(mean, float((np.abs(value.mean(0) - true_mean) / true_sd).max()))
        sd = max(sd, float(np.abs(value.std(0) / true_sd - 1).max()))
    return mean, sd


def run(name: str, posterior: Hierarchical, seed: int, num_draws: int) -> dict[str, Any]:
    """``fit`` with defaults."""
    pyro.clear_param_store()
    began, cpu = time.perf_counter(), time.process_time()
    fit = pf.fit(posterior.model, *posterior.args, seed=seed, progress=False)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    diagnosis = fit.diagnose(num_draws)
    found = []
    with np.load(REFERENCE / f"{posterior.reference}.npz") as reference:
        for draws in (fit.sample(num_draws, seed=seed), fit.resample(num_draws, seed=seed)):
            found += errors({**draws, **posterior.derived(draws)}, reference)
    return {
        "posterior": name, "seed": seed, "dim": fit.record["dim"], "chosen": fit.record["flow"], "seconds": seconds, "cpu": cpu,
        "khat": diagnosis.khat, "ess": diagnosis.ess_fraction, "mean_error": found[0], "sd_error": found[1],
        "mean_error_psis": found[2], "sd_error_psis": found[3], "verdict": diagnosis.verdict, "stop": fit.stop_reason,
    }  # fmt: skip


def show(row: dict[str, Any]) -> str:
    """A row of the table."""
    figures = " ".join(
        f"{float(row[name]):{width}.{digits}f}"
        for name, width, digits in (
            ("seconds", 6, 1), ("cpu", 6, 1), ("khat", 6, 2), ("ess", 6, 3), ("mean_error", 7, 3), ("sd_error", 7, 3),
            ("mean_error_psis", 7, 3), ("sd_error_psis", 7, 3),
        )
    )  # fmt: skip
    return f"{row['posterior']:<22} {row['seed']:>2} {row['dim']:>4} {row['chosen']:<24.24} {figures}  {row['verdict']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--draws", type=int, default=10_000, help="draws per fit (default 10,000)")
    parser.add_argument("--only", default="", help="posteriors whose name contains this")
    parser.add_argument("--csv", type=Path, default=Path("hierarchical.csv"), help="where rows are kept (default hierarchical.csv)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    finished = {(row["posterior"], row["seed"]) for row in done}
    chosen = {name: posterior for name, posterior in hierarchical().items() if options.only in name}
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for seed, name in tqdm([(s, n) for s in range(options.seeds) for n in chosen], desc="posteriors", dynamic_ncols=True):
            if (name, str(seed)) in finished:
                continue
            row = run(name, chosen[name], seed, options.draws)
            writer.writerow(row)
            file.flush()
            tqdm.write(show(row))
    print(HEADER)
    for row in csv.DictReader(options.csv.open()):
        print(show(row))


if __name__ == "__main__":
    main()
