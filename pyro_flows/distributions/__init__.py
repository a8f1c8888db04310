"""Distributions made by flows, and their bases."""

from __future__ import annotations

from .flow_distribution import FlowDistribution
from .flow_mixture import FlowMixture
from .gaussian_mixture import GaussianMixture
from .mixture import MixtureBase
from .random_module import random_module
from .sphere_mixture import sphere_mixture
from .standard_normal import StandardNormal
from .student_t import StudentTBase

__all__ = [
    "FlowDistribution",
    "FlowMixture",
    "GaussianMixture",
    "MixtureBase",
    "StandardNormal",
    "StudentTBase",
    "random_module",
    "sphere_mixture",
]
