"""A point where the log joint density is finite."""

from __future__ import annotations

import torch
from torch import Tensor

from .log_joint import LogJoint


def initial_point(log_joint: LogJoint, num_tries: int = 100) -> Tensor:
    """The model's initial values as a flat unconstrained vector, or a random point near zero where they do not serve.

    Args:
        log_joint: The log joint density.
        num_tries: Random points tried, uniform on (-2, 2) in each coordinate.

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
    point = log_joint.latents.unconstrain(log_joint.structure.initial)
    for _ in range(num_tries + 1):
        z = point[None].detach().requires_grad_()
        with torch.enable_grad():
            value = log_joint(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        if bool(torch.isfinite(value).all() & torch.isfinite(gradient).all()):
            return point.detach()
        point = torch.empty_like(point).uniform_(-2, 2)
    sites = {name: count for name, count in log_joint.nonfinite_sites(point[None]).items() if count}
    raise ValueError(
        f"no point with a finite log-density was found in {num_tries} tries; not finite at the last: {sorted(sites) or 'the gradient'}; "
        f"give init= a point inside the support"
    )
