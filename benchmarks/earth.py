"""Densities on the globe: earthquakes, fires and volcanoes by a mixture of spherical flows, beside two plain baselines.

Places are de-duplicated, then split 80 / 10 / 10 at random, five times. Every method is fitted to the training part, its one or two
knobs are chosen by the validation part, and what counts is the mean negative log-density per place of the test part, with regard to
area on the unit sphere (2.531 is that of the uniform density).

    kernels   a von Mises-Fisher kernel density: the concentration, and a uniform share of 1 %
    vMF       a mixture of von Mises-Fisher distributions by EM: the number of components
    flows     the mean of four mixtures of flows from other starts (sphere_mixture, fit_density, FlowMixture.average), each with a
              background: the number of components, a fortieth, a twentieth or a tenth of the training part, 400 at most
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.kept_rows import run_and_keep
from pyro_flows.diagnostics import plot_globe
from pyro_flows.distributions import FlowMixture, sphere_mixture
from pyro_flows.distributions.k_means import k_means
from pyro_flows.manifolds import project_to_sphere
from pyro_flows.manifolds.sphere import log_area, log_normaliser

EARTH = Path(__file__).resolve().parents[2] / "shared" / "data" / "earth"
FILES = {"earthquakes": "quakes_all.csv", "fires": "fire.csv", "volcanoes": "volerup.csv"}
FIELDS = ("data", "split", "method", "choice", "validation", "test", "seconds")


def places(name: str) -> Tensor:
    """Unit vectors of the distinct places."""
    rows = []
    for line in (EARTH / FILES[name]).read_text().splitlines():
        parts = line.split(",")
        try:
            rows.append((float(parts[0]), float(parts[1])))
        except (ValueError, IndexError):
            continue  # comments and the header
    degrees = torch.tensor(sorted(set(rows)), dtype=torch.float64)
    latitude, longitude = torch.deg2rad(degrees).T
    ring = latitude.cos()
    return project_to_sphere(torch.stack([ring * longitude.cos(), ring * longitude.sin(), latitude.sin()], -1))


def split(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test."""
    points = places(name)
    points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]
    a, b = round(0.8 * len(points)), round(0.9 * len(points))
    return points[:a], points[a:b], points[b:]


def vmf_log_prob(x: Tensor, centres: Tensor, kappa: Tensor) -> Tensor:
    """Of each centre ``(N, K)``, with the digits that large concentrations need."""
    gap = 0.5 * torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    return -kappa * gap - log_normaliser(kappa, 3)


def kernels(train: Tensor, validation: Tensor, test: Tensor) -> tuple[str, float, float]:
    """The concentration from a grid."""
    best = ("", math.inf, math.inf)
    for kappa in torch.logspace(1.5, 7, 34, dtype=torch.float64):

        def nll(x: Tensor, kappa: Tensor = kappa) -> float:
            inside = torch.cat([vmf_log_prob(part, train, kappa).logsumexp(1) for part in x.split(500)]) - math.log(len(train))
            return -float(torch.logaddexp(inside + math.log(0.99), torch.full_like(inside, math.log(0.01) - log_area(3))).mean())

        value = nll(validation)
        if value < best[1]:
            best = (f"kappa {float(kappa):.3g}", value, nll(test))
    return best


def vmf_mixture(train: Tensor, validation: Tensor, test: Tensor, counts: Sequence[int]) -> tuple[str, float, float]:
    """EM from k-means; the concentration by the mean length, in closed form on S2 but for rounding."""
    best = ("", math.inf, math.inf)
    for count in counts:
        for seed in range(2):
            weights = torch.nn.functional.one_hot(k_means(train, count, seed), count).double()
            for _ in range(200):
                total = weights.mT @ train
                mass = weights.sum(0).clamp(min=1e-6)
                length = (total.norm(dim=-1) / mass).clamp(max=1 - 1e-8)
                centres, log_pi = project_to_sphere(total), (mass / len(train)).log()
                kappa = (length * (3 - length.square()) / (1 - length.square())).clamp(1e-3, 1e6)
                for _ in range(5):  # Newton's steps for coth(k) - 1 / k = length
                    ratio = 1 / torch.tanh(kappa) - 1 / kappa
                    kappa = (kappa - (ratio - length) / (1 - ratio.square() - 2 * ratio / kappa)).clamp(1e-3, 1e6)
                weights = (vmf_log_prob(train, centres, kappa) + log_pi).softmax(1)

            def nll(x: Tensor, c: Tensor = centres, k: Tensor = kappa, p: Tensor = log_pi) -> float:
                return -float((vmf_log_prob(x, c, k) + p).logsumexp(1).mean())

            value = nll(validation)
            if value < best[1]:
                best = (f"{count} components", value, nll(test))
    return best


@torch.no_grad()
def mean_nll(q: FlowMixture, x: Tensor) -> float:
    return -float(torch.cat([q.log_prob(part) for part in x.split(500)]).mean())


def flow_mixture(
    train: Tensor, validation: Tensor, test: Tensor, mixtures: int, epochs: int, limit: float
) -> tuple[str, float, float, FlowMixture]:
    """By direct likelihood, from k-means."""
    best: tuple[str, float, float, FlowMixture] | None = None
    counts = sorted({min(400, len(train) // part) for part in (40, 20, 10)})
    for count in counts:
        found = []
        for seed in range(mixtures):
            mixture = sphere_mixture(train, count, background=0.03, seed=seed)
            pf.fit_density(
                mixture, train, validation=(validation,), max_epochs=epochs, lr=1e-2, patience=8,
                max_time=limit / len(counts) / mixtures, seed=seed, progress=False
            )  # fmt: skip
            found.append(mixture)
        mean = FlowMixture.average(found)
        value = mean_nll(mean, validation)
        if best is None or value < best[1]:
            best = (f"{mixtures} x {count} components", value, mean_nll(mean, test), mean)
    assert best is not None
    return best


def table(rows: Sequence[dict[str, str]]) -> str:
    """Means over the splits, and their standard deviations."""
    lines = [f"{'data':<12}{'method':<10}{'splits':>7}{'test NLL':>18}   choices"]
    for data in FILES:
        for method in ("kernels", "vMF", "flows"):
            found = [row for row in rows if (row["data"], row["method"]) == (data, method)]
            if found:
                values = [float(row["test"]) for row in found]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else " " * 8
                choices = ", ".join(dict.fromkeys(row["choice"] for row in found))
                lines.append(f"{data:<12}{method:<10}{len(found):>7}{statistics.mean(values):>11.3f}{spread}   {choices}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--methods", nargs="+", choices=("kernels", "vMF", "flows"), default=("kernels", "vMF", "flows"))
    parser.add_argument("--splits", type=int, default=5, help="number of random splits (default 5)")
    parser.add_argument("--mixtures", type=int, default=4, help="mixtures whose mean is taken (default 4)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each fit at most (default 30)")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for the flows of one split (default 900)")
    parser.add_argument("--csv", type=Path, default=Path("earth.csv"), help="where rows are kept (default earth.csv)")
    parser.add_argument("--pictures", type=Path, help="folder for the globes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def run(data: str, seed: int, method: str) -> dict[str, object]:
        parts, began = split(data, seed), time.process_time()
        if method == "kernels":
            found = kernels(*parts)
        elif method == "vMF":
            found = vmf_mixture(*parts, (5, 10, 20, 40, 60, 80, 120, 160, 240, 320))
        else:
            *found, q = flow_mixture(*parts, options.mixtures, options.epochs, options.limit)  # type: ignore[assignment]
            if options.pictures and seed == 0:
                options.pictures.mkdir(parents=True, exist_ok=True)
                path = options.pictures / f"globe_{data}.png"
                plot_globe(torch.no_grad()(q.log_prob), points=parts[2], title=data, dtype=torch.float64, path=path)
        seconds = round(time.process_time() - began, 1)
        return dict(zip(FIELDS, (data, seed, method, *found, seconds), strict=True))

    rows = run_and_keep(
        options.csv,
        FIELDS,
        ("data", "split", "method"),
        [(data, seed, method) for data in options.data for seed in range(options.splits) for method in options.methods],
        run,
        lambda row: (
            f"{row['data']:<12}{row['method']:<10}{row['split']:>3} {row['choice']:<18} test {row['test']:.3f}  {row['seconds']} s"
        ),
    )
    print(table(rows))


if __name__ == "__main__":
    main()
