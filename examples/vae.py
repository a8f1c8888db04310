"""A variational autoencoder whose posterior and prior are flows.

The posterior is an inverse autoregressive flow, conditional on what an encoder makes of the image; the prior is a learned flow, to
which the model adapts as it trains. The divergence between the two is warmed up, and the likelihood of held-out images is estimated
by importance sampling. Data are MNIST's images where the file is there, else small pictures of bars, made here.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from tqdm import tqdm

import pyro_flows as pf
from pyro_flows.infer import KLWarmupELBO
from pyro_flows.nn import MLP

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist" / "t10k-images-idx3-ubyte.zip"


def read_images(path: Path) -> Tensor:
    """Intensities in [0, 1], ``(N, 784)``, of a zipped IDX file."""
    with zipfile.ZipFile(path) as archive:
        raw = bytearray(archive.read(archive.namelist()[0]))
    return torch.frombuffer(raw, dtype=torch.uint8, offset=16).reshape(-1, 784) / 255


def make_bars(size: int, generator: torch.Generator) -> Tensor:
    """Pictures ``(N, 64)`` of 8 x 8 pixels with random bars, across or upright, seen through a little noise."""
    bars = (torch.rand(size, 8, 1, generator=generator) < 0.25).expand(size, 8, 8)
    upright = torch.rand(size, 1, 1, generator=generator) < 0.5
    return torch.where(upright, bars.mT, bars).reshape(size, 64) * 0.9 + 0.05


class VAE(nn.Module):
    """Decoder and flow prior."""

    def __init__(self, pixels: int, latent_dim: int = 10) -> None:
        super().__init__()
        self.decoder = MLP(latent_dim, pixels, (256,))
        self.prior = pf.FlowDistribution(pf.flows.nsf_coupling(latent_dim, num_layers=4))

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)  # without this SVI does not train it
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--steps", type=int, default=3000, help="training steps (default 3000)")
    parser.add_argument("--data", type=Path, default=MNIST, help="zipped IDX file of MNIST's images")
    parser.add_argument("--picture", type=Path, default=Path("vae.png"), help="where the picture goes")
    arguments = parser.parse_args()
    steps, samples, held_out = (30, 20, 100) if arguments.quick else (arguments.steps, 500, 1000)

    pyro.set_rng_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = read_images(arguments.data) if arguments.data.exists() else make_bars(5000, generator)
    images = images[torch.randperm(len(images), generator=generator)]
    train, test = images[held_out:], torch.bernoulli(images[:held_out], generator=generator)
    print(f"{len(train)} images of {images.shape[1]} pixels to train on, {len(test)} held out")

    vae = VAE(images.shape[1])
    guide = pf.AutoPlateFlow(vae.model, context={"data": MLP(images.shape[1], 64, (256,))}, flow="iaf", init_scale=1.0)
    optimiser = pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(vae.model, guide, optimiser, loss=KLWarmupELBO(warmup_steps=steps // 5))
    for step in tqdm(range(steps), desc="training", dynamic_ncols=True):
        batch = train[torch.randint(len(train), (128,), generator=generator)]
        svi.step(torch.bernoulli(batch, generator=generator))
        if (step + 1) % max(1, steps // 5) == 0:
            elbo = -Trace_ELBO().loss(vae.model, guide, test) / len(test)  # the objective itself weighs the divergence
            tqdm.write(f"step {step + 1:5d}  held-out ELBO {elbo:.2f} nats per image")

    result = pf.evaluate_nll(vae.model, guide, test, plate="data", num_samples=samples, progress=True)
    print(f"-log p(x) of a held-out image: {result}")

    import matplotlib.pyplot as plt

    side = int(images.shape[1] ** 0.5)
    with torch.no_grad():
        drawn = vae.decoder(vae.prior.sample((64,))).sigmoid()
    figure, axes = plt.subplots(1, 2, figsize=(8, 4))
    for axis, rows, title in ((axes[0], test[:64], "held out"), (axes[1], drawn, "drawn")):
        axis.imshow(rows.reshape(8, 8, side, side).permute(0, 2, 1, 3).reshape(8 * side, 8 * side), cmap="gray_r", vmin=0, vmax=1)
        axis.set(title=title, xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
