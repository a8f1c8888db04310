"""What may stand in a file by name: our classes, those that a user registers, and some functions and distributions of torch."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import distributions as td
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_flows.nn.recorded import Recorded

_T = TypeVar("_T", bound=type)
_ROOMS = ("nn", "transforms", "manifolds", "distributions", "flows", "guides")
_registered: dict[str, type] = {}

#: Functions, mostly activations, by name.
FUNCTIONS: dict[str, Any] = {
    **{name: getattr(F, name) for name in ("silu", "relu", "gelu", "elu", "softplus", "leaky_relu", "mish", "selu")},
    **{name: getattr(torch, name) for name in ("tanh", "sigmoid", "sin", "erf")},
}
#: Distributions of torch, by name, with the attributes that make them.
DISTRIBUTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "Normal": (td.Normal, ("loc", "scale")),
    "Laplace": (td.Laplace, ("loc", "scale")),
    "Cauchy": (td.Cauchy, ("loc", "scale")),
    "StudentT": (td.StudentT, ("df", "loc", "scale")),
    "Uniform": (td.Uniform, ("low", "high")),
    "Beta": (td.Beta, ("concentration1", "concentration0")),
    "Gamma": (td.Gamma, ("concentration", "rate")),
    "Dirichlet": (td.Dirichlet, ("concentration",)),
    "MultivariateNormal": (td.MultivariateNormal, ("loc", "scale_tril")),
    "LowRankMultivariateNormal": (td.LowRankMultivariateNormal, ("loc", "cov_factor", "cov_diag")),
}
#: Constraints without parameters, by name.
CONSTRAINTS = {
    name: getattr(constraints, name)
    for name in (
        "real", "real_vector", "positive", "nonnegative", "unit_interval", "simplex", "lower_cholesky", "corr_cholesky",
        "positive_definite",
    )
}  # fmt: skip
#: Transforms of torch without parameters, by name.
TRANSFORMS = {
    name: getattr(td.transforms, name)
    for name in ("ExpTransform", "SigmoidTransform", "TanhTransform", "SoftplusTransform", "StickBreakingTransform")
}


def register(cls: _T) -> _T:
    """Make a class of one's own known to files, by its name; a decorator.

    It must be a :class:`~pyro_flows.transforms.FlowTransform`, a univariate map, a distribution or another class that notes the
    arguments it is made with. Both the program that saves and the one that loads register it.

    Raises:
        ValueError: If it is none of these, or its name is taken.

    Example:
        >>> @register
        ... class DocShift(pf.transforms.FlowTransform):
        ...     pass
        >>> "DocShift" in classes()
        True
    """
    if not (isinstance(cls, type) and issubclass(cls, Recorded)):
        raise ValueError(f"cls must be a class of a transform, univariate map, network or distribution of ours, got {cls!r}")
    taken = classes().get(cls.__name__)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"there is another class {cls.__name__!r}, of {taken.__module__}; choose another name")
    _registered[cls.__name__] = cls
    return cls


def classes() -> dict[str, type]:
    """All classes that may stand in a file, by name.

    Example:
        >>> classes()["Coupling"].__name__
        'Coupling'
    """
    for room in _ROOMS:
        importlib.import_module(f"pyro_flows.{room}")
    found: dict[str, type] = {}
    waiting: list[type] = [Recorded]
    while waiting:
        below: list[type] = waiting.pop().__subclasses__()
        waiting += below
        found.update({cls.__name__: cls for cls in below if cls.__module__.startswith("pyro_flows.")})
    return {**found, **_registered}
