"""Monotone maps of one variable, which ``Elementwise``, ``Coupling`` and ``Autoregressive`` make into transforms."""

from __future__ import annotations

from .affine import Affine
from .base import Params, UnivariateMap
from .rational_quadratic import RationalQuadraticSpline
from .shift import Shift

__all__ = ["Affine", "Params", "RationalQuadraticSpline", "Shift", "UnivariateMap"]
