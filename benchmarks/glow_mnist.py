"""Glow on MNIST: bits per dimension of test images beside normflows' Glow, at equal processor time of one core.

10,000 images, split 8,000 / 2,000 by a fixed seed, padded to 32 x 32 for neither: both take 28 x 28 with two levels. Both have the
same levels, steps and hidden channels, uniform dequantisation, the logit with alpha 0.05, batches, optimiser and schedule, and a
start of ActNorm from the first batch. Bits per dimension are those of the discrete pixels: a bound, with one draw of the noise per
image, the same for both. ``--picture`` draws samples of ours.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.vae_mnist import DATA, read_images
from pyro_flows import flows
from pyro_flows.transforms import LogitPreprocessing
from pyro_flows.transforms.actnorm import initialize_actnorms

SHAPE = (1, 28, 28)
LogProb = Callable[[Tensor], Tensor]
ALPHA = 0.05


def split(path: Path) -> tuple[Tensor, Tensor]:
    """Whole numbers from 0 to 255: images for training, and for the test."""
    images = (read_images(path) * 255).round()
    generator = torch.Generator().manual_seed(0)
    images = images[torch.randperm(len(images), generator=generator)].reshape(-1, *SHAPE)
    return images[:8000], images[8000:]


def ours(options: argparse.Namespace, first: Tensor) -> tuple[nn.Module, LogProb]:
    """Our Glow, log-density of values on the line."""
    flow = flows.glow(SHAPE, num_levels=2, num_steps=options.num_steps, hidden_channels=options.hidden)
    initialize_actnorms(flow, first)
    distribution = pf.FlowDistribution(flow)
    return distribution, distribution.log_prob


def normflows(options: argparse.Namespace, first: Tensor) -> tuple[nn.Module, LogProb]:
    """That of normflows, as its example has it, without classes."""
    import normflows as nf

    bases, merges, layers = [], [], []
    for level in range(2):
        channels = 4 * 2 ** (1 - level)
        steps = [nf.flows.GlowBlock(channels, options.hidden, split_mode="channel", scale=True) for _ in range(options.num_steps)]
        layers.append([*steps, nf.flows.Squeeze()])
        shape = (channels, 7, 7) if level == 0 else (channels // 2, 14, 14)
        if level > 0:
            merges.append(nf.flows.Merge())
        bases.append(nf.distributions.DiagGaussian(shape))
    flow = nf.MultiscaleFlow(bases, layers, merges)
    flow.log_prob(first, None)  # starts its ActNorm
    return flow, lambda x: flow.log_prob(x, None)


def on_the_line(images: Tensor, preprocessing: LogitPreprocessing) -> tuple[Tensor, Tensor]:
    """Values on the line, and what they contribute to the log-probability of the pixels."""
    pixels = (images + torch.rand_like(images)) / 256
    x, log_det = preprocessing.inverse_and_log_det(pixels)
    return x, log_det - pixels[0].numel() * math.log(256)


def bits(log_prob: LogProb, images: Tensor, preprocessing: LogitPreprocessing) -> float:
    """Bits per dimension, with a fixed draw of the noise."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        total = 0.0
        for part in images.split(250):
            x, contribution = on_the_line(part, preprocessing)
            total += float((log_prob(x).detach() + contribution).sum())
    return -total / (len(images) * images[0].numel() * math.log(2))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="zipped IDX file of 10,000 images")
    parser.add_argument("--seconds", type=float, default=900.0, help="processor time of each training (default 900)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--num-steps", type=int, default=4, help="steps at each level (default 4)")
    parser.add_argument("--hidden", type=int, default=32, help="hidden channels (default 32)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (default 64)")
    parser.add_argument("--lr", type=float, default=2e-3, help="largest step size (default 2e-3)")
    parser.add_argument("--picture", type=Path, help="draw samples of ours here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, test = split(options.data)
    preprocessing = LogitPreprocessing(SHAPE, ALPHA)
    print(f"{'Glow of':<12}{'seed':>5}{'parameters':>12}{'steps':>8}{'bits/dim, train':>17}{'test':>8}")
    for seed in range(options.seeds):
        for name, make in (("ours", ours), ("normflows", normflows)):
            torch.manual_seed(seed)
            module, log_prob = make(options, on_the_line(train[:1000], preprocessing)[0])
            optimiser = torch.optim.Adam(module.parameters(), lr=options.lr)
            began, steps = time.process_time(), 0
            with tqdm(total=100, desc=f"{name}, seed {seed}", dynamic_ncols=True) as bar:
                while (share := (time.process_time() - began) / options.seconds) < 1:
                    for group in optimiser.param_groups:
                        group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, (steps + 1) / 100)
                    x, _ = on_the_line(train[torch.randint(len(train), (options.batch,))], preprocessing)
                    loss = -log_prob(x).mean()
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    norm = nn.utils.clip_grad_norm_(module.parameters(), 50.0)
                    if bool(torch.isfinite(norm)):
                        optimiser.step()
                    steps += 1
                    bar.update(int(100 * share) - bar.n)
            module.eval()
            count = sum(p.numel() for p in module.parameters() if p.requires_grad)
            found = [bits(log_prob, part, preprocessing) for part in (train[:2000], test)]
            print(f"{name:<12}{seed:>5}{count:>12,}{steps:>8}{found[0]:>17.3f}{found[1]:>8.3f}", flush=True)
            if name == "ours" and seed == 0 and options.picture:
                picture(options.picture, module, preprocessing)


def picture(path: Path, distribution: nn.Module, preprocessing: LogitPreprocessing) -> None:
    """A grid of samples."""
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    with torch.no_grad():
        pixels = preprocessing(distribution.sample((48,))).clamp(0, 1)  # type: ignore[operator]
    figure, axes = plt.subplots(4, 12, figsize=(12, 4))
    for axis, image in zip(axes.flat, pixels, strict=True):
        axis.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
