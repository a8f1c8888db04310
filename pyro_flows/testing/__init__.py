"""The laws of a transform, for whoever writes one to check it: ``check_transform(factory)``, ``check_flow(factory)``."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .case import Case, ConformanceError, Factory, check
from .flow_laws import FLOW_LAWS
from .manifold_laws import MANIFOLD_LAWS, ManifoldCase, is_manifold
from .transform_laws import LAWS

__all__ = [
    "FLOW_LAWS",
    "LAWS",
    "MANIFOLD_LAWS",
    "Case",
    "ConformanceError",
    "ManifoldCase",
    "check_flow",
    "check_manifold_transform",
    "check_transform",
]


def check_transform(
    factory: Factory,
    *,
    input_dim: int = 2,
    context_dim: int = 0,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64),
    laws: Iterable[str] | None = None,
    seed: int = 0,
) -> None:
    """Check a transform against the laws that every transform keeps.

    Parameters are moved away from where they start first. ``torch.compile`` is run with the backend ``"eager"``, which finds graph
    breaks without compiling code.

    Args:
        factory: ``(input_dim, context_dim) -> FlowTransform``.
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        dtypes: Types to check.
        laws: Names of laws, see ``LAWS``; all if None.
        seed: Seed of everything random.

    Raises:
        ConformanceError: If a law is broken; the message names it.
        ValueError: If a law is unknown.

    Example:
        >>> from pyro_flows.transforms import AffineTril
        >>> check_transform(AffineTril, input_dim=3)
    """
    check(factory, LAWS, input_dim, context_dim, dtypes, laws, seed)


def check_flow(
    factory: Factory,
    *,
    input_dim: int = 2,
    context_dim: int = 0,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64),
    laws: Iterable[str] | None = None,
    seed: int = 0,
) -> None:
    """Check a flow: the laws of a transform, and those of a flow used in distributions, models and guides.

    Args:
        factory: ``(input_dim, context_dim) -> FlowTransform``.
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        dtypes: Types to check.
        laws: Names of laws, see ``LAWS`` and ``FLOW_LAWS``; all if None.
        seed: Seed of everything random.

    Raises:
        ConformanceError: If a law is broken; the message names it.
        ValueError: If a law is unknown.

    Example:
        >>> from pyro_flows import flows
        >>> check_flow(flows.affine, laws=["round_trip", "flow_distribution"])
    """
    check(factory, {**LAWS, **FLOW_LAWS}, input_dim, context_dim, dtypes, laws, seed)


def check_manifold_transform(
    factory: Factory,
    *,
    input_dim: int = 3,
    context_dim: int = 0,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64),
    laws: Iterable[str] | None = None,
    seed: int = 0,
) -> None:
    """Check a transform of unit vectors, of angles and numbers, or of proportions; its ``domain`` says of which.

    Points stay on the manifold, both directions undo each other, log-determinants are those of the oracle
    (:func:`~pyro_flows.manifolds.log_volume_ratio`), densities integrate to one on the circle, the sphere, the torus and the
    simplex of two dimensions, and poles, seams and antipodes are points like others; beside the laws of every transform that do not
    speak of vectors.

    Args:
        factory: ``(input_dim, context_dim) -> FlowTransform``.
        input_dim: Number of coordinates.
        context_dim: Size of the context; 0 for none.
        dtypes: Types to check.
        laws: Names of laws, see ``MANIFOLD_LAWS``; all if None.
        seed: Seed of everything random.

    Raises:
        ConformanceError: If a law is broken; the message names it.
        ValueError: If a law is unknown, or the transform is none of a manifold.

    Example:
        >>> from pyro_flows.manifolds import Moebius
        >>> check_manifold_transform(Moebius, laws=["log_det_is_that_of_the_oracle", "density_integrates_to_one"])
    """
    if not is_manifold(made := factory(input_dim, context_dim)):
        raise ValueError(
            f"factory must make a transform of a sphere, torus or simplex, got one of {made.domain}; see check_transform"
        )
    check(factory, MANIFOLD_LAWS, input_dim, context_dim, dtypes, laws, seed, ManifoldCase)
