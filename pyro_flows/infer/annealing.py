"""Annealing: training on densities between a wide one and the posterior, so that no mode is lost on the way."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_flows.distributions import FlowDistribution

from .descent import Clip, Training
from .path_gradient import LogDensity
from .traced_gradient import TracedGradient
from .training import take_step


def anneal(
    distribution: FlowDistribution,
    log_density: LogDensity,
    log_wide: LogDensity,
    *,
    num_particles: int,
    num_steps: int,
    lr: float = 1e-2,
    max_time: float = math.inf,
    progress: bool = False,
) -> Training:
    r"""Maximise the ELBO on densities :math:`p^\beta g^{1 - \beta}` while :math:`\beta` goes from 0 to 1.

    A flow that begins as the wide density :math:`g` and follows divides its mass as the modes of :math:`p` divide, where one that
    is trained on :math:`p` at once falls into the nearest of them.

    Args:
        distribution: The guide over unconstrained latents, which begins as :math:`g`; changed in place.
        log_density: Log joint density, ``(N, D)`` to ``(N,)``.
        log_wide: Log-density of :math:`g`, ``(N, D)`` to ``(N,)``.
        num_particles: Draws per step.
        num_steps: Steps.
        lr: Step size of Adam.
        max_time: Seconds at most.
        progress: Show a bar.

    Returns:
        What was done; its losses are those of the densities in between.

    Raises:
        ArithmeticError: If a fifth of the steps are not finite.

    References:
        Neal (2001), *Annealed importance sampling*, https://arxiv.org/abs/physics/9803008, for the path of densities

    Example:
        >>> from pyro_flows import flows
        >>> q, wide = FlowDistribution(flows.affine(1)), torch.distributions.Normal(torch.zeros(1), 1.0)
        >>> done = anneal(q, lambda z: -0.5 * (z - 1).square().sum(-1), lambda z: wide.log_prob(z).sum(-1),
        ...               num_particles=64, num_steps=400)
        >>> abs(q.rsample((1000,)).mean().item() - 1) < 0.2
        True
    """
    parameters = [p for p in distribution.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    done, clip, began = Training(), Clip(), time.monotonic()
    beta = 0.0

    def between(z: Tensor) -> Tensor:
        return beta * log_density(z) + (1 - beta) * log_wide(z)

    gradient = TracedGradient(distribution, between, parameters)
    with tqdm(total=num_steps, disable=not progress, desc="anneal", unit="step", dynamic_ncols=True, leave=True) as bar:
        for step in range(num_steps):
            beta = (step + 1) / num_steps
            try:
                optimizer.zero_grad(set_to_none=True)
                taken = take_step(gradient, distribution.base.rsample((num_particles,)), 0.0, parameters)
                done.draws, done.dropped = done.draws + num_particles, done.dropped + taken.dropped
                if math.isfinite(taken.loss) and clip(parameters):
                    optimizer.step()
                    done.losses.append(taken.loss)
                    done.log_weight_sds.append(taken.log_weight_sd)
                else:
                    done.skipped += 1
            except KeyboardInterrupt:
                done.stop_reason = "interrupted"
                break
            if done.skipped > 20 + 0.2 * (step + 1):
                raise ArithmeticError(f"{done.skipped} of {step + 1} steps of the annealing were not finite")
            if time.monotonic() - began > max_time:
                done.stop_reason = "max_time"
                break
            bar.update()
    return done
