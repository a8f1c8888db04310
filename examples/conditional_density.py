"""A flow as a conditional likelihood inside a Pyro model: learn p(y | x) for noise that is no normal distribution.

The data lie on one of two branches, y = x or y = -x, so the mean of y given x says nothing about it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from tqdm import trange

import pyro_flows as pf


def make_data(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(size, 1, generator=generator) * 2 + 1
    sign = torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
    return x, sign * x + 0.2 * torch.randn(size, 1, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default 400)")
    parser.add_argument("--picture", type=Path, default=Path("conditional_density.png"), help="where the picture goes")
    arguments = parser.parse_args()
    steps = 20 if arguments.quick else arguments.steps

    pyro.set_rng_seed(0)
    generator = torch.Generator().manual_seed(0)
    flow = pf.flows.nsf_coupling(input_dim=1, context_dim=1)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("flow", flow)  # without this SVI does not train it
        with pyro.plate("n", len(x)):
            pyro.sample("y", pf.FlowDistribution(flow).condition(x), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        """The model has no latents."""

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), loss=Trace_ELBO())
    for step in (bar := trange(steps, desc="training", dynamic_ncols=True)):
        x, y = make_data(256, generator)
        loss = svi.step(x, y) / len(x)
        if step % max(1, steps // 10) == 0:
            bar.write(f"step {step:5d}  negative log-density per point {loss:.3f}")

    with torch.no_grad():
        draws = pf.FlowDistribution(flow).condition(torch.tensor([2.0])).sample((2000,))
    print(f"at x = 2: {100 * (draws > 1).float().mean():.0f} % near +2, {100 * (draws < -1).float().mean():.0f} % near -2")

    import matplotlib.pyplot as plt

    x, y = make_data(1000, generator)
    with torch.no_grad():
        drawn = pf.FlowDistribution(flow).condition(x).sample()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharex=True, sharey=True)
    for axis, values, title in ((axes[0], y, "data"), (axes[1], drawn, "draws given x")):
        axis.scatter(x, values, s=4)
        axis.set(title=title, xlabel="x", ylabel="y")
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
