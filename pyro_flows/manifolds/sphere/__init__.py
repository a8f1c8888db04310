"""Spheres: transforms, and distributions for their bases."""

from __future__ import annotations

from .angular_central_gaussian import AngularCentralGaussian
from .base import SphereTransform
from .cylinder_spline import CylinderSpline
from .exponential_map import ExponentialMap
from .geometry import SPHERE, log_area, project_to_sphere
from .moebius import Moebius
from .normalized_affine import NormalizedAffine, NormalizedLinear, NormalizedTranslation
from .rotation import Rotation
from .sphere_cnf import SphereCNF
from .sphere_free_form import SphereFreeForm
from .uniform import UniformSphere
from .von_mises_fisher import VonMisesFisher, log_normaliser

__all__ = [
    "SPHERE",
    "AngularCentralGaussian",
    "CylinderSpline",
    "ExponentialMap",
    "Moebius",
    "NormalizedAffine",
    "NormalizedLinear",
    "NormalizedTranslation",
    "Rotation",
    "SphereCNF",
    "SphereFreeForm",
    "SphereTransform",
    "UniformSphere",
    "VonMisesFisher",
    "log_area",
    "log_normaliser",
    "project_to_sphere",
]
