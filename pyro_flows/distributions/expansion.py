"""The same distribution module with another batch shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch.distributions import Distribution

D = TypeVar("D", bound=Distribution)


def check_expansion(distribution: Distribution, batch_shape: Sequence[int]) -> torch.Size:
    """The batch shape as ``torch.Size``, once it is sure that the distribution's own expands to it.

    Args:
        distribution: The distribution to expand.
        batch_shape: The batch shape asked for.

    Raises:
        ValueError: If a dimension other than 1 would change, or dimensions would go.

    Example:
        >>> check_expansion(dist.Normal(torch.zeros(5), 1.0), (3, 5))
        torch.Size([3, 5])
    """
    old, new = torch.Size(distribution.batch_shape), torch.Size(batch_shape)
    kept = new[max(len(new) - len(old), 0) :]
    if len(kept) < len(old) or any(a not in (1, b) for a, b in zip(old, kept, strict=True)):
        raise ValueError(
            f"batch_shape must be one to which the {tuple(old)} of this {type(distribution).__name__} expands, "
            f"got {tuple(new)}; only dimensions of size 1 grow, and new ones come on the left"
        )
    return new


def shallow_copy(distribution: D) -> D:
    """A new object with the attributes of ``distribution``, as ``copy.copy`` makes it of one without ``__getstate__``.

    Pyro may be in the middle of a step, which needs the links that ``__getstate__`` drops.

    Example:
        >>> normal = dist.Normal(torch.zeros(5), 1.0)
        >>> shallow_copy(normal).loc is normal.loc
        True
    """
    new = distribution.__class__.__new__(distribution.__class__)
    new.__dict__.update(distribution.__dict__)
    return new


def expanded(distribution: D, batch_shape: Sequence[int]) -> D:
    """A copy of ``distribution`` with another batch shape, which shares parameters and buffers.

    For distributions that are modules and draw for any batch shape. What ``.to()`` or an optimiser does to one, it does
    to both.

    Args:
        distribution: A distribution that is an ``nn.Module``.
        batch_shape: Its new batch shape.

    Raises:
        ValueError: If the old batch shape does not expand to the new one.

    Example:
        >>> from pyro_flows.distributions import StudentTBase
        >>> base = StudentTBase(3)
        >>> wide = expanded(base, (5,))
        >>> wide.batch_shape, wide.raw_df is base.raw_df
        (torch.Size([5]), True)
    """
    batch_shape = check_expansion(distribution, batch_shape)
    new = shallow_copy(distribution)
    new._batch_shape = batch_shape
    return new
