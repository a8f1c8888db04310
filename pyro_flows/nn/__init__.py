"""Conditioner networks."""

from .masked import MaskedMLP
from .mlp import MLP

__all__ = ["MLP", "MaskedMLP"]
