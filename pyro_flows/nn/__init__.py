"""Conditioner networks."""

from __future__ import annotations

from .masked import MaskedMLP
from .mlp import MLP

__all__ = ["MLP", "MaskedMLP"]
