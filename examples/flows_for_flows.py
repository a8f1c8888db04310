"""A map between two data sets: how benign tumours would have to change to look like malignant ones.

A flow need not start from noise. Here the base is the density of one data set, itself a flow, and a second flow that begins at the
identity is trained by maximum likelihood to take it to the other data set (https://arxiv.org/abs/2211.02487). Couplings find some
map, a continuous flow with a penalty on its kinetic energy one that moves little. A classifier that tells moved from true rows says
how good a map is: 0.5 is perfect, before the map it is near 1. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import pyro_flows as pf
from pyro_flows.transforms import on_grid

COLUMNS = ("mean radius", "mean texture", "mean concavity")


def measured() -> tuple[Tensor, Tensor]:
    """Three logarithms of measurements of 357 benign and 212 malignant tumours, standardised together."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    wanted = [list(found.feature_names).index(name) for name in COLUMNS]
    rows = (torch.as_tensor(found.data[:, wanted]) + 0.01).log().float()
    rows = (rows - rows.mean(0)) / rows.std(0)
    is_benign = torch.as_tensor(found.target == 1)
    return rows[is_benign], rows[~is_benign]


def told_apart(moved: Tensor, true: Tensor) -> float:
    """Balanced accuracy of a classifier, by five-fold cross-validation."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    label = [0] * len(moved) + [1] * len(true)
    forest = RandomForestClassifier(200, min_samples_leaf=5, class_weight="balanced", random_state=0)
    return float(cross_val_score(forest, torch.cat([moved, true]).numpy(), label, cv=5, scoring="balanced_accuracy").mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few epochs only")
    parser.add_argument("--picture", type=Path, default=Path("flows_for_flows.png"), help="where the picture goes")
    arguments = parser.parse_args()
    epochs = 2 if arguments.quick else 200

    benign, malignant = measured()
    settings = {"max_epochs": epochs, "batch_size": 64, "seed": 0, "progress": not arguments.quick}
    base = pf.fit_density("nsf_coupling", benign, flow_options={"num_layers": 3, "hidden_dims": (16,)}, **settings)
    base.distribution.requires_grad_(False)  # it stays as it is

    maps = {"couplings": pf.flows.nsf_coupling(3, num_layers=3, hidden_dims=(16,)), "continuous": pf.flows.get("cnf")(3)}
    moved = {"not moved": benign}
    print(f"{'':<12}{'told apart':>12}{'mean distance':>16}{'nats held out':>16}")
    print(f"{'not moved':<12}{told_apart(benign, malignant):>12.2f}{0.0:>16.2f}")
    for name, flow in maps.items():
        options = {"regularise": {"kinetic_energy": 0.05}} if name == "continuous" else {}
        q = pf.FlowDistribution(flow, base.distribution)
        with on_grid(q, 8):  # for the continuous one: training on a grid, below the solver that adapts
            fit = pf.fit_density(q, malignant, standardise=False, **options, **settings)
        with torch.no_grad():
            moved[name] = flow(benign)
        distance = float((moved[name] - benign).norm(dim=-1).mean())
        print(f"{name:<12}{told_apart(moved[name], malignant):>12.2f}{distance:>16.2f}{fit.held_out:>16.2f}")

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
    for axis, (name, rows) in zip(axes, moved.items(), strict=True):
        axis.scatter(malignant[:, 0], malignant[:, 1], s=8, c="0.7", label="malignant")
        axis.scatter(rows[:, 0], rows[:, 1], s=8, c="tab:red", alpha=0.6, label=f"benign, {name}")
        if name != "not moved":
            some = slice(None, None, 12)
            axis.quiver(*benign[some, :2].T, *(rows - benign)[some, :2].T, angles="xy", scale_units="xy", scale=1, width=0.003)
        axis.set(title=name, xlabel=f"log {COLUMNS[0]}")
        axis.legend()
    axes[0].set_ylabel(f"log {COLUMNS[1]}")
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
