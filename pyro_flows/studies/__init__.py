"""Studies that need many fits: whether a way to fit is calibrated."""

from __future__ import annotations

from .calibration import Calibration, ranks_of
from .sbc import sbc

__all__ = ["Calibration", "ranks_of", "sbc"]
