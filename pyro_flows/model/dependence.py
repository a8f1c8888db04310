"""Which latent sites of a model depend on which, in the prior."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.inspect import get_model_relations
from torch import Tensor


def prior_parents(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """The latent sites on which the prior of each latent site depends directly.

    Args:
        model: A Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        values: Values of the latent sites at which the model is read.

    Returns:
        Names of the parents by name of the site; empty, with a warning, where the model cannot be read.

    Example:
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> prior_parents(model, (), {}, {"scale": torch.tensor(1.0), "x": torch.tensor(0.0)})
        {'scale': (), 'x': ('scale',)}
    """
    started = _Started(values)(model)
    try:
        with poutine.block(), torch.random.fork_rng():
            relations = get_model_relations(started, tuple(args), dict(kwargs))["sample_sample"]
    except Exception as error:
        warnings.warn(
            f"which latents depend on which could not be read from the model ({type(error).__name__}: {error}); a latent that "
            f"depends "
            f"on one of another plate is not noticed",
            stacklevel=2,
        )
        return dict.fromkeys(values, ())
    return {name: tuple(up for up in relations.get(name, []) if up in values) for name in values}


class _Started(poutine.messenger.Messenger):  # type: ignore[misc]
    """Gives latent sites the values at which a model is read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
