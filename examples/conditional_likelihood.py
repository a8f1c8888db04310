"""Regression with noise of unknown shape: a flow learns it, and the weights have a posterior.

y = x·w + noise, and the noise is skewed, with a spread that depends on another covariate t. Least squares takes it for normal and
alike everywhere. Here its density given t is a flow, trained together with the guide of the weights on minibatches of a plate. Then
the weights of the flow get priors too, and are latents like the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from tqdm import trange

import pyro_flows as pf

WEIGHTS = torch.tensor([1.0, -0.5])


def make_data(size: int) -> tuple[Tensor, Tensor, Tensor]:
    x, t = torch.randn(size, 2), torch.randn(size, 1)
    noise = dist.Gumbel(-0.577, 1.0).sample((size, 1))
    return x, t, (x @ WEIGHTS)[:, None] + t.exp() * noise


def report(name: str, mean: Tensor, sd: Tensor) -> None:
    print(
        f"{name:<28}" + "  ".join(f"w{i} = {float(m):6.3f} ± {float(s):.3f}" for i, (m, s) in enumerate(zip(mean, sd, strict=True)))
    )


def least_squares(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    X = torch.cat([x, t, torch.ones(len(x), 1)], 1)
    covariance = (X.T @ X).inverse()
    estimate = covariance @ X.T @ y[:, 0]
    variance = (y[:, 0] - X @ estimate).square().sum() / (len(x) - 4)
    spread = (variance * covariance.diagonal()[:2]).sqrt()
    report("least squares", estimate[:2], spread)
    return estimate[:2], spread


def learn_noise(x: Tensor, t: Tensor, y: Tensor, steps: int) -> Tensor:
    """The flow as likelihood, with minibatches; its parameters are trained."""
    flow = pf.flows.get("nsf_coupling")(1, context_dim=1, num_layers=2, hidden_dims=(32,))

    def model() -> None:
        pyro.module("noise", flow)  # without this SVI does not train it
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("rows", len(x), subsample_size=min(256, len(x))) as rows:
            noise = pf.FlowDistribution(flow).condition(t[rows])
            mean = (x[rows] * w).sum(-1, keepdim=True)
            pyro.sample("y", dist.TransformedDistribution(noise, AffineTransform(mean, 1.0, event_dim=1)), obs=y[rows])

    guide = pf.AutoFlow(model, flow="affine")
    decay = 0.01 ** (1 / steps)
    rates = {True: {"lr": 1e-2, "lrd": decay}, False: {"lr": 5e-2, "lrd": decay}}  # the guide's coordinates are wider than its sds
    elbo = Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam(lambda name: rates[name.startswith("noise")]), elbo)
    for step in (bar := trange(steps, desc="training", dynamic_ncols=True)):
        loss = svi.step()
        if step % max(1, steps // 5) == 0:
            bar.write(f"step {step:5d}  loss per row {loss / len(x):.3f}")
    draws = guide.distribution.sample((4000,))
    report("flow as noise", draws.mean(0), draws.std(0))
    return draws


def draw_weights_of_flow(x: Tensor, t: Tensor, y: Tensor, quick: bool) -> None:
    """Priors on the weights of the flow itself, all of them latent, by `random_module`; for a small data set."""
    flow = pf.flows.affine(1, context_dim=1, hidden_dims=())

    def model() -> None:
        noise = pf.distributions.random_module("noise", flow, lambda name, parameter: dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("rows", len(x)):
            likelihood = pf.FlowDistribution(noise).condition(t)
            mean = (x @ w).unsqueeze(-1)
            pyro.sample("y", dist.TransformedDistribution(likelihood, AffineTransform(mean, 1.0, event_dim=1)), obs=y)

    fit = pf.fit(model, seed=0, progress=False, max_time=2.0 if quick else None)
    draws = fit.sample(4000, seed=0)
    report(f"random weights, {len(x)} rows", draws["w"].mean(0), draws["w"].std(0))
    slope = draws["noise.params.network.layers.0.weight"][:, 1, 0]
    print(f"log-spread of the noise grows with t by {slope.mean():.2f} ± {slope.std():.2f} (truth 1); {fit.diagnose().verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default 2000)")
    parser.add_argument("--size", type=int, default=4000, help="rows of data (default 4000)")
    parser.add_argument("--picture", type=Path, default=Path("conditional_likelihood.png"), help="where the picture goes")
    arguments = parser.parse_args()

    pyro.set_rng_seed(0)
    x, t, y = make_data(arguments.size)
    print("truth" + " " * 23 + "  ".join(f"w{i} = {w:6.3f}" for i, w in enumerate(WEIGHTS.tolist())))
    estimate, spread = least_squares(x, t, y)
    draws = learn_noise(x, t, y, 20 if arguments.quick else arguments.steps)
    draw_weights_of_flow(x[:60], t[:60], y[:60], arguments.quick)

    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 4))
    axis.plot(*draws.T, ".", ms=2, alpha=0.4, label="flow as noise")
    axis.errorbar(*estimate[:, None], xerr=spread[:1], yerr=spread[1:], fmt="o", label="least squares, ± standard error")
    axis.plot(*WEIGHTS[:, None], "r*", ms=12, label="truth")
    axis.set(xlabel="w0", ylabel="w1")
    axis.legend()
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
