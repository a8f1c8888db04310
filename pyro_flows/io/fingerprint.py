"""What a guide was made for: the sites of its model, to be compared with those of the model it is loaded for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Size

from pyro_flows.guides.flow_guide import FlowGuide
from pyro_flows.model.structure import ModelStructure


def fingerprint(structure: ModelStructure) -> dict[str, Any]:
    """The structure of a model as plain data: its latent and observed sites in their order, shapes, supports, plates.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> fingerprint(pf.model.read_model(model))["latent"]
        [{'name': 'x', 'shape': [], 'support': 'Real()', 'plates': []}]
    """
    latent = [
        {"name": site.name, "shape": list(site.shape), "support": str(site.support), "plates": list(site.plates)}
        for site in structure.sites
    ]
    return {
        "latent": latent,
        "observed": [{"name": name, "shape": list(value.shape)} for name, value in structure.observed.items()],
        "enumerated": list(structure.enumerated),
        "parameters": sorted(structure.param_names),
        "dtype": str(structure.dtype).removeprefix("torch."),
    }


def check_fingerprint(saved: Any, structure: ModelStructure) -> None:
    """Refuse a model of another structure than the one that was saved.

    Args:
        saved: What :func:`fingerprint` gave then.
        structure: The model now.

    Raises:
        ValueError: If it is another; the message says what differs.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> read = pf.model.read_model(model)
        >>> check_fingerprint(fingerprint(read), read)
    """
    now = fingerprint(structure)
    if not isinstance(saved, Mapping) or set(saved) != set(now):
        raise ValueError("the description of the model is damaged")
    said = []
    for kind in ("latent", "observed"):
        before = {entry["name"]: entry for entry in saved[kind]}
        after = {entry["name"]: entry for entry in now[kind]}
        said += [f"{kind} site {name!r} was there and is not" for name in before if name not in after]
        said += [f"{kind} site {name!r} is new" for name in after if name not in before]
        for name in before.keys() & after.keys():
            for key in before[name]:
                if before[name][key] != after[name].get(key):
                    said.append(
                        f"{key} of {kind} site {name!r} was {_words(before[name][key])} and is {_words(after[name].get(key))}"
                    )
        if not said and list(before) != list(after):
            said.append(f"the order of {kind} sites was {list(before)} and is {list(after)}")
    for kind in ("enumerated", "parameters", "dtype"):
        if saved[kind] != now[kind]:
            said.append(f"{kind} was {saved[kind]} and is {now[kind]}")
    if said:
        raise ValueError(f"model is not the one that was saved: {'; '.join(said[:6])}")


def sites_of(guide: FlowGuide) -> list[dict[str, Any]]:
    """The latent sites of a guide as plain data, for where its model is not at hand.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> sites_of(pf.AutoFlow(model).setup())
        [{'name': 'x', 'shape': [], 'support': 'Real()'}]
    """
    return [
        {"name": name, "shape": list(guide._unconstrained_shapes[name]), "support": str(site["fn"].support)}
        for name, site in guide.prototype_trace.iter_stochastic_nodes()
    ]


def check_sites(saved: Any, guide: FlowGuide) -> None:
    """Refuse a guide of other latent sites than the one that was saved.

    Raises:
        ValueError: If they are others; the message says which.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> guide = pf.AutoFlow(model).setup()
        >>> check_sites(sites_of(guide), guide)
    """
    now = sites_of(guide)
    for before, after in zip(saved, now, strict=False):
        if before != after:
            raise ValueError(f"model is not the one that was saved: its latent site {before} is {after} now")
    if len(saved) != len(now):
        raise ValueError(f"model is not the one that was saved: it had {len(saved)} latent sites and has {len(now)}")


def _words(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list | Size) else str(value)
