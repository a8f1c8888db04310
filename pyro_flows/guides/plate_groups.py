"""Which latents share the plates of a context, which context is theirs, and what a guide of plates cannot express."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows.model.plates import PlateReader

ContextKey = str | tuple[str, ...]
Plates = tuple[str, ...]
#: What stands for the elements of plates: an encoder, or the width of a learned row.
Context = Mapping[Plates, Callable[..., Tensor] | int]
#: Names of latent sites by the plates that they share, outermost first.
Groups = Mapping[Plates, list[str]]


def as_key(name: ContextKey) -> Plates:
    """The plates of a key of a context.

    Example:
        >>> as_key("data")
        ('data',)
    """
    return (name,) if isinstance(name, str) else tuple(name)


def as_written(key: Plates) -> ContextKey:
    """A key as a user writes it: one plate by its name.

    Example:
        >>> as_written(("data",)), as_written(("rows", "columns"))
        ('data', ('rows', 'columns'))
    """
    return key[0] if len(key) == 1 else key


def checked_context(context: Any) -> dict[Plates, Callable[..., Tensor] | int]:
    """A context by tuples of plates.

    Raises:
        ValueError: If it is no dictionary of encoders and positive integers by names of plates, or tuples of these.

    Example:
        >>> checked_context({"data": 4})
        {('data',): 4}
    """
    if not isinstance(context, Mapping) or not context:
        raise ValueError(f"context must be a dictionary from a plate's name to an encoder or an integer, got {context!r}")
    checked = {}
    for name, value in context.items():
        if not (isinstance(name, str) or (isinstance(name, tuple) and name and all(isinstance(part, str) for part in name))):
            raise ValueError(f"context: a key must be the name of a plate or a tuple of names, got {name!r}")
        if isinstance(value, bool) or not (callable(value) or isinstance(value, int)):
            raise ValueError(f"context[{name!r}] must be an encoder or a positive integer, got {value!r}")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"context[{name!r}] must be positive, the width of a learned row, got {value}")
        checked[as_key(name)] = value
    return checked


def named_plates(context: Context) -> set[str]:
    """The plates that a context names.

    Example:
        >>> sorted(named_plates({("a",): 4, ("a", "b"): 4}))
        ['a', 'b']
    """
    return {plate for key in context for plate in key}


def group_by_plates(frames: Mapping[str, Sequence[Any]], context: Context) -> dict[Plates, list[str]]:
    """Latent sites by the named plates that they are in, outermost first; those in fewer plates come first.

    Args:
        frames: Frames of the plates of each latent site, outermost first.
        context: The context.

    Raises:
        ValueError: If a latent is local to a subsampled plate without context, or the context names a plate without latents.

    Example:
        >>> group_by_plates({"x": []}, {})
        {(): ['x']}
    """
    named = named_plates(context)
    groups: dict[Plates, list[str]] = {}
    for name, stack in frames.items():
        for frame in stack:
            if frame.name not in named and frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"latent site {name!r} is local to plate {frame.name!r}, which is subsampled ({frame.size} of "
                    f"{frame.full_size}) and has no context among {sorted(named)}; give context={{{frame.name!r}: encoder}}, or an "
                    f"integer for a learned row per element"
                )
        plates = tuple(frame.name for frame in stack if frame.name in named)
        known = next((group for group in groups if set(group) == set(plates)), plates)  # crossed plates have no order
        groups.setdefault(known, []).append(name)
    unused = named - {plate for plates in groups for plate in plates}
    if unused:
        there = sorted({frame.name for stack in frames.values() for frame in stack})
        raise ValueError(
            f"context names {sorted(unused)}, and no latent site is in a plate of that name; the plates of latent sites are {there}"
        )
    return dict(sorted(groups.items(), key=lambda item: len(item[0])))


def key_of(plates: Plates, groups: Groups, context: Context) -> Plates:
    """The key of the context of the latents in some plates: these plates in any order, or the innermost where that is enough.

    Raises:
        ValueError: If there is none.

    Example:
        >>> key_of(("a", "b"), {("a",): ["x"], ("a", "b"): ["y"]}, {("a",): 2, ("b",): 2})
        ('b',)
    """
    for key in context:
        if len(key) == len(plates) and set(key) == set(plates):
            return key
    innermost = plates[-1:]
    if innermost in context and [group for group in groups if group[-1:] == innermost] == [plates]:
        return innermost
    name = repr(plates[0]) if len(plates) == 1 else repr(plates)
    raise ValueError(
        f"latent sites {groups[plates]} are in the plates {list(plates)} together, and context has nothing for them; give "
        f"context={{{name}: …}}, an encoder or an integer"
    )


def check_loops(sites: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse latents in a loop over a subsample, whose names are others in each call.

    Raises:
        ValueError: If there is one; the message names it.

    Example:
        >>> check_loops({})
    """
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if not frame.vectorized and (frame.full_size or frame.size) != frame.size:
                raise ValueError(
                    f"latent site {name!r} is in plate {frame.name!r}, a loop over a subsample; write it as a context, "
                    f"`with pyro.plate(...)`"
                )


def check_charts(cut: Iterable[str], frames: Mapping[str, Sequence[Any]], context: Context) -> None:
    """Refuse latents on circles and spheres in a plate of the context.

    Raises:
        ValueError: If there is one; the message names it.

    Example:
        >>> check_charts([], {}, {})
    """
    for name in cut:
        if any(frame.name in named_plates(context) for frame in frames[name]):
            raise ValueError(
                f"latent site {name!r} lives on a circle or sphere, which would be cut at one place for all elements of its plate; "
                f"leave that plate out of context, or write the value as the direction of normal latents"
            )


def check_dependence(groups: Groups, parents: Mapping[str, Sequence[str]]) -> None:
    """Refuse a latent whose prior depends on one that is local to plates which do not enclose it.

    Args:
        groups: Latent sites by their plates.
        parents: The latents on which the prior of each depends.

    Raises:
        ValueError: If there is one; the message names both.

    Example:
        >>> check_dependence({(): ["x"]}, {"x": []})
    """
    home = {name: plates for plates, names in groups.items() for name in names}
    for name, above in parents.items():
        for parent in above:
            apart = sorted(set(home[parent]) - set(home[name]))
            if apart:
                raise ValueError(
                    f"the prior of latent site {name!r} depends on {parent!r}, which is local to plates {apart} that {name!r} is "
                    f"not in; the guide cannot express that: nest the plates, or leave {apart} out of context (if not subsampled), "
                    f"so that {parent!r} is among the globals"
                )


def check_indices(first: PlateReader, second: PlateReader) -> None:
    """Refuse indices that the model draws by other means than its plate: a replay would put the guide's in their place.

    Args:
        first: A call.
        second: The same call with other random numbers.

    Raises:
        ValueError: If indices that the model passes differ; the message names the plate.

    Example:
        >>> call = PlateReader(plates=frozenset(), sites={}, awaited=set())
        >>> check_indices(call, call)
    """
    for name, call in first.calls.items():
        other = second.calls[name]
        if call.given and not torch.equal(call.indices, other.indices):
            raise ValueError(
                f"the model draws the indices of plate {name!r} itself and passes them by subsample=; the guide would use others. "
                f"Pass them as an argument of the model, or let the plate draw them by subsample_size= and take its indices from "
                f"`with pyro.plate(...) as indices`"
            )


def check_masks(first: PlateReader, second: PlateReader) -> None:
    """Refuse masks of local latents that depend on other latents: the guide reads the model before it has drawn any.

    Args:
        first: A call.
        second: The same call with the same random numbers and other latents.

    Raises:
        ValueError: If a mask differs; the message names the site.

    Example:
        >>> call = PlateReader(plates=frozenset(), sites={}, awaited=set())
        >>> check_masks(call, call)
    """
    for name, mask in first.masks.items():
        other = second.masks.get(name)
        same = torch.equal(mask, other) if isinstance(mask, Tensor) and isinstance(other, Tensor) else mask is other
        if not same:
            raise ValueError(
                f"the mask of latent site {name!r} depends on other latents, which the guide cannot follow; mask by the data"
            )
