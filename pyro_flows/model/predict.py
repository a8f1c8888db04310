"""Posterior predictive draws of a model's observed sites."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .failures import stack_or_nan
from .memory import is_out_of_memory
from .rewrites import rewritten
from .seeding import seeded
from .sites import Site, is_deterministic, is_enumerated, is_factor, is_subsample


class _Predict(Messenger):  # type: ignore[misc]
    """Puts values at the latent sites and draws the observed ones anew."""

    def __init__(self, values: Mapping[str, Tensor], beside: bool = False, deterministic: bool = False) -> None:
        super().__init__()
        self.values, self.beside, self.deterministic = values, beside, deterministic
        self.drawn: dict[str, Tensor] = {}
        self.last: str | None = None

    def _pyro_sample(self, msg: Site) -> None:
        self.last = msg["name"]
        if is_subsample(msg) or is_deterministic(msg) or is_factor(msg):
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif msg["is_observed"] and self.beside:
            drawn = msg["fn"](*msg["args"], **msg["kwargs"])
            self.drawn[msg["name"]] = drawn if isinstance(drawn, Tensor) else torch.as_tensor(drawn)
        elif msg["is_observed"]:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False

    def _pyro_post_sample(self, msg: Site) -> None:
        name = msg["name"]
        if (
            name in self.drawn
            or name in self.values
            or is_subsample(msg)
            or (is_deterministic(msg) and not self.deterministic)
            or is_factor(msg)
            or is_enumerated(msg)
        ):
            return
        self.drawn[name] = msg["value"]


@torch.no_grad()
def predictive(
    model: Callable[..., Any],
    values: Mapping[str, Tensor],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    beside: bool = False,
    deterministic: bool = False,
    seed: int | None = None,
) -> dict[str, Tensor]:
    """Draw the observed sites of a model anew at given values of its latents, one draw for each.

    The model may be called with the data, or with None in their place and covariates of another length. All draws are
    made at once by ``torch.func.vmap`` where the model and its distributions allow, else one by one. Enumerated sites
    are drawn from their prior.

    Args:
        model: A Pyro model.
        values: A value ``(S, site shape)`` for every latent site.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        beside: Whether each observed site is drawn given the *observed* values of the others, which go on as they are; else all
            are drawn anew together, and one that another hangs on is the drawn one.
        deterministic: Whether values of deterministic sites are returned too.
        seed: Makes the draws reproducible and leaves the global generators as they were.

    Returns:
        A tensor ``(S, site shape)`` per observed site. Draws at which the model raises are NaN, with a warning.

    Raises:
        ValueError: If ``values`` is empty or its tensors differ in their first dimension, or the model raises at more than half.

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> predictive(model, {"x": torch.zeros(5)}, seed=0)["y"].shape
        torch.Size([5])
    """
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"values must hold tensors with one common number of draws, got {sizes}")
    call_kwargs = dict(kwargs or {})

    def single(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        predict = _Predict(given, beside, deterministic)
        with pyro.validation_enabled(False), poutine.block(), predict:
            try:
                model(*args, **call_kwargs)
            except Exception as error:
                where = "before its first sample site" if predict.last is None else f"at or after sample site {predict.last!r}"
                raise ValueError(
                    f"the model raised {type(error).__name__} {where} while its data were drawn anew: {error}"
                ) from error
        return predict.drawn

    with seeded(seed):
        for function in (single, lambda given: rewritten(lambda _: single(given))(next(iter(given.values())))):
            try:
                return torch.func.vmap(function, randomness="different")(dict(values))  # type: ignore[no-any-return]
            except Exception:
                # Samplers of Dirichlet, Beta, StudentT and others are not vmapped; what else is wrong, single draws tell.
                continue
        count = next(iter(sizes.values()))
        rows: list[dict[str, Tensor] | None] = []
        failure: ValueError | None = None
        for i in range(count):
            try:
                rows.append(single({name: value[i] for name, value in values.items()}))
            except ValueError as error:
                if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                    raise
                failure = error
                rows.append(None)
        drawn = [row for row in rows if row is not None]
        if failure is None:
            return {name: torch.stack([row[name] for row in drawn]) for name in drawn[0]}
        if len(drawn) < count / 2:
            raise failure
        warnings.warn(f"{count - len(drawn)} of {count} predictive draws are NaN, for {failure}", stacklevel=2)
        return stack_or_nan(rows, drawn[0], next(iter(values.values())))  # type: ignore[no-any-return]
