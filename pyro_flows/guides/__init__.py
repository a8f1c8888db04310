"""Automatic guides built on normalizing flows."""

from .auto_flow import AutoFlow

__all__ = ["AutoFlow"]
