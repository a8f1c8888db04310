"""Automatic guides built on normalizing flows."""

from __future__ import annotations

from .amortized_flow import AmortizedFlow
from .auto_flow import AutoFlow
from .auto_plate_flow import AutoPlateFlow
from .typicality import Typicality

__all__ = ["AmortizedFlow", "AutoFlow", "AutoPlateFlow", "Typicality"]
