"""What is asked of a fit about its data and its prior: leave-one-out, predictions, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_flows.diagnostics import Loo, Pit, Sensitivity, loo, pit, psis, to_inference_data, usable_log_weights
from pyro_flows.diagnostics.arviz import power_scaling_sensitivity
from pyro_flows.diagnostics.sensitivity import by_number
from pyro_flows.model import predictive
from pyro_flows.model.dependence import prior_parents
from pyro_flows.model.observations import Observation, Reading, read_observations

if TYPE_CHECKING:
    from .result import Fit


def leave_one_out_of(fit: Fit, num_samples: int, seed: int | None) -> Loo:
    """Every element of every observed site left out, see :meth:`~pyro_flows.infer.Fit.loo`.

    Raises:
        ValueError: If the model has no data, or its plates draw minibatches.

    Example:
        See :meth:`~pyro_flows.infer.Fit.loo`.
    """
    latents, log_weights = _weighted(fit, num_samples, seed)
    found, seen = _log_likelihood(fit, latents), _unscaled(fit)
    columns = [value.reshape(num_samples, -1)[:, seen[name].counted.reshape(-1)] for name, value in found.items()]
    return loo(torch.cat(columns, 1), log_weights)


def predictive_shares(fit: Fit, num_samples: int, leave_out: bool, site: str | None, seed: int | None) -> Pit:
    """Probability integral transform of the observations, see :meth:`~pyro_flows.infer.Fit.pit`.

    Raises:
        ValueError: If the model has no such site, or its plates draw minibatches.

    Example:
        See :meth:`~pyro_flows.infer.Fit.pit`.
    """
    latents, log_weights = _weighted(fit, num_samples, seed)
    likelihood = _log_likelihood(fit, latents)
    if site is not None and site not in likelihood:
        raise ValueError(f"site must be an observed site of the model, one of {list(likelihood)}, got {site!r}")
    with torch.no_grad():
        values = fit.log_joint.latents.constrain(latents)[0]
    seen = _unscaled(fit)
    # Each element given the observed values of all others, on which its own distribution may hang.
    drawn = predictive(fit._model, values, fit._args, fit._kwargs, beside=True, seed=seed)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    names = [site] if site is not None else list(likelihood)
    for name in names:
        one = seen[name]
        batch = one.counted.shape
        draws = drawn[name].expand(num_samples, *one.value.shape).reshape(num_samples, *batch, -1)
        observed = one.value.reshape(*batch, -1)
        left_out = likelihood[name].reshape(num_samples, *batch, 1).expand(draws.shape)
        kept = one.counted[..., None] & ~torch.isnan(observed.double())
        columns.append((draws[:, kept].double(), left_out[:, kept].double(), observed[kept].double()))
    draws, left_out, observed = (torch.cat(parts, -1) for parts in zip(*columns, strict=True))
    found = pit(draws, observed, log_weights=log_weights, log_likelihood=left_out if leave_out else None, seed=seed or 0)
    # Components of one vector hang together, and of those that do no test of uniformity holds.
    return replace(found, independent=all(seen[name].event_dim == 0 or seen[name].value.shape[-1] == 1 for name in names))


def power_scaled(fit: Fit, num_samples: int, seed: int | None) -> Sensitivity:
    """Sensitivity to prior and likelihood, see :meth:`~pyro_flows.infer.Fit.prior_sensitivity`.

    Raises:
        ValueError: If the model has no data, or its plates draw minibatches.

    Example:
        See :meth:`~pyro_flows.infer.Fit.prior_sensitivity`.
    """
    latents, log_weights = _weighted(fit, 10 * num_samples, seed)
    clashes = {"chain", "draw"} & {*fit.log_joint.structure.initial, *fit.log_joint.structure.deterministic}
    if clashes:
        raise ValueError(f"sites {sorted(clashes)} have names of arviz's own dimensions; rename them")
    smoothed = psis(log_weights)
    latents = latents[fit._indices(log_weights, num_samples, seed)]
    seen = _read(fit).observed
    with torch.no_grad():
        likelihood = {name: value * seen[name].scale.to(value) for name, value in _log_likelihood(fit, latents).items()}
        priors = fit.log_joint.log_priors(latents)
        every = fit.log_joint.constrained(latents)
    shown = {name: value for name, value in every.items() if name not in fit.log_joint.structure.imputed}
    parents = prior_parents(fit._model, fit._args, fit._kwargs, fit.log_joint.structure.initial)
    top = {name: value.reshape(num_samples, -1).double().sum(1) for name, value in priors.items() if not parents[name]}
    nothing = torch.zeros(num_samples, dtype=torch.float64)
    data: Any = to_inference_data(
        shown,
        log_p=nothing,
        log_q=nothing,
        log_weight=nothing,
        log_likelihood=likelihood,
        log_prior={"all": torch.stack(list(top.values())).sum(0)},
    )
    prior, data_says = (by_number(power_scaling_sensitivity(data, part)) for part in ("prior", "likelihood"))
    reliable = smoothed.khat < smoothed.threshold or smoothed.missing_mass < 0.01
    return Sensitivity(prior, data_says, reliable)


def _weighted(fit: Fit, num_samples: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """Draws of the guide and their log-weights."""
    if fit.log_joint.structure.subsampled:
        raise ValueError("a model whose plates draw minibatches has other observations at every draw; fit it without subsampling")
    latents, log_p, log_q = fit._weighted(num_samples, seed)
    return latents, usable_log_weights(log_p, log_q, latents)[0]


def _read(fit: Fit) -> Reading:
    return read_observations(fit._model, fit._args, fit._kwargs, fit.log_joint.structure.initial)


def _unscaled(fit: Fit) -> Mapping[str, Observation]:
    """The observations, each of which counts once."""
    found = _read(fit).observed
    scaled = [name for name, one in found.items() if one.is_scaled]
    if scaled:
        raise ValueError(
            f"observed sites {scaled} are scaled (poutine.scale, subsampling), so that an observation counts for more or less than "
            f"itself and cannot be left out; fit without the scale"
        )
    return found


@torch.no_grad()
def _log_likelihood(fit: Fit, latents: Tensor) -> dict[str, Tensor]:
    if fit.log_joint.structure.enumerated:
        raise ValueError(
            f"sites {list(fit.log_joint.structure.enumerated)} are summed out, so that observations have no likelihood of their own"
        )
    found = fit.log_joint.log_likelihood(latents)
    if not found:
        raise ValueError("the model has no observed site, so there is nothing to compare with its data")
    return found
