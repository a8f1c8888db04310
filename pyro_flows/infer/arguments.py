"""Arguments that many functions take: seeds and numbers of draws."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_seed(seed: Any) -> None:
    """Refuse what cannot seed torch's generators.

    Raises:
        ValueError: If it is neither None nor an integer of 64 bits.

    Example:
        >>> check_seed(0)
    """
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63):
        raise ValueError(f"seed must be an integer of at most 64 bits or None, got {seed!r}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse a number of draws that is not a positive integer.

    Raises:
        ValueError: If it is not; the message names the argument.

    Example:
        >>> check_count("num_samples", 5)
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} must be an integer of at least {least}, got {got}")
