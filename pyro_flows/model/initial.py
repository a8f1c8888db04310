"""A point where the log joint density is finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .log_joint import LogJoint
from .memory import is_out_of_memory
from .structure import read_model


def initial_point(log_joint: LogJoint, num_tries: int = 100, init_loc_fn: Callable[[Any], Tensor] | None = None) -> Tensor:
    """The model's initial values as a flat unconstrained vector, or a random point near zero where they do not serve.

    Args:
        log_joint: The log joint density.
        num_tries: Random points tried, uniform in each coordinate, on (-2, 2) at first and on (-10, 10) at last.
        init_loc_fn: Pyro initialisation strategy, ``site -> value``; None for that with which the model was read. A
            site whose prior cannot be sampled starts at the centre of its support.

    Returns:
        A point ``(D,)`` with finite log-density and gradient.

    Raises:
        ValueError: If none is found; the message names the sites that are not finite.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), ()))
        ...     pyro.factor("likelihood", torch.tensor(0.0))
        >>> initial_point(LogJoint(model))
        tensor([0.])
    """
    structure = log_joint.structure
    if init_loc_fn is not None:
        structure = read_model(log_joint.model, log_joint.args, log_joint.kwargs, init_loc_fn)
        log_joint.structure.check_same(structure)
    point = log_joint.latents.unconstrain(structure.initial)
    for attempt in range(num_tries + 1):
        z = point[None].detach().requires_grad_()
        with torch.enable_grad():
            value = log_joint(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        if bool(torch.isfinite(value).all() & torch.isfinite(gradient).all()):
            return point.detach()
        tried = point
        # Farther out with every try: unconstrained coordinates have no unit that would hold for all models.
        point = torch.empty_like(point).uniform_(-1, 1) * 2 * (1 + 4 * attempt / num_tries)
    if bool(torch.isfinite(value).all()):
        raise ValueError(
            f"no point with a finite gradient was found in {num_tries} tries, though the log-density is finite at the last: look "
            f"for torch.where over an operation that is not finite in the branch not taken, for both branches are differentiated"
        )
    sites = {name: count for name, count in log_joint.nonfinite_sites(tried[None]).items() if count}
    raise ValueError(
        f"no point with a finite log-density was found in {num_tries} tries; not finite at the last: "
        f"{sorted(sites)}; give init= a point inside the support"
    )


@torch.no_grad()
def prior_points(log_joint: LogJoint, count: int) -> Tensor:
    """Draws of the latents from their priors as flat unconstrained vectors; none where a prior cannot be sampled.

    Draws at which the model raises are left out.

    Args:
        log_joint: The log joint density.
        count: Number of draws.

    Returns:
        Points, at most ``(count, D)``, those that are not finite left out.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> prior_points(LogJoint(model), 5).shape
        torch.Size([5, 1])
    """
    names = list(log_joint.structure.initial)
    points: list[Tensor] = []
    failed = 0
    with pyro.validation_enabled(False):
        for _ in range(count):
            try:
                trace = poutine.block(poutine.trace(log_joint.model).get_trace)(*log_joint.args, **log_joint.kwargs)
                points.append(log_joint.latents.unconstrain({name: trace.nodes[name]["value"] for name in names}))
            except Exception as error:  # an improper prior, or a value that the model cannot go on with
                failed += 1
                if is_out_of_memory(error):
                    raise
                if failed >= max(8, len(points)):
                    break
    if not points:
        return log_joint.latents.unconstrain(log_joint.structure.initial)[None][:0]
    stacked = torch.stack(points)
    return stacked[torch.isfinite(stacked).all(-1)]
