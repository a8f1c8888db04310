"""Solvers with gradients through the solution, not through the iterations."""

from __future__ import annotations

from .mode import is_eager

__all__ = ["is_eager"]
