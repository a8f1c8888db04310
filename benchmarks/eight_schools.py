"""Eight schools with default settings against reference draws: accuracy of raw and reweighted draws, over seeds."""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from pathlib import Path

import pyro
import torch
from tqdm import tqdm

import pyro_flows as pf
from pyro_flows.data import eight_schools
from pyro_flows.demo import centred, non_centred

DRAWS = Path(__file__).resolve().parents[2] / "shared/data/posteriordb/draws/eight_schools-eight_schools_noncentered.json.zip"


def reference(path: Path) -> torch.Tensor:
    """Reference draws, ``(S, 10)``: mu, tau, theta[1] … theta[8]."""
    with zipfile.ZipFile(path) as archive:
        chains = json.loads(archive.read(archive.namelist()[0]))
    names = ["mu", "tau", *(f"theta[{j}]" for j in range(1, 9))]
    return torch.cat([torch.tensor([chain[name] for name in names], dtype=torch.float64).T for chain in chains])


def columns(draws: dict[str, torch.Tensor]) -> torch.Tensor:
    """Draws of a fit in the order of the reference."""
    return torch.cat([draws["mu"][:, None], draws["tau"][:, None], draws["theta"]], -1).double()


def errors(draws: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Worst error of a mean in reference sd, worst relative error of an sd."""
    mean = ((draws.mean(0) - truth.mean(0)).abs() / truth.std(0)).max()
    return float(mean), float((draws.std(0) / truth.std(0) - 1).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--draws", type=int, default=10_000, help="draws per fit (default 10,000)")
    parser.add_argument("--reference", type=Path, default=DRAWS, help="reference draws, a zip file of posteriordb")
    options = parser.parse_args()
    torch.set_num_threads(1)
    truth, study, rows = reference(options.reference), eight_schools(), []
    forms = (("non-centred", non_centred), ("centred", centred))
    for name, model in forms:
        for seed in tqdm(range(options.seeds), desc=name):
            pyro.clear_param_store()
            began, cpu = time.perf_counter(), time.process_time()
            fit = pf.fit(model, study.y, study.sigma, seed=seed, progress=False)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            diagnosis = fit.diagnose(options.draws)
            raw = errors(columns(fit.sample(options.draws, seed=seed)), truth)
            better = errors(columns(fit.resample(options.draws, seed=seed)), truth)
            cells = (diagnosis.ess_fraction, diagnosis.khat, *raw, *better, fit.record["steps"], cpu, wall)
            rows.append((f"{name:<12} {seed:>4}", cells, diagnosis.verdict))
            tqdm.write(f"{name} seed {seed}: IS-ESS/S {diagnosis.ess_fraction:.3f}, {cpu:.1f} s of one core")
    print("form         seed  IS-ESS/S  k-hat  mean err  sd err  mean err*  sd err*  steps  cpu s  wall s  verdict")
    widths = (8, 5, 8, 6, 9, 7, 5, 5, 6)
    digits = (3, 2, 3, 3, 3, 3, 0, 1, 1)
    for label, cells, verdict in rows:
        figures = (f"{cell:{width}.{digit}f}" for cell, width, digit in zip(cells, widths, digits, strict=True))
        print("  ".join([label, *figures, verdict]))
    print("errors in reference sd; * after Pareto-smoothed importance resampling")


if __name__ == "__main__":
    main()
