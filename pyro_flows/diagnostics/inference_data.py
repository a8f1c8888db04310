"""Arviz data from draws and log-densities."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arviz import from_groups


def to_inference_data(
    posterior: Mapping[str, Tensor],
    *,
    log_p: Tensor,
    log_q: Tensor,
    log_weight: Tensor,
    log_likelihood: Mapping[str, Tensor] | None = None,
    log_prior: Mapping[str, Tensor] | None = None,
    posterior_predictive: Mapping[str, Tensor] | None = None,
    observed_data: Mapping[str, Tensor] | None = None,
    attrs: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """Assemble arviz data of one chain of independent draws.

    Args:
        posterior: Draws ``(S, site shape)`` by site.
        log_p: Log joint density of the model at the draws, ``(S,)``, nats.
        log_q: Log-density of the guide at the draws, ``(S,)``, nats.
        log_weight: Their log importance weights, ``(S,)``, nats.
        log_likelihood: Pointwise log-likelihood ``(S, batch shape)`` by observed site.
        log_prior: Log prior density ``(S,)``, in one or more parts.
        posterior_predictive: Predictive draws ``(S, site shape)`` by observed site.
        observed_data: Observations ``(site shape)`` by site.
        attrs: Attributes of the posterior; what netCDF cannot hold is written as JSON.
        dims: Names of the dimensions of a site's value, after the draws. A pointwise log-likelihood, which has lost
            the event dimensions, takes the first of them.
        coords: Coordinates of named dimensions.

    Returns:
        ``InferenceData`` under arviz 0.x, ``DataTree`` under 1.x, with a group ``sample_stats`` that holds ``log_p``,
        ``log_q`` and ``log_weight``.

    Raises:
        ValueError: If there is no site, the draws differ in number, a site's name holds ``/``, which netCDF reads as a
            folder, or the name of a dimension is that of a site.

    Example:
        >>> stats = {"log_p": torch.zeros(5), "log_q": torch.zeros(5), "log_weight": torch.zeros(5)}
        >>> to_inference_data({"x": torch.zeros(5, 2)}, **stats).posterior["x"].shape
        (1, 5, 2)
    """
    if not posterior:
        raise ValueError("posterior must hold the draws of at least one site, got none")
    drawn: dict[str, Mapping[str, Tensor]] = {
        "posterior": posterior,
        "sample_stats": {"log_p": log_p, "log_q": log_q, "log_weight": log_weight},
        "log_likelihood": log_likelihood or {},
        "log_prior": log_prior or {},
        "posterior_predictive": posterior_predictive or {},
    }
    _check_draws(drawn)
    groups = {group: {name: _array(value)[None] for name, value in sites.items()} for group, sites in drawn.items()}
    groups["observed_data"] = {name: _array(value) for name, value in (observed_data or {}).items()}
    _check_names(groups, dims or {})
    return from_groups(groups, coords=coords, dims=_named(groups, dims or {}), attrs=_plain(attrs or {}))


def _check_draws(drawn: Mapping[str, Mapping[str, Tensor]]) -> None:
    for group, sites in drawn.items():
        for name, value in sites.items():
            if value.dim() == 0:
                raise ValueError(f"{group} of {name!r} must have shape (S, *), got a single number")
    sizes = {f"{group} of {name!r}": len(value) for group, sites in drawn.items() for name, value in sites.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"all must have the same number of draws as their first dimension, got {sizes}")


def _check_names(groups: Mapping[str, Mapping[str, np.ndarray]], dims: Mapping[str, list[str]]) -> None:
    sites = {name for arrays in groups.values() for name in arrays}
    wrong = sorted(name for name in sites if "/" in name)
    if wrong:
        raise ValueError(f"names of sites must not hold '/', which netCDF reads as a folder, got {wrong}; rename them")
    clashes = sorted({label for name, labels in dims.items() if name in sites for label in labels} & sites)
    if clashes:
        raise ValueError(f"a dimension must not have the name of a site, got {clashes}; pass other dims, or rename")


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def _named(groups: Mapping[str, Mapping[str, np.ndarray]], dims: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """As many names as every group that has the site can use; arviz numbers the dimensions that remain."""
    result = {}
    for name, labels in dims.items():
        ranks = [arrays[name].ndim - (0 if group == "observed_data" else 2) for group, arrays in groups.items() if name in arrays]
        if ranks:
            result[name] = list(labels[: min(ranks)])
    return result


def _plain(attrs: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What netCDF can hold: numbers and strings; the rest as JSON."""
    return {str(name): _plain_value(value) for name, value in attrs.items()}


def _plain_value(value: Any) -> str | int | float:
    if isinstance(value, Tensor):
        value = value.tolist()
    elif isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, (str, float)):
        return value
    return json.dumps(_without_nan(value), default=str)


def _without_nan(value: Any) -> Any:
    """The same with NaN and infinities as strings, which JSON has no numbers for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
