"""A limit on the tensors that are made while it is in force, looked at before their memory is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SIZED = ("empty", "zeros", "ones", "rand", "randn", "full", "new_empty", "new_zeros", "new_ones", "new_full", "empty_strided")
_COUNTED = {"arange": 0, "eye": 0, "randperm": 0, "linspace": 2}


class Allocation(TorchDispatchMode):
    """Refuses tensors beyond a number of entries, all together.

    Args:
        largest: The number.

    Example:
        >>> with Allocation(100):
        ...     try:
        ...         torch.zeros(10**9)
        ...     except ValueError as error:
        ...         print(error)
        a tensor of 1,000,000,000 numbers is asked for, more than the file accounts for
    """

    def __init__(self, largest: int) -> None:
        super().__init__()
        self._left = largest

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        count = _asked_for(func, args)
        if count > self._left:
            raise ValueError(f"a tensor of {count:,} numbers is asked for, more than the file accounts for")
        self._left -= count
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))


def _asked_for(func: Any, args: Sequence[Any]) -> int:
    name = func._schema.name.split("::")[-1]
    sizes: Any = ()
    if name in _SIZED:
        sizes = args[1] if name.startswith("new_") else args[0]
    elif name == "repeat":
        sizes = args[1]
    elif name in _COUNTED and args:
        numbers = [abs(value) for value in args if isinstance(value, int | float) and not isinstance(value, bool)]
        count = max(numbers, default=0)
        return int(count * count if name == "eye" else count) if math.isfinite(count) else 2**62
    if isinstance(sizes, torch.Size | list | tuple) and all(isinstance(size, int) for size in sizes):
        return math.prod(sizes) if sizes else 0
    return 0
