"""Fit a Pyro model, ask whether to trust the fit, and hand the posterior to arviz.

The model is a robust regression of 60 made-up points, four of them outliers. Nothing in it is written for this package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_flows as pf


def model(x: Tensor, y: Tensor | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
    with pyro.plate("point", len(x)):
        pyro.sample("y", dist.StudentT(freedom, intercept + slope * x, scale), obs=y)


def make_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.linspace(-1.0, 1.0, 60)
    y = 0.5 + 1.5 * x + 0.3 * torch.randn(60, generator=generator)
    y[::17] += 4.0
    return x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--out", default="posterior.nc", help="where to write the posterior")
    parser.add_argument("--picture", type=Path, default=Path("fit_any_model.png"), help="where the picture goes")
    arguments = parser.parse_args()

    x, y = make_data()
    settings = {"max_steps": 20, "progress": False} if arguments.quick else {}
    fit = pf.fit(model, x, y, seed=0, **settings)
    print(fit.diagnose())

    idata = fit.to_arviz(resample="psis")
    print(idata.posterior)
    idata.to_netcdf(arguments.out)
    print(f"wrote {arguments.out}")

    import matplotlib.pyplot as plt

    line = torch.linspace(-1.2, 1.2, 50)
    bands = fit.predict(2000, line, None, seed=0)["y"].quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.fill_between(line, bands[0], bands[2], alpha=0.3, label="new points, 90 %")
    axis.plot(line, bands[1])
    axis.plot(x, y, "k.", label="data")
    axis.set(xlabel="x", ylabel="y")
    axis.legend()
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
