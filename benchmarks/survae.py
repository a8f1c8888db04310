"""A surjection where data are symmetric: a flow of absolute values beside the plain flow of the same size, by exact likelihoods.

Targets that do not change with the signs of their variables: eight normals on a circle, a ring of corners, and a cross in four
dimensions. Both contestants are the same spline couplings; one of them maps to positive values, and then come random signs. Trained
alike for ``--steps`` steps on the same draws; held-out nats, the true density's own beside them where it is known.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import SoftplusTransform
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.transforms import Abs, Affine, Compose, Elementwise, FlowTransform, TorchTransform

LogProb = Callable[[Tensor], Tensor]


def eight_normals(n: int) -> tuple[Tensor, LogProb]:
    """On a circle of radius 4, none of them on an axis, of sd 0.5."""
    angle = (torch.arange(8) + 0.5) * math.pi / 4
    centres = 4 * torch.stack([angle.cos(), angle.sin()], -1)

    def log_prob(x: Tensor) -> Tensor:
        squares = (x[:, None] - centres).square().sum(-1) / 0.25
        return torch.logsumexp(-0.5 * squares, 1) - math.log(8 * 2 * math.pi * 0.25)

    return centres[torch.randint(8, (n,))] + 0.5 * torch.randn(n, 2), log_prob


def corners(n: int) -> tuple[Tensor, LogProb]:
    """Uniform on L-shapes that point away from the origin: of |x|, |y| in [1, 4] the larger above 3."""
    points = torch.empty(0, 2)
    while len(points) < n:
        more = 1 + 3 * torch.rand(2 * n, 2)
        points = torch.cat([points, more[more.amax(-1) > 3]])
    signs = 1 - 2 * torch.randint(2, (n, 2))
    return points[:n] * signs, lambda x: torch.full((len(x),), -math.log(4 * (9 - 4)))


def cross(n: int) -> tuple[Tensor, LogProb]:
    """Four log-normal variables with a common scale, and any signs."""

    def log_prob(x: Tensor) -> Tensor:
        covariance = 0.25 * (0.3 * torch.eye(4) + 0.7)
        log = x.abs().log()
        normal = torch.distributions.MultivariateNormal(torch.ones(4), covariance)
        return normal.log_prob(log) - log.sum(-1) - 4 * math.log(2)

    common, own = torch.randn(n, 1), torch.randn(n, 4)
    size = (1 + 0.5 * (math.sqrt(0.7) * common + math.sqrt(0.3) * own)).exp()
    return size * (1 - 2 * torch.randint(2, (n, 4))), log_prob


DATA = {f.__name__: f for f in (eight_normals, corners, cross)}


def contestant(name: str, dim: int, layers: int) -> FlowTransform:
    """Spline couplings, to all values or to positive ones with signs."""
    flow = flows.nsf_coupling(dim, num_layers=layers)
    if name == "plain":
        return Compose([flow, Elementwise(dim, Affine(log_scale_bound=10.0))])
    positive = TorchTransform(SoftplusTransform(), (dim,))
    return Compose([flow, Elementwise(dim, Affine(log_scale_bound=10.0)), positive, Abs(dim)])


def run(data: str, name: str, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Held-out nats of a contestant, and of the true density."""
    torch.manual_seed(seed)
    points, _ = DATA[data](options.count)
    held_out, truth = DATA[data](options.count)
    q = pf.FlowDistribution(contestant(name, points.shape[1], options.layers))
    optimiser = torch.optim.Adam(q.parameters(), lr=options.lr)
    for step in tqdm(range(options.steps), desc=f"{data}, {name}", leave=False, dynamic_ncols=True):
        for group in optimiser.param_groups:
            group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        loss = -q.log_prob(points[torch.randint(len(points), (256,))]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(q.parameters(), 5.0)
        optimiser.step()
    with torch.no_grad():
        nats = torch.cat([q.log_prob(part) for part in held_out.split(2000)])
    return float(nats.mean()), float(truth(held_out).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--steps", type=int, default=3000, help="steps of training (default 3,000)")
    parser.add_argument("--count", type=int, default=20_000, help="points for training, and as many held out (default 20,000)")
    parser.add_argument("--layers", type=int, default=4, help="couplings (default 4)")
    parser.add_argument("--lr", type=float, default=5e-3, help="largest step size (default 5e-3)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = [f"{'target':<16}{'flow':<10}{'parameters':>11}  held-out nats, by seed"]
    for data in options.data:
        dim = DATA[data](2)[0].shape[1]
        for name in ("plain", "abs"):
            count = sum(p.numel() for p in contestant(name, dim, options.layers).parameters())
            found = [run(data, name, seed, options) for seed in range(options.seeds)]
            lines.append(f"{data:<16}{name:<10}{count:>11,}  " + " ".join(f"{nats:9.4f}" for nats, _ in found))
        lines.append(f"{data:<16}{'the truth':<10}{'':>11}  " + " ".join(f"{truth:9.4f}" for _, truth in found))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
