"""Levels and powers of the tests that say whether to believe: SBC and TARP, and typicality of batches of digits.

``normal``: repeated studies of a conjugate normal, of which an exact posterior is rejected at 5 %, one with sds 20 % too small and
one whose mean is off by 0.3 sd are to be caught. ``logistic``: the same for a logistic regression with two coefficients, whose
posterior is drawn from a grid. ``digits``: a Glow is trained on MNIST; batches of ten held-out digits are tested against a thousand
others, as they are, turned by a right angle, and with noise of sd 0.1 of the range of a pixel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.contestants import train
from benchmarks.glow_mnist import ALPHA, SHAPE, on_the_line, split
from benchmarks.vae_mnist import DATA
from pyro_flows import flows
from pyro_flows.diagnostics import typicality_scores, typicality_test_of
from pyro_flows.studies import ranks_of
from pyro_flows.transforms import Compose, LogitPreprocessing
from pyro_flows.transforms.actnorm import initialize_actnorms

KINDS = {"exact": (1.0, 0.0), "sds 20 % too small": (0.8, 0.0), "mean off by 0.3 sd": (1.0, 0.3)}
DRAWS = 99
#: Inputs of the logistic regression, and the grid of its coefficients.
INPUTS, EDGE, CELLS = torch.linspace(-2, 2, 30), 6.0, 41
Draw = Callable[[int], tuple[Tensor, Tensor, Tensor]]


def normal(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents ``(N, 1)``, posterior draws ``(N, S, 1)`` and data."""
    x = torch.randn(count, 1)
    y = x + torch.randn(count, 1)
    return x, y[:, None] / 2 + 0.5**0.5 * torch.randn(count, DRAWS, 1), y


def logistic(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two coefficients with standard normal priors."""
    theta = torch.randn(count, 2)
    design = torch.stack([torch.ones_like(INPUTS), INPUTS], -1)
    y = (torch.rand(count, len(INPUTS)) < (theta @ design.T).sigmoid()).float()
    centres = (torch.arange(CELLS) + 0.5) / CELLS * 2 * EDGE - EDGE
    grid = torch.cartesian_prod(centres, centres)
    logits = grid @ design.T
    log_p = y @ logits.T - torch.nn.functional.softplus(logits).sum(1) - 0.5 * grid.square().sum(1)
    cells = torch.multinomial(log_p.softmax(1), DRAWS, replacement=True)
    inside = (torch.rand(count, DRAWS, 2) - 0.5) * 2 * EDGE / CELLS
    return theta, grid[cells] + inside, y


def alarms(make: Draw, scale: float, shift: float, studies: int, count: int, name: str) -> dict[str, int]:
    """How often each statistic rejects at 5 %."""
    found: dict[str, int] = {}
    for number in trange(studies, desc=name, leave=False, dynamic_ncols=True):
        theta, draws, data = make(count)
        mean, sd = draws.mean(1, keepdim=True), draws.std(1, keepdim=True)
        draws = mean + scale * (draws - mean) + shift * sd
        study = ranks_of({"theta": theta}, {"theta": draws}, data=data, seed=number + 1)
        for statistic, p_value in study.p_values.items():
            found[statistic] = found.get(statistic, 0) + (p_value < 0.05)
    return found


def digits(seconds: float, batches: int) -> list[str]:
    """Levels and powers of the typicality test."""
    torch.manual_seed(0)
    images = torch.cat(split(DATA))
    training, held_out = images[:6000], images[6000:]
    preprocessing = LogitPreprocessing(SHAPE, ALPHA)
    flow = flows.glow(SHAPE, num_levels=2, num_steps=4, hidden_channels=32)
    initialize_actnorms(flow, on_the_line(training[:1000], preprocessing)[0])
    density = pf.FlowDistribution(Compose([flow, preprocessing]))

    def dequantised(pixels: Tensor) -> Tensor:
        return (pixels.round().clamp(0, 255) + torch.rand_like(pixels)) / 256

    steps = train(density, lambda x: density.log_prob(dequantised(x)), training, seconds, 2e-3, batch=64)
    sets = {
        "as they are": held_out,
        "turned": torch.rot90(held_out, 1, (2, 3)),
        "with noise": held_out + 25.5 * torch.randn_like(held_out),
    }
    scores = {name: typicality_scores(density, dequantised(points)) for name, points in sets.items()}
    lines = [f"Glow, {steps} steps in {seconds:.0f} s, {len(held_out)} digits held out, {batches} batches of ten"]
    for name, found in scores.items():
        rejected = 0
        for number in trange(batches, desc=name, leave=False, dynamic_ncols=True):
            order = torch.randperm(len(held_out))
            test = typicality_test_of(found[order[:10]], scores["as they are"][order[10:1010]], num_permutations=499, seed=number)
            rejected += not test.typical
        lines.append(
            f"digits {name:<12} {rejected:>5} of {batches} rejected at 5 %; mean log-density {float(found.log_prob.mean()):.1f}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("normal", "logistic", "digits"), default=["normal", "logistic", "digits"])
    parser.add_argument("--studies", type=int, default=1000, help="studies of exact posteriors of the normal (default 1000)")
    parser.add_argument("--few", type=int, default=100, help="studies of everything else (default 100)")
    parser.add_argument("--count", type=int, default=500, help="data sets in a study (default 500)")
    parser.add_argument("--seconds", type=float, default=180.0, help="training of the Glow (default 180)")
    parser.add_argument("--batches", type=int, default=1000, help="batches of digits (default 1000)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for part, make in (("normal", normal), ("logistic", logistic)):
        if part in options.parts:
            torch.manual_seed(0)
            for kind, (scale, shift) in KINDS.items():
                studies = options.studies if (part, kind) == ("normal", "exact") else options.few
                found = alarms(make, scale, shift, studies, options.count, f"{part}, {kind}")
                print(f"{part:<9} {kind:<20} of {studies} studies: " + ", ".join(f"{n} {c}" for n, c in found.items()), flush=True)
    if "digits" in options.parts:
        print("\n".join(digits(options.seconds, options.batches)))


if __name__ == "__main__":
    main()
