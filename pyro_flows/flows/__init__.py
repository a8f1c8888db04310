"""Published flows: factories ``name(input_dim, context_dim=0, **options)`` and the registry of their names."""

from __future__ import annotations

from .affine import affine
from .bernstein import bernstein
from .bnaf import bnaf
from .gaussianization import gaussianization
from .maf import iaf, maf
from .naf import naf
from .nice import nice
from .nsf import nsf_autoregressive, nsf_coupling
from .planar import planar
from .radial import radial
from .real_nvp import real_nvp
from .registry import FlowInfo, build, get, info, names, register, unregister
from .sospf import sospf
from .sylvester import sylvester
from .table import table
from .umnn import umnn

__all__ = [
    "FlowInfo",
    "affine",
    "bernstein",
    "bnaf",
    "build",
    "gaussianization",
    "get",
    "iaf",
    "info",
    "maf",
    "naf",
    "names",
    "nice",
    "nsf_autoregressive",
    "nsf_coupling",
    "planar",
    "radial",
    "real_nvp",
    "register",
    "sospf",
    "sylvester",
    "table",
    "umnn",
    "unregister",
]
