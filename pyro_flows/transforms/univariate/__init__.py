"""Monotone maps of one variable, which ``Elementwise``, ``Coupling`` and ``Autoregressive`` make into transforms."""

from __future__ import annotations

from .affine import Affine
from .base import Params, UnivariateMap
from .bernstein import Bernstein
from .circle_maps import MoebiusMixture, NonCompactProjection
from .circular_spline import CircularSpline
from .deep_sigmoid import DeepSigmoid
from .heavy_tails import HeavyTails
from .mixture_cdf import MixtureCDF
from .monotonic_network import MonotonicNetwork
from .rational_quadratic import RationalQuadraticSpline
from .shift import Shift
from .soft_clip import LogSoftExtension, SoftClip
from .sum_of_squares import SumOfSquares

__all__ = [
    "Affine",
    "Bernstein",
    "CircularSpline",
    "DeepSigmoid",
    "HeavyTails",
    "LogSoftExtension",
    "MixtureCDF",
    "MoebiusMixture",
    "MonotonicNetwork",
    "NonCompactProjection",
    "Params",
    "RationalQuadraticSpline",
    "Shift",
    "SoftClip",
    "SumOfSquares",
    "UnivariateMap",
]
