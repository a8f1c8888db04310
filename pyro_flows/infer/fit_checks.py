"""What is asked of a fit about its data and its prior: leave-one-out, predictions, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyro_flows.diagnostics import Loo, Pit, Sensitivity, loo, pit, psis, to_inference_data, usable_log_weights
from pyro_flows.diagnostics.arviz import power_scaling_sensitivity
from pyro_flows.diagnostics.sensitivity import by_number
from pyro_flows.diagnostics.verdict import MISSING_MASS
from pyro_flows.model import predictive
from pyro_flows.model.dependence import prior_parents
from pyro_flows.model.observations import Observation, Reading, read_observations

if TYPE_CHECKING:
    from .result import Fit


class CheckedDraws(NamedTuple):
    """Draws of a guide with what observations say of them.

    Args:
        latents: The draws, unconstrained, ``(S, D)``.
        log_weights: Their log importance weights, ``(S,)``.
        likelihood: Pointwise log-likelihood ``(S, batch shape)`` by observed site.
        observed: The observed sites.

    Example:
        See :func:`checked_draws`.
    """

    latents: Tensor
    log_weights: Tensor
    likelihood: Mapping[str, Tensor]
    observed: Mapping[str, Observation]


def checked_draws(fit: Fit, num_samples: int, seed: int | None) -> CheckedDraws:
    """Draws for leave-one-out and predictive shares, which may share them.

    Raises:
        ValueError: If the model has no data, its plates draw minibatches, or an observation counts for other than itself.

    Example:
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> fit = pf.fit(model, torch.tensor(1.0), guide="affine", max_steps=5, seed=0, progress=False)
        >>> checked_draws(fit, 100, 0).likelihood["y"].shape
        torch.Size([100])
    """
    latents, log_weights = _weighted(fit, num_samples, seed)
    found = _read(fit).observed
    scaled = [name for name, one in found.items() if one.is_scaled]
    if scaled:
        raise ValueError(
            f"observed sites {scaled} are scaled (poutine.scale, subsampling), so that an observation counts for more or less than "
            f"itself and cannot be left out; fit without the scale"
        )
    return CheckedDraws(latents, log_weights, _log_likelihood(fit, latents), found)


def leave_one_out_of(fit: Fit, draws: CheckedDraws) -> Loo:
    """Every element of every observed site left out, see :meth:`~pyro_flows.infer.Fit.loo`.

    Example:
        See :meth:`~pyro_flows.infer.Fit.loo`.
    """
    columns = [value.flatten(1) if value.dim() > 1 else value[:, None] for value in draws.likelihood.values()]
    kept = [draws.observed[name].counted.reshape(-1) for name in draws.likelihood]
    return loo(torch.cat([value[:, these] for value, these in zip(columns, kept, strict=True)], 1), draws.log_weights)


def predictive_shares(fit: Fit, draws: CheckedDraws, leave_out: bool, site: str | None, seed: int | None) -> Pit:
    """Probability integral transform of the observations, see :meth:`~pyro_flows.infer.Fit.pit`.

    Raises:
        ValueError: If the model has no such site.

    Example:
        See :meth:`~pyro_flows.infer.Fit.pit`.
    """
    likelihood, seen, num_samples = draws.likelihood, draws.observed, len(draws.latents)
    if site is not None and site not in likelihood:
        raise ValueError(f"site must be an observed site of the model, one of {list(likelihood)}, got {site!r}")
    with torch.no_grad():
        values = fit.log_joint.latents.constrain(draws.latents)[0]
    # Each element given the observed values of all others, on which its own distribution may hang.
    drawn = predictive(fit._model, values, fit._args, fit._kwargs, beside=True, seed=seed)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    names = [site] if site is not None else list(likelihood)
    for name in names:
        one = seen[name]
        batch = one.counted.shape
        predicted = drawn[name].expand(num_samples, *one.value.shape).reshape(num_samples, *batch, -1)
        observed = one.value.reshape(*batch, -1)
        left_out = likelihood[name].reshape(num_samples, *batch, 1).expand(predicted.shape)
        kept = one.counted[..., None] & ~torch.isnan(observed.double())
        columns.append((predicted[:, kept].double(), left_out[:, kept].double(), observed[kept].double()))
    predicted, left_out, observed = (torch.cat(parts, -1) for parts in zip(*columns, strict=True))
    found = pit(predicted, observed, log_weights=draws.log_weights, log_likelihood=left_out if leave_out else None, seed=seed or 0)
    # Components of one vector hang together, and of those that do no test of uniformity holds.
    return replace(found, independent=all(seen[name].event_dim == 0 or seen[name].value.shape[-1] == 1 for name in names))


def power_scaled(fit: Fit, num_samples: int, seed: int | None) -> Sensitivity:
    """Sensitivity to prior and likelihood, see :meth:`~pyro_flows.infer.Fit.prior_sensitivity`.

    Raises:
        ValueError: If the model has no data, or its plates draw minibatches.

    Example:
        See :meth:`~pyro_flows.infer.Fit.prior_sensitivity`.
    """
    clashes = {"chain", "draw"} & {*fit.log_joint.structure.initial, *fit.log_joint.structure.deterministic}
    if clashes:
        raise ValueError(f"sites {sorted(clashes)} have names of arviz's own dimensions; rename them")
    latents, log_weights = _weighted(fit, 10 * num_samples, seed)
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
    nothing = torch.zeros(num_samples, dtype=torch.float64, device="cpu")
    data: Any = to_inference_data(
        shown,
        log_p=nothing,
        log_q=nothing,
        log_weight=nothing,
        log_likelihood=likelihood,
        log_prior={"all": torch.stack(list(top.values())).sum(0)},
    )
    prior, data_says = (by_number(power_scaling_sensitivity(data, part)) for part in ("prior", "likelihood"))
    reliable = smoothed.khat < smoothed.threshold or smoothed.missing_mass < MISSING_MASS
    return Sensitivity(prior, data_says, reliable)


def _weighted(fit: Fit, num_samples: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """Draws of the guide and their log-weights."""
    if fit.log_joint.structure.subsampled:
        raise ValueError("a model whose plates draw minibatches has other observations at every draw; fit it without subsampling")
    latents, log_p, log_q = fit._weighted(num_samples, seed)
    log_weights = usable_log_weights(log_p, log_q, latents)[0]
    some = torch.isfinite(log_weights)  # the others have no weight, and a model that raises there has no predictions either
    return (latents[some], log_weights[some]) if bool(some.any()) else (latents, log_weights)


def _read(fit: Fit) -> Reading:
    return read_observations(fit._model, fit._args, fit._kwargs, fit.log_joint.structure.initial)


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
