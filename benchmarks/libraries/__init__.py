"""The same flows in several libraries, for comparisons side by side; each library is a file, imported only where it is measured."""

from __future__ import annotations

import importlib

from .common import KINDS, Flow, Shape, UnsupportedError, use_silu

__all__ = ["KINDS", "LIBRARIES", "Flow", "Shape", "UnsupportedError", "make"]

LIBRARIES = ("ours", "zuko", "nflows", "normflows", "pyro")


def make(library: str, shape: Shape) -> Flow:
    """The flow of a library.

    Raises:
        UnsupportedError: If the library has none.
        RuntimeError: If SiLU is wanted and no other activation was found in its place.
    """
    flow: Flow = importlib.import_module(f"{__name__}.with_{library}").make(shape)
    if shape.silu and library != "ours" and not use_silu(flow.module):
        raise RuntimeError(f"{library}: no activation found that SiLU could replace")
    return flow
