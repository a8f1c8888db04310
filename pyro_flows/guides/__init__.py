"""Automatic guides built on normalizing flows."""

from __future__ import annotations

from .auto_flow import AutoFlow
from .auto_plate_flow import AutoPlateFlow

__all__ = ["AutoFlow", "AutoPlateFlow"]
