"""Invertible transforms with tractable Jacobians: Pyro transforms, conditional transforms and modules at once."""

from .actnorm import ActNorm
from .affine_tril import AffineTril
from .core import Compose, Conditioned, FlowTransform, Inverse
from .householder import Householder
from .lu_linear import LULinear
from .permutation import Permutation
from .planar import Planar
from .radial import Radial
from .sylvester import Sylvester

__all__ = [
    "ActNorm",
    "AffineTril",
    "Compose",
    "Conditioned",
    "FlowTransform",
    "Householder",
    "Inverse",
    "LULinear",
    "Permutation",
    "Planar",
    "Radial",
    "Sylvester",
]
