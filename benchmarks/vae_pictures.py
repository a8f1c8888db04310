"""Pictures of autoencoders on MNIST: reconstructions, and posteriors of two latents that are not Gaussian.

For the second, a decoder of two latents is trained with a flow posterior and then held fixed, while a diagonal Gaussian and the
flow are each trained for it anew: both face the same true posterior, p(z | x) on a grid. Shown are training images, so that what an
encoder does not know of new ones is out of the picture: of the first 100 those whose true posterior is in one piece and farthest
from the Gaussian of its mean and covariance, no two of them close to each other. Each guide is shown as it is after training, and
after 500 steps on these images alone, when what its encoder lacks is out of the picture too.
Colours hold 50, 80 and 95 per cent of the true posterior's mass, and the same densities in the others; lines are the true one.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from scipy import ndimage
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.vae_mnist import DATA, POSTERIORS, VAE, Settings, split, train

FLOW = "IAF"


def trained(name: str, settings: Settings, data: tuple[Tensor, Tensor, Tensor], decoder: nn.Module | None = None) -> VAE:
    """An autoencoder after training; only its encoder and posterior if a decoder is given."""
    pyro.set_rng_seed(0)
    vae = VAE(POSTERIORS[name], settings, data[0].mean(0))
    if decoder:
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")
        vae.decoder = decoder.requires_grad_(False)
    elbo, _, step = train(vae, *data[:2], settings, f"{name}, {settings.latent_dim} latents")
    print(f"{name}, {settings.latent_dim} latents, decoder {'fixed' if decoder else 'trained'}: ELBO {elbo:.2f} at step {step}")
    return vae


# Reconstructions


@torch.no_grad()
def reconstructions(vaes: dict[str, VAE], images: Tensor, path: Path) -> None:
    """Images, and the mean picture of one draw of each posterior."""
    rows = {"image": images}
    for name, vae in vaes.items():
        rows[name] = vae.decoder(vae.posterior(nn.functional.silu(vae.encoder(images)))()).sigmoid()
    figure, axes = plt.subplots(len(rows), len(images), figsize=(len(images) * 0.9 + 1.2, len(rows) * 0.95), squeeze=False)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


# Posteriors on a grid


class Grid:
    """Points of a rectangle in the plane of two latents."""

    def __init__(self, low: Tensor, high: Tensor, size: int) -> None:
        self.axes = [torch.linspace(float(a), float(b), size) for a, b in zip(low, high, strict=True)]
        self.points = torch.stack(torch.meshgrid(*self.axes, indexing="xy"), -1).reshape(-1, 2)
        self.cell = math.prod(float(axis[1] - axis[0]) for axis in self.axes)
        self.size = size


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) of one image at points ``(N, 2)``."""
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(-1)


@torch.no_grad()
def true_posterior(vae: VAE, x: Tensor, grid: Grid) -> Tensor:
    """p(z | x) at the points of a grid, normalised on it."""
    return log_joint(vae, x, grid.points).softmax(0) / grid.cell


def zoomed(vae: VAE, x: Tensor, size: int = 61) -> Grid:
    """A grid over where the posterior has its mass."""
    low, high = torch.full((2,), -4.0), torch.full((2,), 4.0)
    for _ in range(2):  # twice, for the first is coarse
        grid = Grid(low, high, 61)
        mass = true_posterior(vae, x, grid)
        inside = grid.points[mass > 1e-3 * mass.max()]
        middle, half = (
            (inside.amin(0) + inside.amax(0)) / 2,
            (inside.amax(0) - inside.amin(0)).max() * 0.65 + 2 * math.sqrt(grid.cell),
        )
        low, high = middle - half, middle + half
    return Grid(low, high, size)


def distance_from_gaussian(density: Tensor, grid: Grid) -> float:
    """KL divergence of a density on a grid from the Gaussian of its moments, nats."""
    mass = density * grid.cell
    mean = mass @ grid.points
    centred = grid.points - mean
    cov = (centred * mass[:, None]).T @ centred + 1e-8 * torch.eye(2)
    log_q = dist.MultivariateNormal(mean, cov).log_prob(grid.points)
    return float((mass * (density.clamp(min=1e-30).log() - log_q)).sum())


def refined(vae: VAE, images: Tensor) -> VAE:
    """The guide after more steps on a few images alone."""
    pyro.clear_param_store()
    vae = copy.deepcopy(vae)
    loss = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(vae.model, vae.guide, pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.1 ** (1 / 500)}), loss)
    for _ in range(500):
        svi.step(images)
    return vae


def posteriors(vaes: dict[str, VAE], images: Tensor, path: Path) -> None:
    """The image, its true posterior, and what each guide makes of it, with the divergence from the true one."""
    figure, axes = plt.subplots(len(images), 2 + len(vaes), figsize=(2.2 * (2 + len(vaes)), 2.4 * len(images)), squeeze=False)
    for row, x in zip(axes, images, strict=True):
        row[0].imshow(x.reshape(28, 28), cmap="gray_r")
        row[0].set_axis_off()
        grid = zoomed(next(iter(vaes.values())), x, 121)
        truth = true_posterior(next(iter(vaes.values())), x, grid)
        levels = contour_levels(truth, grid)
        for axis, (name, vae) in zip(row[1:], [("true posterior", None), *vaes.items()], strict=True):
            if vae is None:
                density, title = truth, name
            else:
                with torch.no_grad():
                    q = vae.posterior(nn.functional.silu(vae.encoder(x)))
                    density = q.log_prob(grid.points).exp()
                    z = q.sample((2000,))
                    log_joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(
                        -1
                    )
                    log_grid = dist.Normal(0.0, 1.0).log_prob(grid.points).sum(-1)
                    log_grid = log_grid + dist.Bernoulli(logits=vae.decoder(grid.points)).log_prob(x).sum(-1)
                    log_evidence = log_grid.logsumexp(0) + math.log(grid.cell)
                    kl = float((q.log_prob(z) - log_joint + log_evidence).mean())
                title = f"{name}\nKL {kl:.2f} nats"
            shape = (grid.size, grid.size)
            axis.contourf(*grid.axes, density.reshape(shape), levels=[*levels, 1e9], colors=["#c6dbef", "#6baed6", "#2171b5"])
            if vae is not None:
                axis.contour(*grid.axes, truth.reshape(shape), levels=levels, colors="black", linewidths=0.6)
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def pieces(density: Tensor, grid: Grid) -> int:
    """Number of pieces of the region that holds 95 per cent of the mass, neighbours across corners joined."""
    inside = density >= contour_levels(density, grid)[0]
    return int(ndimage.label(inside.reshape(grid.size, grid.size), structure=torch.ones(3, 3))[1])


def contour_levels(density: Tensor, grid: Grid) -> list[float]:
    """Densities around 95, 80 and 50 per cent of the mass."""
    ranked = density.sort(descending=True).values
    return [float(ranked[(ranked.cumsum(0) * grid.cell < share).sum()]) for share in (0.95, 0.8, 0.5)]


def least_gaussian(vae: VAE, images: Tensor, count: int) -> list[int]:
    """Indices of images whose true posterior is in one piece and far from Gaussian, no two close in the plane of the latents."""
    scores, centres = [], []
    for x in images:
        grid = zoomed(vae, x)
        density = true_posterior(vae, x, grid)
        scores.append(distance_from_gaussian(density, grid) if pieces(density, grid) == 1 else -math.inf)
        centres.append(density @ grid.points * grid.cell)
    chosen: list[int] = []
    for i in sorted(range(len(images)), key=lambda i: -scores[i]):
        if all(float((centres[i] - centres[j]).norm()) > 0.5 for j in chosen):
            chosen.append(i)
        if len(chosen) == count:
            break
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="zipped IDX file of 10,000 images")
    parser.add_argument("--out", type=Path, default=Path("vae_pictures"), help="folder of the pictures")
    parser.add_argument("--steps", type=int, default=Settings().steps, help=f"training steps (default {Settings().steps})")
    parser.add_argument("--images", type=int, default=100, help="images to look through for posteriors (default 100)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    options.out.mkdir(parents=True, exist_ok=True)
    data = split(options.data)
    names = ("none", FLOW)

    plane = Settings(latent_dim=2, steps=options.steps)
    decoder = trained(FLOW, plane, data).decoder
    vaes: dict[str, VAE] = {}
    for name in names:
        vaes[name] = trained(name, plane, data, decoder)
    images = torch.bernoulli(data[0][: options.images], generator=torch.Generator().manual_seed(0))
    chosen = images[least_gaussian(vaes[FLOW], images, 4)]
    shown = {name: vae for name in names for name, vae in ((name, vaes[name]), (f"{name}, refined", refined(vaes[name], chosen)))}
    posteriors(shown, chosen, options.out / "posteriors.png")

    wide = replace(plane, latent_dim=Settings().latent_dim)
    reconstructions({name: trained(name, wide, data) for name in names}, data[2][:10], options.out / "reconstructions.png")


if __name__ == "__main__":
    main()
