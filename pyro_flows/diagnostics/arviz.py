"""The one bridge to arviz, 0.22 … 1.x. Nothing else in the package imports it."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

#: Fewer positive weights than these leave fewer than six in the tail, which arviz 1.x cannot fit.
MIN_POSITIVE = 30
#: Log-weights closer together than this, in nats, differ by rounding.
NO_SPREAD = 1e-9
#: Nats by which a log-density varies that counts as constant.
_CONSTANT = 1e-3


@functools.cache
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


@functools.cache
def is_legacy() -> bool:
    """Whether arviz is of the 0.x series.

    Example:
        >>> isinstance(is_legacy(), bool)
        True
    """
    return int(load().__version__.split(".")[0]) < 1


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Pareto-smoothed importance sampling: smoothed log-weights that sum to one, and the tail shape :math:`\hat k`.

    arviz 0.x takes :math:`+\log w` here and 1.x takes :math:`-\log w`; both get what they want. Weights of zero stay
    zero and are left out of the fit. Where there is no tail to fit, the weights come back normalised but not
    smoothed: with :math:`\hat k = -\infty` if the largest weights are all equal (a bounded tail without spread), with
    :math:`\hat k = \infty` if fewer than 30 weights are positive or the fit fails (nothing is known of the tail).

    References:
        Vehtari et al. (2024), *Pareto smoothed importance sampling*, https://arxiv.org/abs/1507.02646

    Args:
        log_weights: Log importance weights, ``(S,)``; minus infinity is a weight of zero.

    Returns:
        Smoothed log-weights ``(S,)``, whose exponentials sum to one, and :math:`\hat k`.

    Raises:
        ValueError: If they are not one-dimensional, hold NaN or plus infinity, or are all zero.

    Example:
        >>> smoothed, khat = psislw(np.zeros(100))
        >>> khat
        -inf
    """
    weights = np.array(log_weights, dtype=np.float64)
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"log_weights must have shape (S,), got {weights.shape}")
    if np.isnan(weights).any() or np.isposinf(weights).any():
        raise ValueError("log_weights must be finite or minus infinity, got NaN or plus infinity; set such draws to -inf")
    if not np.isfinite(weights).any():
        raise ValueError("log_weights must not all be minus infinity: no draw has any posterior density")
    normalised = weights - np.logaddexp.reduce(weights)
    positive = np.isfinite(normalised)
    kept = normalised[positive]
    tail = np.sort(kept)[-_tail_length(kept.size) - 1 :]
    if float(np.ptp(tail)) < NO_SPREAD:
        return normalised, -math.inf
    if kept.size < MIN_POSITIVE:
        return normalised, math.inf
    smoothed, khat = _arviz_psislw(kept)
    if math.isnan(khat) or not np.isfinite(smoothed).all():
        return normalised, math.inf
    if smoothed[kept.argmax()] < smoothed[kept.argmin()]:
        raise RuntimeError(f"arviz {load().__version__} reversed the order of the weights: its psislw takes another sign")
    normalised[positive] = smoothed - np.logaddexp.reduce(smoothed)
    return normalised, khat


def _tail_length(size: int) -> int:
    """Number of weights that the generalised Pareto distribution is fitted to."""
    return math.ceil(min(size / 5, 3 * math.sqrt(size)))


def _arviz_psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    # weights over hundreds of nats overflow inside the fit, in terms that it then drops
    with np.errstate(all="ignore"):
        if is_legacy():
            smoothed, khat = load().psislw(log_weights)
        else:
            smoothed, khat = _array_stats().psislw(-log_weights)
    return np.asarray(smoothed, dtype=np.float64), float(khat)


def _array_stats() -> Any:
    """The array functions of arviz 1.x, which its top level does not export."""
    from arviz_stats.base import array_stats

    return array_stats


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
    if is_legacy():
        log_prior = filled.pop("log_prior", {})  # which its from_dict does not know
        data = arviz.from_dict(**filled, **options)
        if log_prior:
            data.add_groups({"log_prior": log_prior}, warn_on_custom_groups=False, **options)
    else:
        data = arviz.from_dict(filled, **options)
    posterior = data["posterior"]
    posterior.attrs.update(attrs or {})
    if not is_legacy():
        data.attrs.update(attrs or {})
    return data


def summary(data: Any, var_names: list[str] | None = None) -> Any:
    """Mean, standard deviation and interval of every quantity, as a data frame.

    Of one chain no R-hat and no effective sample size: draws of a guide are independent, so these would say nothing about the fit.
    Of several, as of :meth:`~pyro_flows.Fit.refine_mcmc`, these too.

    Args:
        data: Arviz data.
        var_names: Which quantities; all by default.

    Example:
        >>> data = from_groups({"posterior": {"x": np.arange(100.0)[None]}})
        >>> float(summary(data).loc["x", "mean"])
        49.5
    """
    kind = "stats" if data.posterior.sizes["chain"] == 1 else "all"
    return load().summary(data, var_names=var_names, kind=kind)


def power_scaling_sensitivity(data: Any, component: str) -> dict[str, np.ndarray]:
    """Power-scaling sensitivity of every quantity of the posterior; zero for a component that is the same at all draws.

    Args:
        data: Arviz data with groups ``log_likelihood`` and ``log_prior``.
        component: ``"prior"`` or ``"likelihood"``.

    Returns:
        A value for each entry of each quantity, by name.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(1, 1000))
        >>> groups = {"posterior": {"x": draws}, "log_prior": {"x": -draws**2 / 2}, "log_likelihood": {"y": 0 * draws[..., None]}}
        >>> found = power_scaling_sensitivity(from_groups(groups), "prior")["x"]
        >>> 0.1 < float(found) < 1.0
        True
    """
    total: Any = 0.0
    for part in getattr(data, f"log_{component}").data_vars.values():
        total = total + part.sum([dim for dim in part.dims if dim not in ("chain", "draw")])
    if float(total.max() - total.min()) < _CONSTANT:
        # Ties, of which arviz 1 makes errors or warnings; powers near 1 of what is constant change nothing.
        posterior = data.posterior.data_vars
        return {str(name): np.zeros(value.shape[2:]) for name, value in posterior.items()}
    with np.errstate(all="ignore"):
        found = load().psens(data, component=component) if is_legacy() else load().psense(data, group=component)
    return {str(name): np.asarray(value.values, dtype=np.float64) for name, value in found.data_vars.items()}


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
