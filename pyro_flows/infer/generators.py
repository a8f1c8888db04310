"""The random number generators of a process, as tensors and plain numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyro
import torch


def generator_states() -> dict[str, Any]:
    """States of the generators of torch (of the CPU, and of the current CUDA device once it is in use), NumPy and Python.

    Example:
        >>> before = generator_states()
        >>> first = torch.rand(1)
        >>> set_generator_states(before)
        >>> torch.equal(torch.rand(1), first)
        True
    """
    state = pyro.util.get_rng_state()
    name, keys, *rest = state["numpy"]
    state["numpy"] = [name, torch.from_numpy(keys.astype(np.int64)), *rest]
    state["random"] = list(state["random"])
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return dict(state)


def set_generator_states(state: dict[str, Any]) -> None:
    """Put the generators back into states that :func:`generator_states` gave.

    Example:
        See :func:`generator_states`.
    """
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
