"""Objectives, training and the one-line fit."""

from __future__ import annotations

from .evaluate_nll import NLLEstimate, evaluate_nll
from .fit import fit
from .forward_kl import ForwardKLELBO
from .gaussian import Gaussian
from .kl_warmup_elbo import KLWarmupELBO
from .path_elbo import PathELBO, path_log_prob
from .renyi_path_elbo import DReGELBO, RenyiPathELBO
from .result import Fit
from .training import Schedule

__all__ = [
    "DReGELBO",
    "Fit",
    "ForwardKLELBO",
    "Gaussian",
    "KLWarmupELBO",
    "NLLEstimate",
    "PathELBO",
    "RenyiPathELBO",
    "Schedule",
    "evaluate_nll",
    "fit",
    "path_log_prob",
]
