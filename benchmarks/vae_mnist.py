"""Posteriors of a variational autoencoder on MNIST: test ELBO and likelihood of 1,000 draws, ours beside those of Pyro and zuko.

10,000 images, split 8,000 / 2,000 by a fixed seed; of the 8,000 the last 1,000 choose the step at which training stops. Training
images are binarised anew at each step, those for validation and test once, by a fixed seed. Every posterior is

    noise -> flow, which sees the encoder's output h -> location + scale x, both linear in h -> z,

so that "none" is the diagonal Gaussian, and all share encoder, decoder, their start, optimiser, schedule, batches and objective.
Two latents, whose posteriors are far from Gaussian; with four and more, what an encoder of 7,000 images does not know of new ones
is most of the gap, and no flow closes that. Settings were tried on the split of another seed. One thread, and its CPU time. Results
are added to a file line by line; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
import zuko
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from pyro_flows.infer import KLWarmupELBO
from pyro_flows.nn import MLP
from pyro_flows.transforms import Compose, Elementwise
from pyro_flows.transforms.univariate import Affine

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist" / "t10k-images-idx3-ubyte.zip"
PIXELS = 784


@dataclass(frozen=True)
class Settings:
    """What all posteriors share."""

    latent_dim: int = 2
    context_dim: int = 64
    hidden: int = 256
    steps: int = 4000
    batch: int = 128
    lr: float = 6e-3
    warmup: int = 1000
    samples: int = 1000


# Data


def read_images(path: Path) -> Tensor:
    """Intensities in [0, 1], ``(N, 784)``, of a zipped IDX file."""
    with zipfile.ZipFile(path) as archive:
        raw = archive.read(archive.namelist()[0])
    magic, count, rows, columns = np.frombuffer(raw, ">u4", 4)
    if magic != 2051 or rows * columns != PIXELS:
        raise ValueError(f"{path} is no IDX file of 28 x 28 images")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(count, PIXELS).copy()).float() / 255


def split(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Intensities for training (7,000), binary images for validation (1,000) and test (2,000)."""
    generator = torch.Generator().manual_seed(1)  # settings were tried on that of 0
    images = read_images(path)
    images = images[torch.randperm(len(images), generator=generator)]
    held_out = torch.bernoulli(images[7000:], generator=generator)
    return images[:7000], held_out[:1000], held_out[1000:]


# Posteriors


def start(loc_weight: Tensor, log_scale: Tensor) -> None:
    """Locations that tell images apart, and small scales: from N(0, 1) for all images, latents are slow to find a use."""
    nn.init.normal_(loc_weight, std=loc_weight.shape[-1] ** -0.5)
    nn.init.constant_(log_scale, -1.0)


class Ours(nn.Module):
    """A flow of ours, then location and scale."""

    def __init__(self, dim: int, context_dim: int, flow: str | None = None, **options: Any) -> None:
        super().__init__()
        affine = Elementwise(dim, Affine(log_scale_bound=10.0), context_dim, hidden_dims=())
        with torch.no_grad():
            weight = affine.conditioner.network.layers[0].weight.view(dim, 2, context_dim)
            start(weight[:, 0], affine.conditioner.raw[:, 1])
        self.q = pf.FlowDistribution(affine if flow is None else Compose([self.build(flow, dim, context_dim, options), affine]))

    @staticmethod
    def build(flow: str, dim: int, context_dim: int, options: dict[str, Any]) -> pf.transforms.FlowTransform:
        # The autoregressive spline scores in one pass; a posterior draws.
        built = pf.flows.get(flow)(dim, context_dim, **options)
        return built.inv if flow == "nsf_autoregressive" else built

    def forward(self, context: Tensor) -> Any:
        return self.q.condition(context)


class Peer(nn.Module):
    """Location and scale as linear functions of the context, which start as ours do."""

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(context_dim, 2 * dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            start(self.head.weight[:dim], self.head.bias[dim:])
        self.dim = dim

    def affine(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loc, log_scale = self.head(context).chunk(2, -1)
        return loc, log_scale.exp(), torch.zeros_like(loc)


class Pyros(Peer):
    """Transforms of Pyro, conditional where Pyro has them so, with permutations between them where they need some."""

    def __init__(self, dim: int, context_dim: int, make: Callable[[int, int], nn.Module], num_layers: int, flip: bool) -> None:
        super().__init__(dim, context_dim)
        self.layers = nn.ModuleList(make(dim, context_dim) for _ in range(num_layers))
        self.flip = flip

    def forward(self, context: Tensor) -> Any:
        loc, scale, zero = self.affine(context)
        transforms: list[Any] = []
        for i, layer in enumerate(self.layers):
            if i and self.flip:
                transforms.append(T.Permute(torch.arange(self.dim).flip(0), cache_size=1))
            transforms.append(layer.condition(context) if hasattr(layer, "condition") else layer)
        transforms.append(T.AffineTransform(loc, scale, event_dim=1, cache_size=1))
        return dist.TransformedDistribution(dist.Normal(zero, 1.0).to_event(1), transforms)


class Zukos(Peer):
    """A flow of zuko in the direction that draws in one pass."""

    def __init__(self, dim: int, context_dim: int, make: Callable[..., Any], **options: Any) -> None:
        super().__init__(dim, context_dim)
        self.flow = make(dim, context_dim, **options)

    def forward(self, context: Tensor) -> Any:
        loc, scale, zero = self.affine(context)
        affine = zuko.transforms.DependentTransform(zuko.transforms.MonotonicAffineTransform(loc, scale.log()), 1)
        to_noise = zuko.transforms.ComposedTransform(affine.inv, self.flow.transform(context).inv)
        base = zuko.distributions.DiagNormal(zero, torch.ones_like(zero))
        return ZukoToPyro(zuko.distributions.NormalizingFlow(to_noise, base))


class MendedSylvester(T.Sylvester):
    """Pyro's Sylvester map with the log-determinant that it has.

    It computes y = x + tanh(x S Q' + b) Q R, whose Jacobian is not triangular in any basis, and takes the diagonals of R and S for
    its determinant. That is wrong for two variables and more, so that its ELBO is no bound and its importance weights are none.
    """

    def _call(self, x: Tensor) -> Tensor:
        q, r, s = self.Q(x), self.R(), self.S()
        h = torch.tanh(x @ (s @ q.t()) + self.b)
        jacobian = torch.eye(self.input_dim) + (s @ q.t()) * (1 - h.square()).unsqueeze(-2) @ (q @ r)
        self._cached_logDetJ = torch.linalg.slogdet(jacobian).logabsdet
        return x + h @ (q @ r)


WIDTHS = (64, 64)
POSTERIORS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda d, c: Ours(d, c),
    "planar": lambda d, c: Ours(d, c, "planar", num_layers=8),
    "Sylvester": lambda d, c: Ours(d, c, "sylvester", num_layers=4),
    "IAF": lambda d, c: Ours(d, c, "iaf", num_layers=4, hidden_dims=WIDTHS),
    "spline, coupling": lambda d, c: Ours(d, c, "nsf_coupling", num_layers=4, hidden_dims=WIDTHS),
    "spline, autoregressive": lambda d, c: Ours(d, c, "nsf_autoregressive", num_layers=3, hidden_dims=WIDTHS),
    "Pyro planar": lambda d, c: Pyros(d, c, lambda d, c: T.conditional_planar(d, c, [64]), 8, False),
    "Pyro Sylvester": lambda d, c: Pyros(d, c, lambda d, c: T.Sylvester(d, count_transforms=d), 4, False),
    "Pyro Sylvester, mended": lambda d, c: Pyros(d, c, lambda d, c: MendedSylvester(d, count_transforms=d), 4, False),
    "Pyro IAF": lambda d, c: Pyros(d, c, lambda d, c: T.conditional_affine_autoregressive(d, c, WIDTHS), 4, True),
    "zuko IAF": lambda d, c: Zukos(d, c, zuko.flows.MAF, transforms=4, hidden_features=WIDTHS),
    "zuko spline, autoregressive": lambda d, c: Zukos(d, c, zuko.flows.NSF, transforms=3, hidden_features=WIDTHS),
}


# Training and test


class VAE(nn.Module):
    """Model and guide."""

    def __init__(self, posterior: Callable[[int, int], nn.Module], settings: Settings, mean_image: Tensor) -> None:
        super().__init__()
        self.encoder = MLP(PIXELS, settings.context_dim, (settings.hidden,))
        self.decoder = MLP(settings.latent_dim, PIXELS, (settings.hidden, settings.hidden))
        with torch.no_grad():
            self.decoder.layers[-1].bias.copy_(mean_image.clamp(0.01, 0.99).logit())
        self.posterior = posterior(settings.latent_dim, settings.context_dim)
        self.latent_dim = settings.latent_dim

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(nn.functional.silu(self.encoder(x))))


def train(vae: VAE, images: Tensor, held_out: Tensor, settings: Settings, name: str) -> tuple[float, float, int]:
    """Leaves the parameters with the best validation ELBO; returns it, seconds of CPU per step, and the step it is from."""
    pyro.clear_param_store()
    optimiser = pyro.optim.CosineAnnealingLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": settings.lr}, "T_max": settings.steps}, {"clip_norm": 100.0}
    )
    svi = SVI(vae.model, vae.guide, optimiser, KLWarmupELBO(settings.warmup))
    best, best_step, kept, spent = -math.inf, 0, copy.deepcopy(vae.state_dict()), 0.0
    with tqdm(total=settings.steps, desc=name, leave=False, dynamic_ncols=True) as bar:
        for step in range(1, settings.steps + 1):
            began = time.process_time()
            x = torch.bernoulli(images[torch.randint(len(images), (settings.batch,))])
            svi.step(x)
            optimiser.step()
            spent += time.process_time() - began
            bar.update()
            if step % 250 == 0 or step == settings.steps:
                vae.eval()
                with torch.no_grad():
                    elbo = -sum(Trace_ELBO().loss(vae.model, vae.guide, held_out) for _ in range(5)) / 5 / len(held_out)
                vae.train()
                bar.set_postfix(valid=f"{elbo:.2f}")
                if elbo > best:
                    best, best_step, kept = elbo, step, copy.deepcopy(vae.state_dict())
    vae.load_state_dict(kept)
    vae.eval()
    return best, spent / settings.steps, best_step


def test(vae: VAE, images: Tensor, samples: int) -> dict[str, float]:
    """Means over the images, nats."""
    found = [
        pf.evaluate_nll(vae.model, vae.guide, x, plate="data", num_samples=samples, chunk_size=10)
        for x in tqdm(images.split(200), desc="test", leave=False, dynamic_ncols=True)
    ]
    return {
        "elbo": sum(float(part.elbos.sum()) for part in found) / len(images),
        "nll": sum(float(part.values.sum()) for part in found) / len(images),
        "mcse": math.sqrt(sum((part.mcse * len(part.values)) ** 2 for part in found)) / len(images),
        "unreliable": sum(int(part.unreliable.sum()) for part in found) / len(images),
    }


def run(name: str, seed: int, settings: Settings, data: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    train_images, valid_images, test_images = data
    pyro.set_rng_seed(seed)
    vae = VAE(POSTERIORS[name], settings, train_images.mean(0))
    valid, seconds, best_step = train(vae, train_images, valid_images, settings, f"{name}, seed {seed}")
    pyro.set_rng_seed(1000 + seed)
    result = test(vae, test_images, settings.samples) if settings.samples else {}
    return {"name": name, "seed": seed, **result, "valid": valid, "best_step": best_step, "seconds_per_step": seconds}


# Table


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds and their standard deviations, in the order of POSTERIORS."""
    lines = [f"{'posterior':<28} {'test ELBO':>16} {'-log p(x)':>16} {'few draws':>10} {'ms / step':>10} {'seeds':>6}"]
    for name in POSTERIORS:
        found = [row for row in rows if row["name"] == name]
        if not found:
            continue

        def cell(key: str, found: list[dict[str, Any]] = found) -> str:
            values = [row[key] for row in found]
            return f"{statistics.mean(values):9.2f} ± {statistics.stdev(values) if len(values) > 1 else math.nan:4.2f}"

        few = 100 * statistics.mean(row["unreliable"] for row in found)
        ms = 1000 * statistics.mean(row["seconds_per_step"] for row in found)
        lines.append(f"{name:<28} {cell('elbo'):>16} {cell('nll'):>16} {few:8.1f} % {ms:10.1f} {len(found):>6}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="zipped IDX file of 10,000 images")
    parser.add_argument("--out", type=Path, default=Path("vae_mnist.jsonl"), help="file of results, a JSON object a line")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--only", nargs="*", default=list(POSTERIORS), choices=list(POSTERIORS), help="posteriors to run")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [row for row in map(json.loads, lines) if row["settings"] == asdict(settings)]
    done = {(row["name"], row["seed"]) for row in rows}
    data = split(options.data)
    runs = [(name, seed) for seed in range(options.seeds) for name in options.only if (name, seed) not in done]
    for name, seed in tqdm(runs, desc="runs", dynamic_ncols=True):
        rows.append({**run(name, seed, settings, data), "settings": asdict(settings)})
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        tqdm.write(json.dumps({key: value for key, value in rows[-1].items() if key != "settings"}))
    if settings.samples:
        print(table(rows))


if __name__ == "__main__":
    main()
