"""Studies that need many fits: whether a way to fit is calibrated, which of two models the data favour."""

from __future__ import annotations

from .bayes_factor import BayesFactor, bayes_factor, savage_dickey
from .calibration import Calibration, ranks_of
from .lc2st import LocalTest, lc2st, lc2st_of
from .sbc import sbc

__all__ = ["BayesFactor", "Calibration", "LocalTest", "bayes_factor", "lc2st", "lc2st_of", "ranks_of", "savage_dickey", "sbc"]
