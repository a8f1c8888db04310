"""Questions asked of draws and log-weights: whether to trust them, what they say, how they look."""

from __future__ import annotations

from .arviz import from_groups, psislw, summary, to_netcdf
from .bands import plot_bands
from .bits_per_dim import bits_per_dim
from .distances import Distance, c2st, energy_distance, marginal_wasserstein, mmd, sliced_wasserstein
from .inference_data import to_inference_data
from .invertibility import InverseAudit, audit_inverse
from .loo import Comparison, Loo, compare_loo, loo
from .maps import plot_globe, plot_torus
from .pit import Pit, pit
from .plots import plot_losses, plot_pairs, plot_weights
from .posterior_plots import plot_marginals, plot_predictive
from .report import Picture, Report, Section, Table
from .sensitivity import Sensitivity
from .typicality import (
    AnomalyScores,
    BatchTypicality,
    PointScores,
    anomaly_scores,
    typicality_scores,
    typicality_test,
    typicality_test_of,
)
from .uniformity import Uniformity, uniformity_test
from .verdict import Diagnosis, diagnose
from .weights import Psis, elbo, eubo, importance_ess, log_evidence, psis, psis_resample, usable_log_weights

__all__ = [
    "AnomalyScores",
    "BatchTypicality",
    "Comparison",
    "Diagnosis",
    "Distance",
    "InverseAudit",
    "Loo",
    "Picture",
    "Pit",
    "Psis",
    "Report",
    "Section",
    "Sensitivity",
    "Table",
    "Uniformity",
    "anomaly_scores",
    "audit_inverse",
    "bits_per_dim",
    "c2st",
    "compare_loo",
    "diagnose",
    "elbo",
    "energy_distance",
    "eubo",
    "from_groups",
    "importance_ess",
    "log_evidence",
    "loo",
    "marginal_wasserstein",
    "mmd",
    "pit",
    "plot_bands",
    "plot_globe",
    "plot_losses",
    "plot_marginals",
    "plot_pairs",
    "plot_predictive",
    "plot_torus",
    "plot_weights",
    "psis",
    "psis_resample",
    "psislw",
    "sliced_wasserstein",
    "summary",
    "to_inference_data",
    "to_netcdf",
    "PointScores",
    "typicality_scores",
    "typicality_test",
    "typicality_test_of",
    "uniformity_test",
    "usable_log_weights",
]
