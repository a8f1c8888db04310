"""The one bridge to arviz, 0.22 … 1.x. Nothing else in the package imports it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def load() -> ModuleType:
    """Import arviz, without the announcement that 0.23.4 makes once a day.

    Example:
        >>> load().__name__
        'arviz'
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning)
        import arviz
    return arviz


def is_legacy() -> bool:
    """Whether arviz is of the 0.x series.

    Example:
        >>> isinstance(is_legacy(), bool)
        True
    """
    return int(load().__version__.split(".")[0]) < 1


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Pareto-smoothed importance sampling: smoothed log-weights that sum to one, and the tail shape :math:`\hat k`.

    arviz 0.x takes :math:`+\log w` here and 1.x takes :math:`-\log w`; both get what they want. Where the finite weights are
    constant, or fewer than 20, there is no tail to fit: the weights come back normalised, with :math:`\hat k` of minus infinity or
    of infinity respectively.

    References:
        Vehtari et al. (2024), *Pareto smoothed importance sampling*, https://arxiv.org/abs/1507.02646

    Args:
        log_weights: Log importance weights, ``(S,)``; minus infinity is a weight of zero.

    Raises:
        ValueError: If they are not one-dimensional, hold NaN or plus infinity, or are all zero.

    Example:
        >>> smoothed, khat = psislw(np.zeros(100))
        >>> khat
        -inf
    """
    weights = np.asarray(log_weights, dtype=np.float64)
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"log_weights must have shape (S,), got {weights.shape}")
    if np.isnan(weights).any() or np.isposinf(weights).any():
        raise ValueError("log_weights must be finite or minus infinity; they hold NaN or plus infinity")
    finite = np.isfinite(weights)
    if not finite.any():
        raise ValueError("log_weights are all minus infinity: no draw has any posterior density")
    normalised = weights - np.logaddexp.reduce(weights)
    kept = normalised[finite]
    if kept.size < 20:
        return normalised, math.inf
    if float(np.ptp(kept)) < 1e-9:
        return normalised, -math.inf
    smoothed, khat = _arviz_psislw(kept)
    result = np.full_like(normalised, -np.inf)
    result[finite] = smoothed - np.logaddexp.reduce(smoothed)
    return result, khat


def _arviz_psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    arviz = load()
    if is_legacy():
        smoothed, khat = arviz.psislw(log_weights)
        return np.asarray(smoothed), float(khat)
    from arviz_stats.base import array_stats

    smoothed, khat = array_stats.psislw(-log_weights, r_eff=1.0)
    return np.asarray(smoothed), float(khat)


def from_groups(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    *,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Arviz data from arrays: ``InferenceData`` under arviz 0.x, ``DataTree`` under 1.x.

    Args:
        groups: Arrays by group and name; ``(chain, draw, *)`` but in ``observed_data`` and ``constant_data``.
        coords: Coordinates of named dimensions.
        dims: Names of the dimensions of each array, after chain and draw.
        attrs: Attributes of the posterior group and, under 1.x, of the root.

    Example:
        >>> data = from_groups({"posterior": {"x": np.zeros((1, 5))}})
        >>> data.posterior["x"].shape
        (1, 5)
    """
    arviz = load()
    filled = {name: dict(arrays) for name, arrays in groups.items() if arrays}
    options = {"coords": dict(coords or {}), "dims": dict(dims or {})}
    data = arviz.from_dict(**filled, **options) if is_legacy() else arviz.from_dict(filled, **options)
    posterior = data["posterior"]
    posterior.attrs.update(attrs or {})
    if not is_legacy():
        data.attrs.update(attrs or {})
    return data


def summary(data: Any, var_names: list[str] | None = None) -> Any:
    """Mean, standard deviation and interval of every quantity, as a data frame.

    No R-hat and no effective sample size: draws of a guide are independent, so these would say nothing about the fit.

    Args:
        data: Arviz data.
        var_names: Which quantities; all by default.

    Example:
        >>> data = from_groups({"posterior": {"x": np.arange(100.0)[None]}})
        >>> float(summary(data).loc["x", "mean"])
        49.5
    """
    return load().summary(data, var_names=var_names, kind="stats")


def to_netcdf(data: Any, path: str | Path) -> Path:
    """Write arviz data to a netCDF file.

    Args:
        data: Arviz data.
        path: The file.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> to_netcdf(from_groups({"posterior": {"x": np.zeros((1, 5))}}), Path(folder) / "x.nc").exists()
        True
    """
    data.to_netcdf(str(path), engine="h5netcdf")
    return Path(path)
