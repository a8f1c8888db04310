"""Arviz data from draws and log-densities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from .arviz import from_groups


def to_inference_data(
    posterior: Mapping[str, Tensor],
    *,
    log_p: Tensor,
    log_q: Tensor,
    log_weight: Tensor,
    log_likelihood: Mapping[str, Tensor] | None = None,
    posterior_predictive: Mapping[str, Tensor] | None = None,
    observed_data: Mapping[str, Tensor] | None = None,
    attrs: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """Assemble arviz data of one chain of independent draws.

    Args:
        posterior: Draws ``(S, site shape)`` by site.
        log_p: Log joint density of the model at the draws, ``(S,)``.
        log_q: Log-density of the guide at the draws, ``(S,)``.
        log_weight: Their log importance weights, ``(S,)``.
        log_likelihood: Pointwise log-likelihood ``(S, batch shape)`` by observed site.
        posterior_predictive: Predictive draws ``(S, site shape)`` by observed site.
        observed_data: Observations by site.
        attrs: Attributes of the posterior; what netCDF cannot hold is written as JSON.
        dims: Names of the dimensions of a site's value.
        coords: Coordinates of named dimensions.

    Returns:
        ``InferenceData`` under arviz 0.x, ``DataTree`` under 1.x, with a group ``sample_stats`` that holds ``log_p``, ``log_q`` and
        ``log_weight``.

    Raises:
        ValueError: If the draws differ in number.

    Example:
        >>> stats = {"log_p": torch.zeros(5), "log_q": torch.zeros(5), "log_weight": torch.zeros(5)}
        >>> to_inference_data({"x": torch.zeros(5, 2)}, **stats).posterior["x"].shape
        (1, 5, 2)
    """
    stats = {"log_p": log_p, "log_q": log_q, "log_weight": log_weight}
    drawn = {**posterior, **stats, **(log_likelihood or {}), **(posterior_predictive or {})}
    sizes = {name: len(value) for name, value in drawn.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"all groups need one number of draws, got {sizes}")
    observed = {name: _array(value) for name, value in (observed_data or {}).items()}
    groups = {
        "posterior": _chain(posterior),
        "log_likelihood": _chain(log_likelihood),
        "posterior_predictive": _chain(posterior_predictive),
        "sample_stats": _chain(stats),
        "observed_data": observed,
    }
    return from_groups(groups, coords=coords, dims=_fitting(dims or {}, groups), attrs=_plain(attrs or {}))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _chain(values: Mapping[str, Tensor] | None) -> dict[str, np.ndarray]:
    return {name: _array(value)[None] for name, value in (values or {}).items()}


def _fitting(dims: Mapping[str, list[str]], groups: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, list[str]]:
    """Names only where there are as many as dimensions, in every group that has the site."""
    result = {}
    for name, names in dims.items():
        ranks = {
            array.ndim - (0 if group == "observed_data" else 2)
            for group, arrays in groups.items()
            for site, array in arrays.items()
            if site == name
        }
        if ranks == {len(names)}:
            result[name] = list(names)
        elif ranks and min(ranks) < len(names):  # a pointwise log-likelihood has lost the event dimensions
            result[name] = list(names[: min(ranks)])
    return result


def _plain(attrs: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What netCDF can hold: numbers and strings; the rest as JSON."""
    plain = {}
    for name, value in attrs.items():
        keep = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        plain[name] = value if keep else json.dumps(value, default=str)
    return plain
