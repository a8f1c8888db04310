"""The report of a fit: one file for a browser that answers what a referee would ask, and the same as text.

Three models: eight schools in their centred form; radon in the houses of Minnesota, with a level for each of 85 counties; and a
variational autoencoder of handwritten digits, whose decoder is trained along with its flow posterior. Radon and digits are read
from the folder of data where it is there; without it radon is made up, and digits are pictures of bars.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_flows as pf
from pyro_flows.data import eight_schools
from pyro_flows.demo import centred
from pyro_flows.nn import MLP

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def radon(county: Tensor, floor: Tensor, y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("counties", int(county.max()) + 1):
        level = pyro.sample("level", dist.Normal(mean, spread))
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(level[county] + slope * floor, noise), obs=y)


def read_radon(quick: bool) -> tuple[Tensor, Tensor, Tensor]:
    path = SHARED / "posteriordb" / "data" / "radon_mn.json.zip"
    if path.exists() and not quick:
        with zipfile.ZipFile(path) as archive:
            raw = json.loads(archive.read(archive.namelist()[0]))
        return (
            torch.tensor(raw["county_idx"]) - 1,
            torch.tensor(raw["floor_measure"]).float(),
            torch.tensor(raw["log_radon"]).float(),
        )
    generator = torch.Generator().manual_seed(0)
    county = torch.arange(200) % 20
    floor = (torch.rand(200, generator=generator) < 0.2).float()
    level = 1.4 + 0.3 * torch.randn(20, generator=generator)
    return county, floor, level[county] - 0.7 * floor + 0.7 * torch.randn(200, generator=generator)


def read_digits(count: int) -> Tensor:
    path = SHARED / "mnist" / "t10k-images-idx3-ubyte.zip"
    generator = torch.Generator().manual_seed(0)
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            raw = bytearray(archive.read(archive.namelist()[0]))
        images = torch.frombuffer(raw, dtype=torch.uint8, offset=16).reshape(-1, 28, 28)[:count].float() / 255
        images = torch.nn.functional.avg_pool2d(images, 2).flatten(1)
    else:
        images = (torch.rand(count, 8, 1, generator=generator) < 0.25).expand(count, 8, 8).reshape(count, 64) * 0.9 + 0.05
    return torch.bernoulli(images, generator=generator)


class VAE(torch.nn.Module):
    """A decoder; the latents are standard normal."""

    def __init__(self, pixels: int, latent_dim: int = 6) -> None:
        super().__init__()
        self.decoder, self.latent_dim = MLP(latent_dim, pixels, (128,)), latent_dim

    def model(self, x: Tensor, indices: Tensor, size: int) -> None:
        pyro.module("vae", self)
        with pyro.plate("images", size, subsample=indices):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Encoder(torch.nn.Module):
    """A row for each image."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.network = MLP(pixels, 64, (128,))

    def forward(self, x: Tensor, indices: Tensor, size: int) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]


def fit_eight_schools(quick: bool, settings: dict[str, Any]) -> pf.Fit:
    study = eight_schools()
    return pf.fit(centred, study.y, study.sigma, **settings)


def fit_radon(quick: bool, settings: dict[str, Any]) -> pf.Fit:
    return pf.fit(radon, *read_radon(quick), **settings)


def fit_vae(quick: bool, settings: dict[str, Any]) -> pf.Fit:
    images = read_digits(50 if quick else 400)
    torch.manual_seed(0)
    vae = VAE(images.shape[1])
    guide = pf.AutoPlateFlow(vae.model, context={"images": Encoder(images.shape[1])}, flow="iaf", init_scale=1.0)
    size, every = len(images), torch.arange(len(images))
    batches = [(images[part], part, size) for part in every.split(100)]
    return pf.fit(vae.model, images, every, size, guide=guide, minibatches=batches, **({"max_steps": 3000} | settings))


FITS: dict[str, tuple[str, Callable[[bool, dict[str, Any]], pf.Fit]]] = {
    "eight_schools": ("Eight schools, centred", fit_eight_schools),
    "radon": ("Radon in Minnesota", fit_radon),
    "vae": ("Digits by a variational autoencoder", fit_vae),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--models", nargs="+", choices=list(FITS), default=["eight_schools"], help="default: eight_schools")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the reports (default: here)")
    arguments = parser.parse_args()
    settings = {"max_steps": 20, "progress": False} if arguments.quick else {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        title, fit = FITS[name]
        pyro.clear_param_store()
        path = arguments.out / f"{name}.html"
        print(fit(arguments.quick, {"seed": 0, **settings}).report(path, title=title))
        print(f"\nwrote {path}, {path.stat().st_size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
