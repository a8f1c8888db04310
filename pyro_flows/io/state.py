"""Parameters and buffers of a module as named tensors that share no memory, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

#: Buffers of these classes have the size that their data gave them.
_RESIZABLE = ("Typicality",)


@dataclass(frozen=True)
class State:
    """What a module holds beside the arguments it is made with.

    Args:
        tensors: Parameters and buffers by name, each memory once.
        aliases: Other names of the same tensors.
        frozen: Names of parameters without gradients.
        evaluating: Names of modules in evaluation mode.

    Example:
        >>> sorted(state_of(torch.nn.Linear(1, 1)).tensors)
        ['bias', 'weight']
    """

    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    evaluating: tuple[str, ...] = ()


def state_of(module: nn.Module) -> State:
    """All parameters and buffers, those that a ``state_dict`` leaves out as well.

    Raises:
        ValueError: If a parameter is of another kind than a tensor in memory, such as one that was not made yet.

    Example:
        >>> state_of(torch.nn.BatchNorm1d(2)).tensors["running_mean"]
        tensor([0., 0.])
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    frozen: list[str] = []
    first: dict[int, str] = {}
    for name, tensor in _named(module).items():
        if tensor.is_meta or isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ValueError(f"{name} has no values yet; set the module up first")
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            frozen.append(name)
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    evaluating = tuple(name for name, part in module.named_modules(remove_duplicate=False) if not part.training)
    return State(tensors, aliases, tuple(frozen), evaluating)


def set_state(module: nn.Module, state: State, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    """Give a module its parameters and buffers.

    Args:
        module: A module made with the same arguments.
        state: What :func:`state_of` gave.
        device: Device to put them on; where they are now if None.
        dtype: Type of floating-point ones; as they are in the state if None.

    Raises:
        ValueError: If names or shapes are others, or a number is NaN.

    Example:
        >>> a, b = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> set_state(b, state_of(a))
        >>> torch.equal(a.weight, b.weight)
        True
    """
    there = _named(module)
    wanted, given = set(there), {*state.tensors, *state.aliases}
    if wanted != given:
        apart = {"missing": wanted - given, "not known": given - wanted}
        words = "; ".join(f"{what}: {', '.join(sorted(names)[:5])}" for what, names in apart.items() if names)
        raise ValueError(f"the weights are those of another object ({words})")
    parts = dict(module.named_modules(remove_duplicate=False))
    resizable = {name for name, part in parts.items() if type(part).__name__ in _RESIZABLE}
    made: dict[str, Tensor] = {}
    dtypes: dict[torch.dtype, torch.dtype] = {}
    for name, own in there.items():
        source = state.aliases.get(name, name)
        if source not in state.tensors:
            raise ValueError(f"the weights name {source!r} as another name of {name!r}, and hold none")
        value = state.tensors[source]
        prefix, _, leaf = name.rpartition(".")
        if value.shape != own.shape and prefix not in resizable:
            raise ValueError(f"weight {name!r} has shape {tuple(value.shape)}, expected {tuple(own.shape)}")
        if value.is_floating_point() != own.is_floating_point() or value.dtype.is_complex:
            raise ValueError(f"weight {name!r} has dtype {value.dtype}, expected one like {own.dtype}")
        if dtypes.setdefault(own.dtype, value.dtype) != value.dtype:
            raise ValueError(f"weight {name!r} has dtype {value.dtype}, and others like it have {dtypes[own.dtype]}")
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise ValueError(f"weight {name!r} holds {int(torch.isnan(value).sum())} NaNs")
        if source not in made:
            # A copy: memory of a file is not aligned as torch's own, and products of matrices then round otherwise.
            value = value.clone().to(device=device or own.device, dtype=dtype if value.is_floating_point() else None)
            made[source] = nn.Parameter(value, name not in state.frozen) if isinstance(own, nn.Parameter) else value
        owner = parts[prefix]
        (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = made[source]  # type: ignore[assignment]
    for name, part in parts.items():
        part.training = name not in state.evaluating


def _named(module: nn.Module) -> dict[str, Tensor]:
    """All names, those of shared tensors each."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found
