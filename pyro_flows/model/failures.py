"""What a model raises at some latents: whose error it is, its words, and NaN in the place of what it did not give."""

from __future__ import annotations

import math
import os
import re
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from .memory import is_out_of_memory
from .rewrites import rewritten

_NUMBER = re.compile(r"[-+]?\d[\d.]*(?:e[-+]?\d+)?")
_PACKAGE = Path(__file__).parents[1]


def words(error: Exception) -> str:
    """Class and first line of an error.

    Example:
        >>> words(ValueError("no root"))
        'ValueError: no root'
    """
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def without_numbers(text: str) -> str:
    """A text without its numbers, which would make each error one of its own.

    Example:
        >>> without_numbers("no root at x = -1.5")
        'no root at x = …'
    """
    return _NUMBER.sub("…", text)


def is_of_the_model(error: Exception) -> bool:
    """Whether the model raised it, and not this package for what the model is, nor for want of memory.

    Example:
        >>> is_of_the_model(ValueError("never raised"))
        False
    """
    passing = Path(rewritten.__code__.co_filename)  # operations of the model pass through there
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) != passing]
    if is_out_of_memory(error) or type(error).__module__ == checkpoint.__module__:  # whose errors end a recomputation early
        return False
    return bool(frames) and Path(frames[-1].filename).parent != Path(__file__).parent


def looks_at_values(error: BaseException) -> bool:
    """Whether an error under vmap came from a line outside torch, Pyro and this package that needs a tensor's value.

    Example:
        >>> looks_at_values(RuntimeError("shape mismatch"))
        False
    """
    if not any(sign in str(error) for sign in ("data-dependent control flow", ".item()", "Cannot access data pointer")):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    inside = [str(Path(module.__file__).parent) + os.sep for module in (torch, pyro)] + [str(_PACKAGE) + os.sep]  # type: ignore[arg-type]
    return bool(frames) and not frames[-1].filename.startswith(tuple(inside))


def stack_or_nan(rows: Sequence[Any | None], like: Any, latents: Iterable[Tensor]) -> Any:
    """Results of a model at single latents, stacked; NaN where it raised, in the dtype of the latents if there is none of its own.

    Args:
        rows: For each the result, tensors in any structure, or None.
        like: Has the structure and shapes of a result.
        latents: For each a tensor to which NaN is tied, so that a gradient can be asked for.

    Example:
        >>> stack_or_nan([torch.tensor(True), None], torch.tensor(True), torch.zeros(2, 3))
        tensor([1., nan])
    """

    def floating(leaf: Tensor, z: Tensor) -> torch.dtype:
        return leaf.dtype if leaf.is_floating_point() else z.dtype

    filled = []
    for row, z in zip(rows, latents, strict=True):
        if row is None:
            filled.append(tree_map(lambda leaf, z=z: torch.full_like(leaf, math.nan, dtype=floating(leaf, z)) * z.sum(), like))
        else:
            filled.append(tree_map(lambda leaf, z=z: leaf.to(floating(leaf, z)), row))
    return tree_map(lambda *leaves: torch.stack(leaves), *filled)
