"""Invertible transforms with tractable Jacobians: Pyro transforms, conditional transforms and modules at once."""

from __future__ import annotations

from .actnorm import ActNorm
from .affine_tril import AffineTril
from .autoregressive import Autoregressive
from .compose import Compose
from .core import Conditioned, FlowTransform, Inverse
from .coupling import Coupling
from .elementwise import Elementwise
from .householder import Householder
from .leading_context import LeadingContext
from .lower_cholesky_affine import LowerCholeskyAffine
from .lu_linear import LULinear
from .non_centring import NonCentring
from .partial_centring import PartialCentring
from .permutation import Permutation
from .planar import Planar
from .radial import Radial
from .regression_flow import RegressionFlow
from .sylvester import Sylvester
from .truncated_regression import TruncatedRegression
from .univariate import Affine, RationalQuadraticSpline, Shift, UnivariateMap

__all__ = [
    "ActNorm",
    "Affine",
    "AffineTril",
    "Autoregressive",
    "Compose",
    "Conditioned",
    "Coupling",
    "Elementwise",
    "FlowTransform",
    "Householder",
    "Inverse",
    "LULinear",
    "LeadingContext",
    "LowerCholeskyAffine",
    "NonCentring",
    "PartialCentring",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadraticSpline",
    "Shift",
    "RegressionFlow",
    "Sylvester",
    "TruncatedRegression",
    "UnivariateMap",
]
