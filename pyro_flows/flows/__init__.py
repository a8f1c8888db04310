"""Published flows: factories ``name(input_dim, context_dim=0, **options)`` and the registry of their names."""

from __future__ import annotations

from .affine import affine
from .maf import iaf, maf
from .nice import nice
from .nsf import nsf_autoregressive, nsf_coupling
from .planar import planar
from .radial import radial
from .real_nvp import real_nvp
from .registry import FlowInfo, build, get, info, names, register, unregister
from .sylvester import sylvester

__all__ = [
    "FlowInfo",
    "affine",
    "build",
    "get",
    "iaf",
    "info",
    "maf",
    "names",
    "nice",
    "nsf_autoregressive",
    "nsf_coupling",
    "planar",
    "radial",
    "real_nvp",
    "register",
    "sylvester",
    "unregister",
]
