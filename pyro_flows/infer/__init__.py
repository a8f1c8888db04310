"""Objectives, training and the one-line fit."""

from __future__ import annotations

from .fit import fit
from .gaussian import Gaussian
from .path_elbo import PathELBO, path_log_prob
from .result import Fit
from .training import Schedule

__all__ = ["Fit", "Gaussian", "PathELBO", "Schedule", "fit", "path_log_prob"]
