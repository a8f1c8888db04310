"""The same flows in several libraries, for comparisons side by side; each library is a file, imported only where it is measured."""

from __future__ import annotations

import importlib

from .common import KINDS, Flow, Shape, UnsupportedError

__all__ = ["KINDS", "LIBRARIES", "Flow", "Shape", "UnsupportedError", "make"]

LIBRARIES = ("ours", "zuko", "nflows", "normflows", "pyro")


def make(library: str, shape: Shape) -> Flow:
    """The flow of a library.

    Raises:
        UnsupportedError: If the library has none.
    """
    module = importlib.import_module(f"{__name__}.with_{library}")
    return module.make(shape)  # type: ignore[no-any-return]
