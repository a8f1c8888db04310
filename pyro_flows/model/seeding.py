"""Random numbers of a block by a seed, and threads that take turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Torch's generators, Pyro's handlers and its parameter store are of all threads: two that used them at once would get each other's
#: random numbers and sites. Threads therefore take turns; those that want speed are processes.
TURN = threading.RLock()


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """A block with torch's generators seeded, which are put back behind it; None leaves them alone. Threads take turns.

    Args:
        seed: The seed.

    Example:
        >>> with seeded(0):
        ...     first = torch.rand(1)
        >>> with seeded(0):
        ...     torch.equal(torch.rand(1), first)
        True
    """
    with TURN, torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield
