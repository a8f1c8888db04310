"""Targets with known answers, fitted with default settings: evidence, both bounds, and what each target is known for.

All are normalised but many-well, whose evidence is a product of one-dimensional integrals. EUBO and the errors are taken from exact
draws.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf

Draws = dict[str, Tensor]


HEADER = f"{'target':<15} {'s':>2} {'chosen':<22} {'secs':>6} {'k-hat':>6} {'ess/S':>6} {'log Z e':>8} {'EU-ELBO':>8}  verdict"


@dataclass(frozen=True)
class Target:
    """A model, exact draws of it, its log evidence, and the figure that it is known for."""

    model: Callable[[], None]
    draws: Callable[[int], Draws]
    log_evidence: float = 0.0
    note: Callable[[pf.Fit], str] = lambda fit: ""


def prior_draws(model: Callable[[], None]) -> Callable[[int], Draws]:
    """Ancestral draws of a model without data."""

    def draws(count: int) -> Draws:
        with torch.no_grad():
            return dict(pyro.infer.Predictive(model, num_samples=count, parallel=False)())

    return draws


def funnel() -> None:
    """Neal's funnel in ten dimensions."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (0.5 * v).exp()).to_event(1))


def banana() -> None:
    """A curved ridge."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    pyro.sample("b", dist.Normal(0.03 * (a.square() - 100), 1.0))


def student() -> None:
    """Student's t with 2.5 degrees of freedom in ten dimensions."""
    pyro.sample("x", dist.MultivariateStudentT(2.5, torch.zeros(10), torch.eye(10)))


def skewed() -> None:
    """Margins of skewness between -2 and 1.1."""
    pyro.sample("gumbel", dist.Gumbel(torch.zeros(5), 1.0).to_event(1))
    pyro.sample("gamma", dist.Gamma(torch.full((5,), 0.5), 1.0).to_event(1))


MODES = 80 * torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 40


def forty() -> None:
    """Forty Gaussians in the plane."""
    components = dist.Normal(MODES, math.log1p(math.e)).to_event(1)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(40)), components))


def masses(fit: pf.Fit) -> str:
    """Least and largest mass of a mode over what it should be."""
    x = fit.sample(40_000, seed=0)["x"]
    counts = torch.cdist(x, MODES).argmin(-1).bincount(minlength=40) / 1000
    return f"mass of a mode over the true one {float(counts.min()):.2f} to {float(counts.max()):.2f}"


def _well(x: Tensor) -> Tensor:
    return -(x**4) + 6 * x**2 + 0.5 * x


GRID = torch.linspace(-4, 4, 200_001, dtype=torch.float64)
WELL = float(_well(GRID).logsumexp(0) + math.log(float(GRID[1] - GRID[0])))


def many_well() -> None:
    """Sixteen double wells, each with a normal beside it: 65,536 modes."""
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), (32,)))
    pyro.factor("wells", (_well(x[..., ::2]) - 0.5 * x[..., 1::2].square()).sum(-1))


def many_well_draws(count: int) -> Draws:
    """By the inverse distribution function of a well on a grid."""
    cdf = (_well(GRID) - WELL).exp().cumsum(0)
    wells = GRID[torch.searchsorted(cdf / cdf[-1], torch.rand(count, 16, dtype=torch.float64)).clamp_max(len(GRID) - 1)]
    x = torch.randn(count, 32)
    x[:, ::2] = wells.float()
    return {"x": x}


TARGETS = {
    "funnel": Target(funnel, prior_draws(funnel)),
    "banana": Target(banana, prior_draws(banana)),
    "student-t": Target(student, prior_draws(student)),
    "skewed margins": Target(skewed, prior_draws(skewed)),
    "40 modes": Target(forty, prior_draws(forty), note=masses),
    "many-well": Target(many_well, many_well_draws, 16 * (WELL + 0.5 * math.log(2 * math.pi))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    runs = [(name, seed) for name in TARGETS if options.only in name for seed in range(options.seeds)]
    for name, seed in tqdm(runs, desc="targets", dynamic_ncols=True):
        target = TARGETS[name]
        torch.manual_seed(1000 + seed)
        draws = target.draws(10_000)
        began = time.perf_counter()
        fit = pf.fit(target.model, seed=seed, progress=False)
        seconds = time.perf_counter() - began
        d = fit.diagnose(posterior=draws)
        lines.append(
            f"{name:<15} {seed:>2} {fit.record['flow']:<22.22} {seconds:6.1f} {d.khat:6.2f} {d.ess_fraction:6.3f} "
            f"{d.log_evidence - target.log_evidence:+8.3f} {d.eubo - d.elbo:8.3f}  {d.verdict:<9} {target.note(fit)}"
        )
        tqdm.write(lines[-1])
    print(HEADER)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
