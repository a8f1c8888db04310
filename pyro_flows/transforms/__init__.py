"""Invertible transforms with tractable Jacobians: Pyro transforms, conditional transforms and modules at once."""

from __future__ import annotations

from .actnorm import ActNorm
from .affine_tril import AffineTril
from .autoregressive import Autoregressive
from .batch_norm import BatchNorm
from .block_autoregressive import BlockAutoregressive
from .cnf import CNF
from .compose import Compose
from .context_map import ContextMap
from .convex_potential import ConvexPotential
from .core import Conditioned, FlowTransform, Inverse
from .coupling import Coupling
from .elementwise import Elementwise
from .free_form import FreeForm
from .householder import Householder
from .image_coupling import ImageCoupling
from .logit_preprocessing import LogitPreprocessing
from .low_rank_affine import LowRankAffine
from .lower_cholesky_affine import LowerCholeskyAffine
from .lu_linear import LULinear
from .non_centring import NonCentring
from .on_grid import on_grid
from .orthogonal import Orthogonal
from .partial_centring import PartialCentring
from .per_pixel import InvertibleConv1x1, PerPixel
from .permutation import Permutation
from .planar import Planar
from .radial import Radial
from .regression_flow import RegressionFlow
from .residual import Residual
from .solve_costs import SolveCosts, record_costs
from .split import Split
from .squeeze import Squeeze
from .surjections import Abs, Augmentation, Dequantization, Max, Slice, Sort, Surjection
from .sylvester import Sylvester
from .torch_transform import TorchTransform
from .truncated_regression import TruncatedRegression
from .univariate import (
    Affine,
    Bernstein,
    CircularSpline,
    DeepSigmoid,
    HeavyTails,
    LogSoftExtension,
    MixtureCDF,
    MoebiusMixture,
    MonotonicNetwork,
    NonCompactProjection,
    RationalQuadraticSpline,
    Shift,
    SoftClip,
    SumOfSquares,
    UnivariateMap,
)

__all__ = [
    "CNF",
    "SolveCosts",
    "on_grid",
    "record_costs",
    "Abs",
    "ActNorm",
    "Affine",
    "AffineTril",
    "Augmentation",
    "Autoregressive",
    "BatchNorm",
    "Bernstein",
    "BlockAutoregressive",
    "CircularSpline",
    "Compose",
    "FreeForm",
    "Conditioned",
    "ContextMap",
    "ConvexPotential",
    "Coupling",
    "DeepSigmoid",
    "Dequantization",
    "Elementwise",
    "FlowTransform",
    "HeavyTails",
    "Householder",
    "ImageCoupling",
    "Inverse",
    "InvertibleConv1x1",
    "LULinear",
    "LogSoftExtension",
    "LogitPreprocessing",
    "LowRankAffine",
    "LowerCholeskyAffine",
    "Max",
    "MixtureCDF",
    "MoebiusMixture",
    "MonotonicNetwork",
    "NonCompactProjection",
    "NonCentring",
    "Orthogonal",
    "PartialCentring",
    "PerPixel",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadraticSpline",
    "RegressionFlow",
    "Residual",
    "Shift",
    "Slice",
    "SoftClip",
    "Sort",
    "Split",
    "Squeeze",
    "SumOfSquares",
    "Surjection",
    "Sylvester",
    "TorchTransform",
    "TruncatedRegression",
    "UnivariateMap",
]
