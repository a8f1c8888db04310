"""Published flows: factories ``name(input_dim, context_dim=0, **options)`` and the registry of their names."""

from __future__ import annotations

from .affine import affine
from .bernstein import bernstein
from .bnaf import bnaf
from .cnf import augmented_cnf, cnf, sphere_cnf, torus_cnf
from .convex_potential import convex_potential
from .gaussianization import gaussianization
from .images import glow, real_nvp_image
from .maf import iaf, maf
from .manifolds import simplex, sphere, torus
from .naf import naf
from .nice import nice
from .nsf import nsf_autoregressive, nsf_coupling
from .of_data import of_counts, of_exchangeable, of_pixels, of_symmetric
from .planar import planar
from .radial import radial
from .real_nvp import real_nvp
from .registry import FlowInfo, build, get, info, names, register, unregister
from .residual import proximal_residual, residual
from .sospf import sospf
from .sylvester import sylvester
from .table import table
from .ttf import ttf
from .umnn import umnn

__all__ = [
    "FlowInfo",
    "affine",
    "augmented_cnf",
    "bernstein",
    "bnaf",
    "build",
    "cnf",
    "convex_potential",
    "gaussianization",
    "get",
    "glow",
    "iaf",
    "info",
    "maf",
    "naf",
    "names",
    "nice",
    "nsf_autoregressive",
    "nsf_coupling",
    "of_counts",
    "of_exchangeable",
    "of_pixels",
    "of_symmetric",
    "planar",
    "proximal_residual",
    "radial",
    "real_nvp",
    "real_nvp_image",
    "register",
    "residual",
    "simplex",
    "sospf",
    "sphere",
    "sphere_cnf",
    "sylvester",
    "table",
    "torus",
    "torus_cnf",
    "ttf",
    "umnn",
    "unregister",
]
