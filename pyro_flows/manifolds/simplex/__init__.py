"""Simplices: calibration of probabilities, and isometric log-ratio coordinates."""

from __future__ import annotations

from .calibration import Calibration, GeneralizedCalibration
from .geometry import SIMPLEX, project_to_simplex
from .isometric_log_ratio import IsometricLogRatio

__all__ = ["SIMPLEX", "Calibration", "GeneralizedCalibration", "IsometricLogRatio", "project_to_simplex"]
