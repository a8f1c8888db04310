"""Normalizing flows for Pyro: as transforms, as distributions and as automatic guides, with a verdict on the fit.

Names are imported when first used, so that ``import pyro_flows`` costs little more than ``import pyro``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        data,
        diagnostics,
        distributions,
        flows,
        guides,
        infer,
        io,
        manifolds,
        model,
        nn,
        solvers,
        studies,
        testing,
        transforms,
    )
    from .diagnostics import Diagnosis
    from .distributions import FlowDistribution
    from .guides import AmortizedFlow, AutoFlow, AutoPlateFlow
    from .infer import Fit, evaluate_nll, fit, fit_amortized, fit_density, load, save
    from .model import Simulations, SimulatorModel, simulate

__version__ = "0.1.0.dev0"

__all__ = [
    "AmortizedFlow",
    "AutoFlow",
    "AutoPlateFlow",
    "Diagnosis",
    "Fit",
    "FlowDistribution",
    "Simulations",
    "SimulatorModel",
    "__version__",
    "data",
    "diagnostics",
    "distributions",
    "evaluate_nll",
    "fit",
    "fit_amortized",
    "fit_density",
    "flows",
    "guides",
    "infer",
    "io",
    "load",
    "manifolds",
    "model",
    "nn",
    "save",
    "simulate",
    "solvers",
    "studies",
    "testing",
    "transforms",
]

_HOME = {
    "AmortizedFlow": "guides",
    "AutoFlow": "guides",
    "AutoPlateFlow": "guides",
    "Diagnosis": "diagnostics",
    "Fit": "infer",
    "FlowDistribution": "distributions",
    "Simulations": "model",
    "SimulatorModel": "model",
    "evaluate_nll": "infer",
    "fit": "infer",
    "fit_amortized": "infer",
    "fit_density": "infer",
    "load": "infer",
    "save": "infer",
    "simulate": "model",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME.get(name)
    if home is None:
        return importlib.import_module(f".{name}", __name__)
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
