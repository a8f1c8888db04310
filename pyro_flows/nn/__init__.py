"""Networks: conditioners of transforms, and encoders of what a guide is amortised over."""

from __future__ import annotations

from .column_mlp import ColumnMLP
from .context import FirstNumbers, Standardised
from .contractive import ContractiveNetwork, LipschitzNetwork, ProximalNetwork
from .conv_net import ConvNet
from .convex import ConvexNetwork
from .convolutional import ConvEncoder
from .masked import MaskedMLP
from .missing import MissingValues
from .mlp import MLP
from .residual import ResidualNet
from .sequence import GRUEncoder
from .sets import DeepSet, SetAttention
from .tangent_mlp import TangentMLP
from .velocity import VelocityField, VelocityMLP

__all__ = [
    "MLP",
    "ColumnMLP",
    "ContractiveNetwork",
    "ConvEncoder",
    "ConvNet",
    "ConvexNetwork",
    "DeepSet",
    "FirstNumbers",
    "GRUEncoder",
    "LipschitzNetwork",
    "MaskedMLP",
    "MissingValues",
    "ProximalNetwork",
    "ResidualNet",
    "SetAttention",
    "Standardised",
    "TangentMLP",
    "VelocityField",
    "VelocityMLP",
]
