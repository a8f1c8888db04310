"""An hour of fits, densities, amortised guides, checkpoints, saves and loads in one process: resident memory has to stay flat.

Every round fits a model with a flow, draws from it and judges it, trains a density and an amortised guide for a moment, writes and
resumes a checkpoint, saves what was fitted and loads it again. Resident memory is read after every round; what counts is its growth
between the mean over the minute after the warm-up and the mean over the last minute.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from pyro_flows.infer import CheckpointFolder


def model(y: torch.Tensor | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    sd = pyro.sample("sd", dist.HalfNormal(1.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mean, sd), obs=y)


def one_round(seed: int, folder: Path) -> None:
    """Everything once."""
    torch.manual_seed(seed)
    y = torch.randn(5)
    guide = ("real_nvp", "nsf_coupling", "iaf", "affine")[seed % 4]
    options = {"guide": guide, "max_steps": 200, "num_particles": 32, "progress": False}
    fit = pf.fit(model, y, seed=seed, checkpoint=CheckpointFolder(folder / "run", every=1.0), **options)  # type: ignore[arg-type]
    pf.fit(model, y, seed=seed, checkpoint=folder / "run", **options)  # type: ignore[arg-type]
    fit.sample(500)
    fit.diagnose()
    fit.save(folder / "fit")
    pf.load(folder / "fit", model, y).sample(10)
    density = pf.fit_density("maf", torch.randn(300, 2), max_epochs=2, progress=False)
    pf.save(density, folder / "density")
    pf.load(folder / "density").log_prob(torch.zeros(3, 2))
    amortised = pf.AmortizedFlow(model, observed=["y"])
    pf.fit_amortized(amortised, num_simulations=200, max_epochs=2, progress=False)
    amortised.sample(y, 100)
    pyro.clear_param_store()


def resident() -> float:
    """Resident memory of this process in MiB, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="length (default 60)")
    parser.add_argument("--warmup", type=float, default=10.0, help="minutes before memory counts (default 10)")
    parser.add_argument("--csv", type=Path, default=Path("soak.csv"), help="where readings are written (default soak.csv)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, readings = time.monotonic(), list[tuple[float, float]]()
    with tqdm(total=round(options.minutes * 60), unit="s", desc="soak", dynamic_ncols=True) as bar, options.csv.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["minute", "MiB"])
        while (minute := (time.monotonic() - began) / 60) < options.minutes:
            with tempfile.TemporaryDirectory() as folder:
                one_round(len(readings), Path(folder))
            gc.collect()
            readings.append((minute, resident()))
            writer.writerow([f"{minute:.3f}", f"{readings[-1][1]:.2f}"])
            file.flush()
            bar.n = round(minute * 60)
            bar.set_postfix_str(f"{readings[-1][1]:.0f} MiB")
    early = [memory for minute, memory in readings if options.warmup <= minute < options.warmup + 1]
    late = [memory for minute, memory in readings if minute >= options.minutes - 1]
    print(f"{'minute':>8}{'MiB':>10}")
    for i in range(0, len(readings), max(1, len(readings) // 12)):
        print(f"{readings[i][0]:>8.1f}{readings[i][1]:>10.1f}")
    if early and late:
        growth = statistics.mean(late) / statistics.mean(early) - 1
        means = f"{statistics.mean(early):.1f} MiB after the warm-up, {statistics.mean(late):.1f} at the end"
        print(f"{len(readings)} rounds; {means}: {100 * growth:+.2f} %")


if __name__ == "__main__":
    main()
