"""Local latents of a subsampled plate: 500 schools, one effect each, trained on minibatches of 50 by two guides.

One has a learned row for each school, the other an encoder of its data, which guides schools that it never saw. The model is
normal, so that the posterior of every effect is known and the error printed is exact.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_flows as pf

NOISE = 0.5


class Encoder(nn.Module):
    """What the guide is told of a school: here a small network of its one datum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pf.nn.MLP(1, 8, (32,))

    def forward(self, indices: Tensor, y: Tensor, size: int) -> Tensor:
        return self.net(y[:, None])


def model(indices: Tensor, y: Tensor, size: int) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("schools", size, subsample=indices):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(effect, NOISE), obs=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--picture", type=Path, default=Path("plates.png"), help="where the picture goes")
    arguments = parser.parse_args()
    size, steps = (200, 30) if arguments.quick else (500, None)

    pyro.set_rng_seed(0)
    y = 0.7 + torch.randn(size) + NOISE * torch.randn(size)
    everything = (torch.arange(size), y, size)
    minibatches = [(part, y[part], size) for part in torch.randperm(size).split(50)]
    weight = 1 / (1 + NOISE**2)
    mean = (y.sum() * weight) / (1 + size * weight)
    exact, sd = weight * y + (1 - weight) * mean, NOISE * weight**0.5
    means: dict[str, Tensor] = {}
    for name, context in (("learned rows", 4), ("encoder", Encoder())):
        guide = pf.AutoPlateFlow(model, context={"schools": context}, flow="affine")  # enough where posteriors are normal
        fit = pf.fit(model, *everything, guide=guide, minibatches=minibatches, max_steps=steps, seed=0)
        found = means[name] = fit.sample(2000, seed=0)["effect"].mean(0)
        error = (found - exact).abs() / sd
        print(f"{name}: verdict {fit.diagnose(2000).verdict}, worst error of a school's mean {error.max():.2f} posterior sd")
    new = torch.tensor([-2.0, 0.0, 3.0])
    effects = guide.sample(2000, torch.arange(3), new, 3)["effect"]
    print("three new schools:", ", ".join(f"{each.mean():.2f} ± {each.std():.2f}" for each in effects.T))

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
    for axis, (name, found) in zip(axes, means.items(), strict=True):
        axis.plot(exact, exact, color="0.7")
        axis.plot(exact, found, ".", ms=3)
        axis.set(title=name, xlabel="exact posterior mean of a school", ylabel="mean of the guide")
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
