"""Training of continuous flows on grids that are refined until they agree with the solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_flows.distributions import FlowDistribution
from pyro_flows.transforms.on_grid import adaptive_flows, on_grid

from .descent import Training
from .path_gradient import LogDensity

#: Steps of the first grid, and of the last one.
_FIRST, _LAST = 4, 32
#: Nats by which a grid may be off in the log-weight of nine draws of ten.
_ALLOWED = 0.02
_JUDGED = 512


def train_on_grids(
    distribution: FlowDistribution,
    log_density: LogDensity,
    train: Callable[[int, float], Training],
    max_steps: int,
    record: dict[str, Any],
) -> Training:
    """Train a guide, its continuous flows on a fixed grid, which can be traced and costs many times less than steps that adapt.

    Where the log-weights of the grid are not those of the solver, training goes on with twice as many steps, and at the end with
    the solver itself. A guide without continuous flows is trained as it is.

    Args:
        distribution: The guide over unconstrained latents.
        log_density: Log joint density of model and data.
        train: Trains the guide in place, for a number of steps at most and at a share of the customary step size.
        max_steps: Steps in all, at most.
        record: Gets ``grids``: what was tried, and how far off it was.

    Returns:
        What was done, all grids together.

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.get("cnf")(1))
        >>> record = {}
        >>> done = train_on_grids(q, lambda z: -0.5 * z.square().sum(-1), lambda steps, share: Training(), 100, record)
        >>> record["grids"]
        ['4 steps: log-weights within 0.000']
    """
    if not adaptive_flows(distribution):
        return train(max_steps, 1.0)
    found: list[str] = record.setdefault("grids", [])
    done: Training | None = None
    num_steps = _FIRST
    while True:
        left = max_steps - (done.steps if done else 0)
        share = 1.0 if done is None else 0.5
        if num_steps > _LAST:
            found.append("the solver itself")
            run = train(left, share)
            return run if done is None else done.then(run)
        with on_grid(distribution, num_steps):
            run = train(left, share)
        done = run if done is None else done.then(run)
        error = grid_error(distribution, log_density, num_steps)
        found.append(f"{num_steps} steps: log-weights within {error:.3f}")
        if error <= _ALLOWED or done.steps >= max_steps or run.stop_reason in ("max_time", "interrupted"):
            return done
        num_steps *= 2


@torch.no_grad()
def grid_error(distribution: FlowDistribution, log_density: LogDensity, num_steps: int) -> float:
    """Nats that the log-weight of nine draws of ten is off at most, on a grid of so many steps.

    Example:
        >>> from pyro_flows import flows
        >>> grid_error(FlowDistribution(flows.get("cnf")(1)), lambda z: -z.square().sum(-1), 4) < 1e-5
        True
    """
    noise = distribution.base.sample((_JUDGED,))

    def log_weights() -> torch.Tensor:
        z, log_det = distribution.transform.forward_and_log_det(noise)
        return log_density(z).double() + log_det.double()

    exact = log_weights()
    with on_grid(distribution, num_steps):
        rough = log_weights()
    return float((rough - exact).abs().nan_to_num(torch.inf).quantile(0.9))
