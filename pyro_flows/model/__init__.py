"""Reading a Pyro model: its sites, and its log joint density as one function of a flat vector."""

from __future__ import annotations

from .initial import initial_point, prior_points
from .latents import FlatLatents
from .log_joint import LogJoint
from .predict import predictive
from .simulate import Simulations, simulate
from .simulator import SimulatorModel
from .structure import LatentSite, ModelStructure, read_model

__all__ = [
    "FlatLatents",
    "LatentSite",
    "LogJoint",
    "ModelStructure",
    "SimulatorModel",
    "Simulations",
    "initial_point",
    "predictive",
    "prior_points",
    "read_model",
    "simulate",
]
