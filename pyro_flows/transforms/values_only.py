"""Passes of which only the values are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_values_only: ContextVar[bool] = ContextVar("values_only", default=False)


@contextmanager
def values_only() -> Iterator[None]:
    """Let transforms whose log-determinant costs extra leave it out; what they return in its place says nothing.

    Example:
        >>> with values_only():
        ...     wants_log_det()
        False
    """
    token = _values_only.set(True)
    try:
        yield
    finally:
        _values_only.reset(token)


def wants_log_det() -> bool:
    """Whether a pass must compute its log-determinant; always in compiled code.

    Example:
        >>> wants_log_det()
        True
    """
    return torch.compiler.is_compiling() or not _values_only.get()
