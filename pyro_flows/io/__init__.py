"""Objects in files: plain data and tensors, without pickle, and nothing that runs."""

from __future__ import annotations

from .folder import read_folder, write_folder
from .known import register
from .modules import describe, how_different, restore

__all__ = ["describe", "how_different", "read_folder", "register", "restore", "write_folder"]
