"""Kinds of supports, which copies keep: a constraint that was copied or unpickled is no longer the same object."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

Constraint = constraints.Constraint
_BOUNDS = ("lower_bound", "upper_bound")


def bare(constraint: Constraint) -> Constraint:
    """The constraint on entries, without the number of dimensions of an event.

    Example:
        >>> bare(constraints.real_vector)
        Real()
    """
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def is_real(constraint: Constraint) -> bool:
    """Whether entries may be any numbers.

    Example:
        >>> is_real(constraints.real_vector), is_real(constraints.positive)
        (True, False)
    """
    return isinstance(bare(constraint), type(constraints.real))


def is_kind(constraint: Constraint, like: Constraint) -> bool:
    """Whether two constraints are of one kind, such as the sphere.

    Example:
        >>> is_kind(constraints.simplex, constraints.simplex), is_kind(constraints.real, constraints.simplex)
        (True, False)
    """
    return type(bare(constraint)) is type(bare(like))


def takes(domain: Constraint, codomain: Constraint) -> bool:
    """Whether values in the second lie in the first, as far as their kinds and bounds tell.

    Example:
        >>> takes(constraints.interval(0.0, 2.0), constraints.unit_interval), takes(constraints.positive, constraints.real)
        (True, False)
    """
    wanted, given = bare(domain), bare(codomain)
    if is_real(wanted):
        return True
    if _has_bounds(wanted) and _has_bounds(given):
        (low, high), (lower, upper) = _bounds(wanted), _bounds(given)
        return bool((low <= lower).all() and (upper <= high).all())
    own, other = vars(wanted), vars(given)
    return type(wanted) is type(given) and own.keys() == other.keys() and all(_equal(own[name], other[name]) for name in own)


def _has_bounds(constraint: Constraint) -> bool:
    return any(hasattr(constraint, name) for name in _BOUNDS) and not constraint.is_discrete


def _bounds(constraint: Constraint) -> tuple[Tensor, Tensor]:
    low, high = (getattr(constraint, name, end) for name, end in zip(_BOUNDS, (-torch.inf, torch.inf), strict=True))
    return torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)
