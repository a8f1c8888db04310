"""The plates of one call of a model: their sizes, the indices of the subsample, and the masks at latent sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .sites import InitToSupport, Site, is_cut, is_subsample, site_support, site_transform


@dataclass(frozen=True)
class PlateCall:
    """A plate as it is in one call of the model.

    Args:
        name: Its name.
        dim: Its dimension, negative, counted from the right of the batch shape.
        size: Its full size.
        indices: The elements of this call, ``(subsample size,)``.
        given: Whether the model passes the indices by ``subsample=``.

    Example:
        >>> PlateCall("data", -1, 10, torch.arange(10), False).is_full
        True
    """

    name: str
    dim: int
    size: int
    indices: Tensor
    given: bool

    @property
    def count(self) -> int:
        """Number of elements in this call."""
        return len(self.indices)

    @property
    def is_full(self) -> bool:
        """Whether the elements are all of the plate, in its order."""
        return self.count == self.size and bool((self.indices == torch.arange(self.size, device=self.indices.device)).all())

    def enter(self) -> Any:
        """A Pyro plate with the size, dimension and indices of this one, to be used as a context."""
        with poutine.block():  # its site is in the trace already
            return pyro.plate(self.name, self.size, subsample=self.indices, dim=self.dim)


@dataclass(eq=False)
class PlateReader(poutine.messenger.Messenger):  # type: ignore[misc]
    """Notes plates and masks while a model runs, and ends the run once all it was asked for has passed.

    Args:
        plates: Names of the plates to note.
        sites: Names of the latent sites, and their values for the run, used where their shape fits.
        awaited: Names of the latent sites after the last of which the run may end.

    Attributes:
        calls: The plates that were noted, by name.
        masks: The mask at each latent site that was passed.
        shapes: The shape of a value of each.
        transforms: The bijection to the support of each, as it is in this call.
        supports: The support of each.
        args: Arguments of the call.
        kwargs: Keyword arguments of the call.
    """

    plates: frozenset[str]
    sites: Mapping[str, Tensor]
    awaited: set[str]
    calls: dict[str, PlateCall] = field(default_factory=dict)
    masks: dict[str, Tensor | bool | None] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    indices: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    transforms: dict[str, Any] = field(default_factory=dict)
    supports: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def _pyro_sample(self, msg: Site) -> None:
        name = msg["name"]
        if is_subsample(msg):
            if msg["value"] is not None:
                self.given.add(name)
            return
        if msg["is_observed"] or name not in self.sites:
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.plates and frame.vectorized:
                if frame.name not in self.indices:
                    raise ValueError(
                        f"plate {frame.name!r} has no size, or is made outside of the model; write `with "
                        f"pyro.plate({frame.name!r}, size, ...)` in the model"
                    )
                size, indices = self.indices[frame.name]
                self.calls[frame.name] = PlateCall(frame.name, frame.dim, size, indices, frame.name in self.given)
        self.masks[name] = msg["mask"]
        if not is_cut(msg["fn"]):
            self.transforms[name], self.supports[name] = site_transform(msg["fn"]), site_support(msg["fn"])
        self.shapes[name] = torch.Size(msg["fn"].shape())
        self.awaited.discard(name)
        if not self.awaited:
            raise _AllNotedSignal
        known = self.sites[name]
        msg["value"] = known if known.shape == self.shapes[name] else InitToSupport(_draw)(msg)
        msg["done"] = True

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_subsample(msg):
            indices = msg["value"]
            if not isinstance(indices, Tensor):
                indices = torch.as_tensor(indices)
            size = int(msg["fn"].size)
            integral = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
            if not integral or indices.dim() != 1 or not len(indices) or not bool(((indices >= 0) & (indices < size)).all()):
                raise ValueError(
                    f"the indices of plate {msg['name']!r} must be integers from 0 to {size - 1}, at least one, in one "
                    f"dimension; got {indices.dtype} of shape {tuple(indices.shape)}: {indices.reshape(-1)[:5].tolist()}"
                )
            self.indices[msg["name"]] = (size, indices)


class _AllNotedSignal(Exception):  # noqa: N818, it is no error
    """Everything asked for has been noted."""


def _draw(site: Site) -> Tensor:
    return site["fn"]()  # type: ignore[no-any-return]


def read_plates(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    plates: frozenset[str],
    sites: Mapping[str, Tensor],
    awaited: frozenset[str],
) -> PlateReader:
    """Run a model up to its last awaited site, and note the plates of this call.

    Only the draws of indices of the named plates are seen by Pyro's handlers outside, so that a trace of the guide holds them and a
    replay sets them.

    Args:
        model: A Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        plates: Names of the plates to note.
        sites: Values of the latent sites for the run, by name.
        awaited: Names of the sites after which the run may end.

    Returns:
        What was noted.

    Example:
        >>> def model():
        ...     with pyro.plate("data", 10, subsample_size=3):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> noted = read_plates(model, (), {}, plates=frozenset({"data"}), sites={"z": torch.zeros(3)}, awaited=frozenset({"z"}))
        >>> noted.calls["data"].count, noted.calls["data"].size
        (3, 10)
    """
    reader = PlateReader(plates=plates, sites=sites, awaited=set(awaited), args=args, kwargs=kwargs)

    def hidden(site: Site) -> bool:
        return site["type"] != "sample" or not is_subsample(site) or site["name"] not in plates

    with torch.no_grad(), poutine.block(hide_fn=hidden), reader:
        try:
            model(*args, **kwargs)
        except _AllNotedSignal:
            pass
    return reader
