"""Invertible transforms with tractable Jacobians: Pyro transforms, conditional transforms and modules at once."""

from __future__ import annotations

from .actnorm import ActNorm
from .affine_tril import AffineTril
from .autoregressive import Autoregressive
from .block_autoregressive import BlockAutoregressive
from .compose import Compose
from .context_map import ContextMap
from .core import Conditioned, FlowTransform, Inverse
from .coupling import Coupling
from .elementwise import Elementwise
from .householder import Householder
from .low_rank_affine import LowRankAffine
from .lower_cholesky_affine import LowerCholeskyAffine
from .lu_linear import LULinear
from .non_centring import NonCentring
from .orthogonal import Orthogonal
from .partial_centring import PartialCentring
from .permutation import Permutation
from .planar import Planar
from .radial import Radial
from .regression_flow import RegressionFlow
from .sylvester import Sylvester
from .truncated_regression import TruncatedRegression
from .univariate import (
    Affine,
    Bernstein,
    DeepSigmoid,
    MixtureCDF,
    MonotonicNetwork,
    RationalQuadraticSpline,
    Shift,
    SumOfSquares,
    UnivariateMap,
)

__all__ = [
    "ActNorm",
    "Affine",
    "AffineTril",
    "Autoregressive",
    "Bernstein",
    "BlockAutoregressive",
    "Compose",
    "Conditioned",
    "ContextMap",
    "Coupling",
    "DeepSigmoid",
    "Elementwise",
    "FlowTransform",
    "Householder",
    "Inverse",
    "LULinear",
    "LowRankAffine",
    "LowerCholeskyAffine",
    "MixtureCDF",
    "MonotonicNetwork",
    "NonCentring",
    "Orthogonal",
    "PartialCentring",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadraticSpline",
    "Shift",
    "RegressionFlow",
    "SumOfSquares",
    "Sylvester",
    "TruncatedRegression",
    "UnivariateMap",
]
