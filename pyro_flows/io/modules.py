"""Modules to plain data and tensors, and back, with the proof that what comes back is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.distributions.module_distribution import ModuleDistribution
from pyro_flows.nn.recorded import Recorded
from pyro_flows.transforms.core import FlowTransform

from .codec import Decoder, Encoder
from .state import State, set_state, state_of

_STATE = ("aliases", "frozen", "evaluating")


def describe(module: Any, name: str = "object") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plain data and tensors that make a module again.

    Args:
        module: A transform, distribution, univariate map or network of ours.
        name: What it is, for messages and as the first part of the names of its tensors.

    Raises:
        ValueError: If it holds what a file cannot describe, or what was changed after it was made, so that it would not come back
            as it is.

    Example:
        >>> data, tensors = describe(pf.flows.affine(2))
        >>> data["made"]["class"], sorted(tensors)[:2]
        ('AffineTril', ['object.index', 'object.params.bias'])
    """
    if not isinstance(module, Recorded) or not isinstance(module, nn.Module):
        raise ValueError(f"{name} must be a transform, distribution or network of ours, got {type(module).__name__}")
    encoder = Encoder()
    made = encoder.encode(module, name)
    state = state_of(module)
    tensors = {f"{name}.{key}": value for key, value in state.tensors.items()}
    arguments = {f"{name}/{key}": value.cpu().clone() for key, value in encoder.tensors.items()}
    data = {"made": made, **{key: _plain(getattr(state, key)) for key in _STATE}}
    data = {key: value for key, value in data.items() if value}
    try:
        difference = how_different(module, restore(data, {**tensors, **arguments}, name))
    except ValueError as error:
        difference = str(error)
    if difference:
        raise ValueError(
            f"{name} would not come back as it is: {difference}. It was changed after it was made; make it anew with what it "
            f"should be"
        )
    return data, {**tensors, **arguments}


def restore(
    data: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    name: str = "object",
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The module of a description.

    Args:
        data: Plain data.
        tensors: Tensors of the file.
        name: As for :func:`describe`.
        device: Where to put it; the default device if None.
        dtype: Type of floating-point parameters and buffers; that of the file if None.

    Raises:
        ValueError: If the description is damaged or asks for what is not known.

    Example:
        >>> restore(*describe(pf.flows.affine(2))).input_dim
        2
    """
    if not isinstance(data, Mapping) or "made" not in data:
        raise ValueError(f"the description of {name} is damaged")
    total = sum(tensor.numel() for tensor in tensors.values())
    arguments = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    with torch.random.fork_rng(devices=[]):
        module = Decoder(arguments, 64 * total + 10**6).decode(data["made"])
    if not isinstance(module, nn.Module):
        raise ValueError(f"the description of {name} is that of a {type(module).__name__}")
    own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    set_state(module, state_from(data, own), device, dtype)
    return module


def state_from(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    """The state that a description tells of.

    Raises:
        ValueError: If its entries are of another kind.

    Example:
        >>> state_from({"frozen": ["a"]}, {"a": torch.zeros(1)}).frozen
        ('a',)
    """
    aliases, frozen, evaluating = data.get("aliases", {}), data.get("frozen", []), data.get("evaluating", [])
    if not isinstance(aliases, dict) or not isinstance(frozen, list) or not isinstance(evaluating, list):
        raise ValueError("the description of the state of an object is damaged")
    return State(tensors, aliases, tuple(frozen), tuple(evaluating))


def describe_state(module: nn.Module, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State alone, of a module that the one who loads makes.

    Example:
        >>> sorted(describe_state(torch.nn.Linear(1, 1), "object")[1])
        ['object.bias', 'object.weight']
    """
    state = state_of(module)
    data = {key: _plain(getattr(state, key)) for key in _STATE}
    return {key: value for key, value in data.items() if value}, {f"{name}.{k}": value for k, value in state.tensors.items()}


def how_different(module: nn.Module, again: nn.Module) -> str | None:
    """In words, where one of two objects is not as the other; None if they are the same.

    Structure, settings, parameters and buffers are compared, and draws and densities of a distribution.

    Example:
        >>> how_different(pf.flows.affine(2), pf.flows.affine(3))
        'params.bias has shape (3,) and would have (2,)'
    """
    parts, others = dict(module.named_modules(remove_duplicate=False)), dict(again.named_modules(remove_duplicate=False))
    for name in [*parts, *others]:
        if name not in others or name not in parts or type(parts[name]) is not type(others[name]):
            have = [type(side[name]).__name__ if name in side else "nothing" for side in (parts, others)]
            return f"{name or 'it'} is {have[0]} and would be {have[1]}"
        if isinstance(parts[name], FlowTransform):
            pair: tuple[Any, Any] = parts[name], others[name]
            if pair[0].settings != pair[1].settings:
                return f"the settings of {name or type(pair[0]).__name__} are {pair[0].settings} and would be {pair[1].settings}"
    ours, theirs = state_of(module).tensors, state_of(again).tensors
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            return f"{name} is there on one side alone"
        if ours[name].shape != theirs[name].shape:
            return f"{name} has shape {tuple(theirs[name].shape)} and would have {tuple(ours[name].shape)}"
        if ours[name].dtype != theirs[name].dtype or not torch.equal(ours[name], theirs[name]):
            return f"the numbers of {name} are others"
    if isinstance(module, ModuleDistribution) and isinstance(again, ModuleDistribution):
        return _other_draws(module, again)
    return None


@torch.no_grad()
def _other_draws(q: Any, again: Any) -> str | None:
    shapes = [(tuple(one.batch_shape), tuple(one.event_shape)) for one in (q, again)]
    if shapes[0] != shapes[1]:
        return f"its batch and event shape are {shapes[0]} and would be {shapes[1]}"
    transform = getattr(q, "transform", None)
    if isinstance(transform, FlowTransform) and transform.context_dim:
        return None  # without a context it has neither
    draws = []
    for one in (q, again):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            draws.append(one.sample((4,)))
    if not torch.equal(*draws):
        return "its draws would be others"
    densities = []
    for one in (q, again):
        with torch.random.fork_rng():  # those that are estimates draw numbers
            torch.manual_seed(0)
            densities.append(one.log_prob(draws[0].clone()))  # a pass that is remembered has other rounding errors
    return None if torch.equal(*densities) else "its densities would be others"


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value)
