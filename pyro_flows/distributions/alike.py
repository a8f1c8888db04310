"""Distributions of one structure, scored at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.transforms.batch_norm import BatchNorm

from .flow_distribution import FlowDistribution

#: What of a module is not of its structure: its state, what is remembered of a pass, and the bookkeeping of every module.
_NOT_COMPARED = {*nn.Module().__dict__, "_cache", "_inv", "_made_with"} - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class _Scores(nn.Module):
    """The log-density of a distribution as the call of a module."""

    def __init__(self, member: FlowDistribution) -> None:
        super().__init__()
        self.member = member

    def forward(self, value: Tensor) -> Tensor:
        return self.member.log_prob(value)


def are_alike(a: FlowDistribution, b: FlowDistribution) -> bool:
    """Whether two distributions differ in nothing but the values of their parameters and buffers.

    Args:
        a: One.
        b: The other.

    Example:
        >>> from pyro_flows import flows
        >>> few, as_few, more = (FlowDistribution(flows.real_nvp(2, num_layers=n)) for n in (2, 2, 3))
        >>> are_alike(few, as_few), are_alike(few, more)
        (True, False)
    """
    mine, others = list(a.named_modules()), list(b.named_modules())
    return len(mine) == len(others) and all(
        name == known and _same(module, other) for (name, module), (known, other) in zip(mine, others, strict=True)
    )


def _same(a: nn.Module, b: nn.Module) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    for kind in ("_parameters", "_buffers"):
        one, other = a.__dict__[kind], b.__dict__[kind]
        if one.keys() != other.keys() or any(_kind(one[name]) != _kind(other[name]) for name in one):
            return False
    if any(a.__dict__[hooks] or b.__dict__[hooks] for hooks in _HOOKS):
        return False
    mine, theirs = a.__dict__, b.__dict__
    keys = mine.keys() - _NOT_COMPARED
    return keys == theirs.keys() - _NOT_COMPARED and all(_equal(mine[key], theirs[key]) for key in keys)


def _kind(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or type(a) is not type(b):  # a tensor that is no state, such as a context, has gradient of its own
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


def log_probs_at_once(members: Sequence[FlowDistribution], value: Tensor) -> Tensor | None:
    """Log-densities ``(M, *)`` of ``value`` ``(*, *event_shape)`` under distributions that are alike, in one vectorised pass.

    Args:
        members: The distributions, for each two of which :func:`are_alike` is true.
        value: The points.

    Returns:
        The log-densities; None where a pass changes buffers, of which only copies would change here.

    Example:
        >>> from pyro_flows import flows
        >>> members = [FlowDistribution(flows.affine(2)) for _ in range(3)]
        >>> log_probs_at_once(members, torch.zeros(5, 2)).shape
        torch.Size([3, 5])
    """
    scores = [_Scores(member) for member in members]
    states = [{**dict(score.named_parameters()), **dict(score.named_buffers())} for score in scores]
    if not states[0] or any(isinstance(module, BatchNorm) and module.training for module in members[0].modules()):
        return None
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    versions = [tensor._version for tensor in stacked.values()]
    first = scores[0]
    found = torch.func.vmap(lambda state: torch.func.functional_call(first, state, (value,)))(stacked)
    return found if versions == [tensor._version for tensor in stacked.values()] else None
