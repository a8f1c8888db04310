"""Neural transport after a default fit beside plain NUTS: effective draws per gradient of the log-density.

Each evaluation of the density by the fit, search for a start and training, counts as one gradient.
Both run 4 chains of 1,000 draws at target acceptance 0.8.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import torch
from pyro.infer import MCMC, NUTS
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.targets import funnel
from pyro_flows.data import eight_schools
from pyro_flows.demo import centred
from pyro_flows.model import LogJoint

HEADER = (
    f"{'model':<22} {'sampler':<12} {'s':>2} {'R-hat':>6} {'ESS':>7} {'diverg.':>7} {'gradients':>10} "
    f"{'ESS/1000 gradients':>19} {'secs':>6}"
)


def models() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The models, with their arguments."""
    study = eight_schools()
    return {"funnel": (funnel, ()), "eight schools, centred": (centred, (study.y, study.sigma))}


def figures(draws: np.ndarray) -> tuple[float, float]:
    """Worst R-hat and least bulk effective size of draws ``(C, S, D)``."""
    return (
        max(float(arviz.rhat(draws[..., i])) for i in range(draws.shape[-1])),
        min(float(arviz.ess(draws[..., i])) for i in range(draws.shape[-1])),
    )


def line(name: str, sampler: str, seed: int, draws: np.ndarray, diverging: int, gradients: int, seconds: float) -> str:
    """A row of the table."""
    rhat, ess = figures(draws)
    return (
        f"{name:<22} {sampler:<12} {seed:>2} {rhat:6.3f} {ess:7.0f} {diverging:7d} {gradients:10,d} "
        f"{1000 * ess / gradients:19.3f} {seconds:6.0f}"
    )


def run_ours(name: str, model: Callable[..., Any], args: tuple[Any, ...], seed: int) -> str:
    """A default fit, then ``refine_mcmc`` with defaults."""
    began = time.perf_counter()
    fit = pf.fit(model, *args, seed=seed, progress=False)
    spent = fit.log_joint.num_evaluations  # not all with a gradient
    data = fit.refine_mcmc(1000, seed=seed, progress=False)
    posterior = data["posterior"]
    draws = np.concatenate([posterior[site].values.reshape(4, 1000, -1) for site in fit.log_joint.structure.initial], -1)
    gradients = int(posterior.attrs["num_gradients"]) + spent
    return line(
        name, "refine_mcmc", seed, draws, int(data["sample_stats"]["diverging"].sum()), gradients, time.perf_counter() - began
    )


def run_plain(name: str, model: Callable[..., Any], args: tuple[Any, ...], seed: int) -> str:
    """Pyro's NUTS on the unconstrained latents."""
    log_joint, count = LogJoint(model, args), 0

    def potential(values: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal count
        count += 1
        return -log_joint(values["z"][None])[0]

    torch.manual_seed(seed)
    began = time.perf_counter()
    start = torch.empty(4, log_joint.structure.dim).uniform_(-2, 2)
    kernel = NUTS(potential_fn=potential, target_accept_prob=0.8)
    mcmc = MCMC(kernel, 1000, 1000, initial_params={"z": start}, num_chains=4, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples(group_by_chain=True)["z"]
    diverging = sum(len(steps) for steps in mcmc.diagnostics()["divergences"].values())
    return line(name, "plain NUTS", seed, z.numpy(), diverging, count, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--only", default="", help="models whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: value for name, value in models().items() if options.only in name}
    runs = [(name, seed, run) for seed in range(options.seeds) for name in chosen for run in (run_ours, run_plain)]
    lines = []
    for name, seed, run in tqdm(runs, desc="chains", dynamic_ncols=True):
        lines.append(run(name, *chosen[name], seed))
        tqdm.write(lines[-1])
    print(HEADER)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
