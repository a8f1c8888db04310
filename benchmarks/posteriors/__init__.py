"""The posteriors of posteriordb that have reference draws, as Pyro models."""

from __future__ import annotations

from . import others, regressions
from .core import ROOT, Posterior


def all_posteriors() -> dict[str, Posterior]:
    """By name."""
    return {posterior.name: posterior for module in (others, regressions) for posterior in module.posteriors()}


__all__ = ["ROOT", "Posterior", "all_posteriors"]
