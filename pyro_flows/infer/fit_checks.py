"""What is asked of a fit about its data and its prior: leave-one-out, predictions, sensitivity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_flows.diagnostics import Loo, Pit, Sensitivity, loo, pit, to_inference_data, usable_log_weights
from pyro_flows.diagnostics.arviz import power_scaling_sensitivity
from pyro_flows.diagnostics.sensitivity import by_number
from pyro_flows.model import predictive
from pyro_flows.model.dependence import prior_parents

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
    found = _log_likelihood(fit, latents)
    return loo(torch.cat([value.reshape(num_samples, -1) for value in found.values()], 1), log_weights)


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
    drawn = predictive(fit._model, values, fit._args, fit._kwargs, seed=seed)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for name in [site] if site is not None else likelihood:
        observed = fit.log_joint.structure.observed[name]
        draws = drawn[name].reshape(num_samples, *observed.shape)
        left_out = likelihood[name]
        left_out = left_out.reshape(left_out.shape + (1,) * (draws.dim() - left_out.dim())).expand(draws.shape)
        kept = ~torch.isnan(observed.reshape(-1).double())
        flat = [value.reshape(num_samples, -1)[:, kept] for value in (draws.double(), left_out.double())]
        columns.append((flat[0], flat[1], observed.reshape(-1)[kept].double()))
    draws, left_out, observed = (torch.cat(parts, -1) for parts in zip(*columns, strict=True))
    return pit(draws, observed, log_weights=log_weights, log_likelihood=left_out if leave_out else None, seed=seed or 0)


def power_scaled(fit: Fit, num_samples: int, seed: int | None) -> Sensitivity:
    """Sensitivity to prior and likelihood, see :meth:`~pyro_flows.infer.Fit.prior_sensitivity`.

    Raises:
        ValueError: If the model has no data, or its plates draw minibatches.

    Example:
        See :meth:`~pyro_flows.infer.Fit.prior_sensitivity`.
    """
    latents, log_weights = _weighted(fit, 10 * num_samples, seed)
    latents = latents[fit._indices(log_weights, num_samples, seed)]
    with torch.no_grad():
        likelihood = _log_likelihood(fit, latents)
        priors = fit.log_joint.log_priors(latents)
        shown = fit.log_joint.constrained(latents)
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
    return Sensitivity(prior, data_says)


def _weighted(fit: Fit, num_samples: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """Draws of the guide and their log-weights."""
    if fit.log_joint.structure.subsampled:
        raise ValueError("a model whose plates draw minibatches has other observations at every draw; fit it without subsampling")
    latents, log_p, log_q = fit._weighted(num_samples, seed)
    return latents, usable_log_weights(log_p, log_q, latents)[0]


@torch.no_grad()
def _log_likelihood(fit: Fit, latents: Tensor) -> dict[str, Tensor]:
    found = fit.log_joint.log_likelihood(latents)
    if not found:
        raise ValueError("the model has no observed site whose likelihood is known, so there is nothing to compare with its data")
    return found
