"""Spheres, tori and simplices: an oracle of volume ratios, transforms, and distributions for their bases."""

from __future__ import annotations

from .simplex import Calibration, GeneralizedCalibration, IsometricLogRatio, project_to_simplex
from .sphere import (
    AngularCentralGaussian,
    CylinderSpline,
    ExponentialMap,
    Moebius,
    NormalizedAffine,
    NormalizedLinear,
    NormalizedTranslation,
    Rotation,
    SphereCNF,
    SphereFreeForm,
    SphereTransform,
    UniformSphere,
    VonMisesFisher,
    project_to_sphere,
)
from .torus import CircularAutoregressive, CircularCoupling, TorusCNF, TorusFreeForm, UniformTorus
from .volume_ratio import log_volume_ratio

__all__ = [
    "AngularCentralGaussian",
    "Calibration",
    "CircularAutoregressive",
    "CircularCoupling",
    "CylinderSpline",
    "ExponentialMap",
    "GeneralizedCalibration",
    "IsometricLogRatio",
    "Moebius",
    "NormalizedAffine",
    "NormalizedLinear",
    "NormalizedTranslation",
    "Rotation",
    "SphereCNF",
    "SphereFreeForm",
    "SphereTransform",
    "TorusCNF",
    "TorusFreeForm",
    "UniformSphere",
    "UniformTorus",
    "VonMisesFisher",
    "log_volume_ratio",
    "project_to_simplex",
    "project_to_sphere",
]
