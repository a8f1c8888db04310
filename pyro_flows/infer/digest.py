"""Short names of data, by which it is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest(value: Any) -> str:
    """A short name for data: the same for the same numbers.

    Args:
        value: Tensors, arrays, numbers, strings, and lists, tuples and dictionaries of them; of others the class counts.

    Example:
        >>> digest(torch.ones(2)) == digest(torch.ones(2)), digest(torch.ones(2)) == digest(torch.zeros(2))
        (True, False)
    """
    found = hashlib.sha256()
    _digest(value, found.update)
    return found.hexdigest()[:16]


def _digest(value: Any, add: Callable[[bytes], Any]) -> None:
    if isinstance(value, nn.Module):
        value = {"module": type(value).__name__, **value.state_dict()}
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        add(f"tensor {dense.dtype} {tuple(dense.shape)}".encode())
        add(dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b"")
    elif isinstance(value, np.ndarray) and value.dtype != object:
        add(f"array {value.dtype} {value.shape}".encode())
        add(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        add(f"mapping {len(value)}".encode())
        for key, item in value.items():
            _digest(key, add)
            _digest(item, add)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        add(f"sequence {len(value)}".encode())
        for item in value:
            _digest(item, add)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        add(f"{type(value).__name__} {value!r}".encode())
    else:
        add(type(value).__qualname__.encode())
