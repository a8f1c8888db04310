"""Circles and tori, and products of circles and lines."""

from __future__ import annotations

from .angles import ANGLE, ProductOfCircles, check_circles, circles_of, features, support, wrap, wrapped
from .circular_layers import CircularAutoregressive, CircularCoupling
from .torus_cnf import TorusCNF
from .torus_free_form import TorusFreeForm
from .uniform import UniformTorus

__all__ = [
    "ANGLE",
    "CircularAutoregressive",
    "CircularCoupling",
    "ProductOfCircles",
    "TorusCNF",
    "TorusFreeForm",
    "UniformTorus",
    "check_circles",
    "circles_of",
    "features",
    "support",
    "wrap",
    "wrapped",
]
