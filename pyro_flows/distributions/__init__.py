"""Distributions made by flows, and their bases."""

from .flow_distribution import FlowDistribution
from .standard_normal import StandardNormal
from .student_t import StudentTBase

__all__ = ["FlowDistribution", "StandardNormal", "StudentTBase"]
