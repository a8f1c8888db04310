"""What a model observes, and how much each observation counts: values, masks, scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .sites import is_deterministic, is_factor, is_subsample


@dataclass(frozen=True)
class Observation:
    """One observed site.

    Args:
        value: The observations, of the full shape of the site.
        counted: Which elements count, booleans ``(batch shape)``.
        scale: By how much the log-density is multiplied, ``(batch shape)``.
        event_dim: Number of event dimensions.

    Example:
        >>> Observation(torch.zeros(2), torch.ones(2, dtype=torch.bool), torch.ones(2), 0).is_scaled
        False
    """

    value: Tensor
    counted: Tensor
    scale: Tensor
    event_dim: int

    @property
    def is_scaled(self) -> bool:
        """Whether an element counts for more or less than itself."""
        return bool((self.scale[self.counted] != 1).any())

    def same(self, other: Observation) -> bool:
        """Whether both are the same observations and count alike; what is masked may be anything."""
        if self.value.shape != other.value.shape or not torch.equal(self.counted, other.counted):
            return False
        if not torch.allclose(self.scale, other.scale):
            return False
        kept = [one.value.double().reshape(*one.counted.shape, -1)[one.counted].cpu() for one in (self, other)]
        return torch.equal(*kept)


@dataclass(frozen=True)
class Reading:
    """What :func:`read_observations` found.

    Args:
        observed: Observed sites by name.
        factors: Names of ``pyro.factor`` terms.
        weighted: Names of latent sites that are scaled or masked.

    Example:
        See :func:`read_observations`.
    """

    observed: Mapping[str, Observation]
    factors: tuple[str, ...]
    weighted: tuple[str, ...]


@torch.no_grad()
def read_observations(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], latents: Mapping[str, Tensor]
) -> Reading:
    """Run a model once at values of its latents, and read what it observes.

    Args:
        model: A Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        latents: Values of the latent sites.

    Example:
        >>> def model(y):
        ...     with pyro.plate("rows", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        ...         pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
        >>> read_observations(model, (torch.zeros(3),), {}, {}).observed["y"].counted.tolist()
        [True, False, True]
    """
    with torch.random.fork_rng(), poutine.block(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        trace = poutine.trace(poutine.substitute(model, data=dict(latents))).get_trace(*args, **kwargs)
    observed, factors, weighted = {}, [], []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or is_subsample(site) or is_deterministic(site):
            continue
        if is_factor(site):
            factors.append(name)
            continue
        shape = site["fn"].batch_shape
        mask = True if site["mask"] is None else site["mask"]
        counted = torch.as_tensor(mask, dtype=torch.bool, device="cpu").expand(shape)
        scale = torch.as_tensor(site["scale"], dtype=torch.float64, device="cpu").detach().expand(shape)
        if site["is_observed"]:
            value = site["value"] if isinstance(site["value"], Tensor) else torch.as_tensor(site["value"], device="cpu")
            value = value.expand(shape + site["fn"].event_shape)
            observed[name] = Observation(value.detach().cpu(), counted, scale, site["fn"].event_dim)
        elif not bool(counted.all()) or bool((scale != 1).any()):
            weighted.append(name)
    return Reading(observed, tuple(factors), tuple(weighted))
