"""Objectives, training and the one-line fit."""

from __future__ import annotations

from .amortized import AmortizedFit, fit_amortized
from .checkpoint import Checkpoint
from .checkpoint_folder import CheckpointFolder
from .descent import Schedule
from .distributed import Distributed
from .evaluate_nll import NLLEstimate, evaluate_nll
from .fit import fit
from .fit_density import DensityFit, fit_density
from .flow_matching import flow_matching_loss
from .forward_kl import ForwardKLELBO
from .free_form import free_form_loss
from .full_size import FullSize
from .gaussian import Gaussian
from .joint_optim import JointOptim
from .kl_warmup_elbo import KLWarmupELBO
from .path_elbo import PathELBO
from .renyi_path_elbo import DReGELBO, RenyiPathELBO
from .result import Fit
from .saved import load, save
from .truncated_proposals import fit_truncated

__all__ = [
    "AmortizedFit",
    "Checkpoint",
    "CheckpointFolder",
    "DReGELBO",
    "DensityFit",
    "Distributed",
    "Fit",
    "ForwardKLELBO",
    "FullSize",
    "Gaussian",
    "JointOptim",
    "KLWarmupELBO",
    "NLLEstimate",
    "PathELBO",
    "RenyiPathELBO",
    "Schedule",
    "evaluate_nll",
    "fit",
    "fit_amortized",
    "fit_density",
    "fit_truncated",
    "flow_matching_loss",
    "free_form_loss",
    "load",
    "save",
]
