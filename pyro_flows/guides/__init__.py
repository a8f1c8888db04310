"""Automatic guides built on normalizing flows."""

from __future__ import annotations

from .auto_flow import AutoFlow

__all__ = ["AutoFlow"]
