"""Density estimation of tables: held-out nats of flows of ours beside those of zuko, at equal time of one core.

scikit-learn's breast cancer (569 x 30) and wine (178 x 13), and the continuous columns of posteriordb's diamonds (carat, the logs
of depth, table and of a size, and the log-price; 5,000 x 5). 80 % of the rows, by a fixed split, are for training, 10 % choose the
state that is kept, 10 % are scored. Columns are standardised by the rows for training; prices and carats repeat, so that every
column gets uniform noise of the width of its commonest step, fixed once. What counts is the mean log-density of held-out rows in
nats, with the standard error over rows of the difference from the best of zuko.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contestants import CONTESTANTS, keep_trainings, train
from pyro_flows import flows

DIAMONDS = Path(__file__).resolve().parents[2] / "shared" / "data" / "posteriordb" / "data" / "diamonds.json.zip"
FIELDS = ("data", "flow", "seed", "parameters", "steps", "nats", "rows")


def breast_cancer() -> Tensor:
    from sklearn.datasets import load_breast_cancer

    return torch.tensor(load_breast_cancer().data, dtype=torch.float64)


def wine() -> Tensor:
    from sklearn.datasets import load_wine

    return torch.tensor(load_wine().data, dtype=torch.float64)


def diamonds() -> Tensor:
    with zipfile.ZipFile(DIAMONDS) as archive:
        raw = json.loads(archive.read(archive.namelist()[0]))
    x = torch.tensor(raw["X"], dtype=torch.float64)[:, 1:5]
    return torch.cat([x, torch.tensor(raw["Y"], dtype=torch.float64)[:, None]], 1)


DATA = {f.__name__: f for f in (breast_cancer, wine, diamonds)}


def split(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for training, validation and test, standardised."""
    generator = torch.Generator().manual_seed(0)
    rows = DATA[name]()
    steps = []
    for column in rows.T:
        gaps = column.unique().diff()
        steps.append(gaps.median())
    rows = rows + torch.stack(steps) * (torch.rand(rows.shape, generator=generator, dtype=torch.float64) - 0.5)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    a, b = round(0.8 * len(rows)), round(0.9 * len(rows))
    loc, scale = rows[:a].mean(0), rows[:a].std(0)
    rows = ((rows - loc) / scale).float()
    return rows[:a], rows[a:b], rows[b:]


def run(data: str, name: str, seed: int, seconds: float, lr: float) -> dict[str, object]:
    """One contestant on one table."""
    torch.manual_seed(seed)
    rows, validation, test = split(data)
    module, log_prob = CONTESTANTS[name](rows.shape[1], len(rows))
    steps = train(module, log_prob, rows, seconds, lr, validation)
    values = log_prob(test).detach()
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    kept = " ".join(f"{value:.4f}" for value in values.tolist())
    return {
        "data": data, "flow": name, "seed": seed, "parameters": count, "steps": steps, "nats": float(values.mean()), "rows": kept
    }  # fmt: skip


def table(rows: Sequence[dict[str, str]]) -> str:
    """Mean nats over seeds, best first, with the difference from the best of zuko."""
    lines = []
    for data in [name for name in DATA if any(row["data"] == name for row in rows)]:
        scores: dict[str, Tensor] = {}
        for name in dict.fromkeys(row["flow"] for row in rows if row["data"] == data):
            found = [row["rows"] for row in rows if (row["data"], row["flow"]) == (data, name)]
            scores[name] = torch.tensor([[float(value) for value in one.split()] for one in found]).mean(0)
        peers = [name for name in scores if name not in flows.names()]
        reference = max(peers, key=lambda name: float(scores[name].mean())) if peers else ""
        lines.append(f"{data}: {len(next(iter(scores.values())))} rows held out")
        for name in sorted(scores, key=lambda name: -float(scores[name].mean())):
            lines.append(f"  {name:<22} {float(scores[name].mean()):>9.3f} nats")
            if reference and name != reference:
                apart = scores[name] - scores[reference]
                error = float(apart.std()) / math.sqrt(len(apart))
                lines[-1] += f"   {float(apart.mean()):+8.3f} +- {error:.3f} against {reference}"
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    chosen = [*flows.names(), "zuko NSF", "zuko NAF"]
    parser.add_argument("--flows", nargs="+", choices=list(CONTESTANTS), default=chosen)
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of each training (default 60)")
    parser.add_argument("--lr", type=float, default=2e-3, help="largest step size (default 2e-3)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--csv", type=Path, default=Path("tabular.csv"), help="where rows are kept (default tabular.csv)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = keep_trainings(options, FIELDS, lambda data, name, seed: run(data, name, seed, options.seconds, options.lr))
    print(table(rows))


if __name__ == "__main__":
    main()
