"""Density estimation in two dimensions: held-out nats of every factory of ours beside peers, at equal time of one core.

Eight normals, a checkerboard, two spirals, a pinwheel and rings: 20,000 points to train on, as many held out. Every contestant is
trained by the same loop, Adam on minibatches of 256 with a step size that falls along a cosine, until the processor has worked
``--seconds`` for it; what counts is the mean log-density of held-out points in nats. Where the true density is known, its own value
stands in the first row. ``--picture`` draws the density of the best of ours on every set.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contestants import CONTESTANTS, LogProb, keep_trainings, train
from pyro_flows import flows

COUNT = 20_000
FIELDS = ("data", "flow", "seed", "parameters", "steps", "nats")


# Data


def eight_normals(n: int) -> tuple[Tensor, LogProb | None]:
    """On a circle of radius 4, of sd 0.5."""
    angle = torch.arange(8) * math.pi / 4
    centres = 4 * torch.stack([angle.cos(), angle.sin()], -1)

    def log_prob(x: Tensor) -> Tensor:
        squares = (x[:, None] - centres).square().sum(-1) / 0.25
        return torch.logsumexp(-0.5 * squares, 1) - math.log(8 * 2 * math.pi * 0.25)

    return centres[torch.randint(8, (n,))] + 0.5 * torch.randn(n, 2), log_prob


def checkerboard(n: int) -> tuple[Tensor, LogProb | None]:
    """Eight of sixteen squares of side 2."""
    column = torch.randint(4, (n,))
    row = 2 * torch.randint(2, (n,)) + column % 2
    points = 2 * (torch.stack([column, row], -1) + torch.rand(n, 2)) - 4
    return points, lambda x: torch.full((len(x),), -math.log(32.0))


def two_spirals(n: int) -> tuple[Tensor, LogProb | None]:
    """Of one and a half turns, with noise of sd 0.1."""
    angle = 3 * math.pi * torch.rand(n).sqrt()
    arm = torch.stack([-angle.cos() * angle, angle.sin() * angle], -1) / 3
    sign = 1 - 2 * torch.randint(2, (n, 1))
    return sign * arm + 0.1 * torch.randn(n, 2), None


def pinwheel(n: int) -> tuple[Tensor, LogProb | None]:
    """Five blades."""
    blade = torch.randint(5, (n,))
    x = torch.randn(n, 2) * torch.tensor([0.3, 0.1]) + torch.tensor([1.0, 0.0])
    turn = blade * 2 * math.pi / 5 + 0.25 * x[:, 0].exp()
    return 2 * torch.stack([turn.cos() * x[:, 0] - turn.sin() * x[:, 1], turn.sin() * x[:, 0] + turn.cos() * x[:, 1]], -1), None


def rings(n: int) -> tuple[Tensor, LogProb | None]:
    """Four, of radii 1 to 4 and sd 0.08."""
    radius, angle = torch.randint(1, 5, (n,)).float(), 2 * math.pi * torch.rand(n)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1) + 0.08 * torch.randn(n, 2), None


DATA = {f.__name__: f for f in (eight_normals, checkerboard, two_spirals, pinwheel, rings)}


def run(data: str, name: str, seed: int, seconds: float, lr: float) -> dict[str, object]:
    """One contestant on one set."""
    torch.manual_seed(seed)
    points, _ = DATA[data](COUNT)
    held_out, _ = DATA[data](COUNT)
    loc, scale = points.mean(0), points.std(0)
    module, log_prob = CONTESTANTS[name](2, COUNT)
    steps = train(module, log_prob, (points - loc) / scale, seconds, lr)
    values = torch.cat([log_prob(part).detach() for part in ((held_out - loc) / scale).split(2000)]) - scale.log().sum()
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {"data": data, "flow": name, "seed": seed, "parameters": count, "steps": steps, "nats": float(values.mean())}


def table(rows: Sequence[dict[str, str]]) -> str:
    """Mean nats over seeds, best first, and the truth."""
    sets = [name for name in DATA if any(row["data"] == name for row in rows)]
    names = list(dict.fromkeys(row["flow"] for row in rows))

    def mean(data: str, name: str) -> float:
        found = [float(row["nats"]) for row in rows if (row["data"], row["flow"]) == (data, name)]
        return sum(found) / len(found) if found else math.nan

    lines = [f"{'flow':<22} " + " ".join(f"{name:>14}" for name in sets)]
    torch.manual_seed(0)
    truth = []
    for name in sets:
        points, log_prob = DATA[name](200_000)
        truth.append(f"{float(log_prob(points).mean()):>14.3f}" if log_prob is not None else f"{'—':>14}")
    lines.append(f"{'the truth':<22} " + " ".join(truth))
    for name in sorted(names, key=lambda name: -sum(mean(data, name) for data in sets)):
        lines.append(f"{name:<22} " + " ".join(f"{mean(data, name):>14.3f}" for data in sets))
    for name in sets:
        best = {
            own: max((mean(name, each) for each in names if (each in flows.names()) == own), default=math.nan)
            for own in (True, False)
        }
        lines.append(f"{name}: best of ours {best[True]:.3f}, best of the peers {best[False]:.3f}")
    return "\n".join(lines)


def picture(path: Path, rows: Sequence[dict[str, str]], seconds: float, lr: float) -> None:
    """Points, and the density of the best of ours, trained once more."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(DATA), figsize=(3 * len(DATA), 6))
    for (data, make), (above, below) in zip(DATA.items(), axes.T, strict=True):
        own = [row for row in rows if row["data"] == data and row["flow"] in flows.names()]
        name = max(own, key=lambda row: float(row["nats"]))["flow"] if own else "nsf_autoregressive"
        torch.manual_seed(0)
        points, _ = make(COUNT)
        loc, scale = points.mean(0), points.std(0)
        module, log_prob = CONTESTANTS[name](2, COUNT)
        train(module, log_prob, (points - loc) / scale, seconds, lr)
        low, high = points.min(0).values - 0.5, points.max(0).values + 0.5
        grid = torch.stack(torch.meshgrid(*(torch.linspace(a, b, 200) for a, b in zip(low, high, strict=True)), indexing="xy"), -1)
        density = torch.cat([log_prob(part).detach() for part in ((grid.reshape(-1, 2) - loc) / scale).split(4000)]).exp()
        above.scatter(*points[:4000].T, s=0.5, c="black", linewidths=0)
        below.imshow(density.reshape(200, 200), origin="lower", extent=[*low[:1], *high[:1], *low[1:], *high[1:]], cmap="viridis")
        above.set_title(data.replace("_", " "))
        below.set_title(name)
        for axis in (above, below):
            axis.set(xticks=[], yticks=[], aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--flows", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of each training (default 60)")
    parser.add_argument("--lr", type=float, default=5e-3, help="largest step size (default 5e-3)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--csv", type=Path, default=Path("densities.csv"), help="where rows are kept (default densities.csv)")
    parser.add_argument("--picture", type=Path, help="draw the densities of the best of ours here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = keep_trainings(options, FIELDS, lambda data, name, seed: run(data, name, seed, options.seconds, options.lr))
    print(table(rows))
    if options.picture:
        picture(options.picture, rows, options.seconds, options.lr)


if __name__ == "__main__":
    main()
