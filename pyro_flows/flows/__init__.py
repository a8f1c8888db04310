"""Published flows: factories ``name(input_dim, context_dim=0, **options)`` and the registry of their names."""

from . import affine, planar, radial, sylvester  # noqa: F401  (each registers its flows)
from .registry import FlowInfo, build, get, info, names, register, unregister

__all__ = ["FlowInfo", "build", "get", "info", "names", "register", "unregister"]
