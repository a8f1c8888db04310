"""The processes of torch's default group; one, where there is no group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_distributed
from torch import Tensor


def in_group() -> bool:
    """Whether this process is one of a group.

    Example:
        >>> in_group()
        False
    """
    return torch_distributed.is_available() and torch_distributed.is_initialized()


def rank() -> int:
    """Number of this process, from 0.

    Example:
        >>> rank()
        0
    """
    return torch_distributed.get_rank() if in_group() else 0


def world_size() -> int:
    """Number of processes.

    Example:
        >>> world_size()
        1
    """
    return torch_distributed.get_world_size() if in_group() else 1


def mean(value: float | Tensor) -> float:
    """Mean of a number over the processes, each of which has to ask for it.

    Args:
        value: The number of this process.

    Example:
        >>> mean(torch.tensor(2.0))
        2.0
    """
    number = float(value.detach()) if isinstance(value, Tensor) else float(value)
    if not in_group():
        return number
    device = torch.device("cuda", torch.cuda.current_device()) if torch_distributed.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(number, dtype=torch.float64, device=device)
    torch_distributed.all_reduce(total)
    return float(total) / world_size()


def gather(value: Any) -> list[Any] | None:
    """The values of all processes, in the first one; None in the others.

    Args:
        value: What this process gives, which pickle has to know.

    Example:
        >>> gather("a")
        ['a']
    """
    if not in_group():
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    torch_distributed.gather_object(value, values)
    return values


def broadcast(value: Any) -> Any:
    """The value of the first process, in all of them.

    Args:
        value: What this process gives; only that of the first counts.

    Example:
        >>> broadcast("a")
        'a'
    """
    if not in_group():
        return value
    box = [value]
    torch_distributed.broadcast_object_list(box)
    return box[0]
