"""Bayes factors from the evidences of two fits, and of a point in a larger model (Savage-Dickey)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.infer import Fit
from pyro_flows.infer import fit as fit_model

#: Runs of the prior from which the density of a point under it is averaged, where it hangs on other latents.
_PRIOR_RUNS = 2000


@dataclass(frozen=True)
class BayesFactor:
    r"""How much better a model predicts the data than another.

    Args:
        log_value: :math:`\log p(y | M_1) - \log p(y | M_2)`, nats: positive where the first predicts better.
        mcse: Its Monte Carlo standard error, nats.
        verdicts: Those of the fits that the evidences come from; one that is poor makes the factor worth nothing.

    Example:
        >>> print(BayesFactor(2.0, 0.01, ("good", "good")))
        The data are 7.39 times as probable under the first model (2.000 ± 0.010 nats).
    """

    log_value: float
    mcse: float
    verdicts: tuple[str, ...]

    def __str__(self) -> str:
        which = "first" if self.log_value >= 0 else "second"
        times = math.exp(min(abs(self.log_value), 700.0))
        said = f"{times:.3g}" if times < 1e4 else f"10^{abs(self.log_value) / math.log(10):.1f}"
        words = f"The data are {said} times as probable under the {which} model ({self.log_value:.3f} ± {self.mcse:.3f} nats)."
        if "poor" in self.verdicts:
            words += " A fit is poor, so that this cannot be relied on."
        return words


def bayes_factor(first: Fit, second: Fit, num_samples: int = 20_000, *, seed: int | None = 0) -> BayesFactor:
    r"""Bayes factor of two models of the same data, from the evidences of their fits.

    Evidences are those of importance sampling from the guides, :math:`\log \frac1S \sum_s p(y, \theta_s) / q(\theta_s)`, which are
    right for any guide whose weights are well behaved. They hang on the priors: a prior that is vague for want of knowledge makes
    its model lose.

    Args:
        first: A fit.
        second: Another, of the same data.
        num_samples: Draws of each guide.
        seed: Of the draws.

    Raises:
        ValueError: If the models do not have the same observations.

    Example:
        >>> def model(y, scale):
        ...     x = pyro.sample("x", dist.Normal(0.0, scale))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y = torch.tensor(3.0)
        >>> fits = [pf.fit(model, y, s, guide="affine", max_steps=300, seed=0, progress=False) for s in (3.0, 0.1)]
        >>> exact = dist.Normal(0.0, 10**0.5).log_prob(y) - dist.Normal(0.0, 1.01**0.5).log_prob(y)
        >>> abs(bayes_factor(*fits).log_value - float(exact)) < 0.02
        True
    """
    data = [fit.log_joint.structure.observed for fit in (first, second)]
    alike = data[0].keys() == data[1].keys() and all(
        data[0][name].shape == data[1][name].shape and torch.equal(data[0][name].double().cpu(), data[1][name].double().cpu())
        for name in data[0]
    )
    if not alike:
        shapes = [{name: tuple(value.shape) for name, value in sites.items()} for sites in data]
        raise ValueError(
            f"first and second must have the same observations, or their evidences are of different things; got {shapes[0]} and "
            f"{shapes[1]}{', with other values' if shapes[0] == shapes[1] else ''}"
        )
    found = [fit.diagnose(num_samples, seed) for fit in (first, second)]
    return BayesFactor(
        found[0].log_evidence - found[1].log_evidence,
        math.hypot(found[0].log_evidence_mcse, found[1].log_evidence_mcse),
        tuple(one.verdict for one in found),
    )


def savage_dickey(
    fit: Fit, at: Mapping[str, Any], *, num_samples: int = 20_000, seed: int | None = 0, progress: bool = True, **options: Any
) -> BayesFactor:
    r"""Bayes factor of the model with some latents held at values, against the model itself.

    The Savage-Dickey ratio :math:`p(\phi_0 | y) / p(\phi_0)` of posterior and prior density of latents :math:`\phi` at a point. The
    posterior density is :math:`p(\phi_0, y) / p(y)`; the numerator is the evidence of the model in which :math:`\phi` is observed
    to be :math:`\phi_0`, so one more fit, of the other latents, finds it with a standard error and a verdict, in the far tail of
    the posterior as well. Where there are no others, it is the model's density at the point. It is the Bayes factor of a nested
    model whose prior of the others is the larger model's given :math:`\phi_0`.

    References:
        Dickey (1971), *The weighted likelihood ratio, linear hypotheses on normal location parameters*;
        Verdinelli, Wasserman (1995), *Computing Bayes factors using a generalization of the Savage-Dickey density ratio*

    Args:
        fit: A fit of the larger model.
        at: Values by latent site, such as ``{"slope": 0.0}``; a number is repeated for all elements of a site.
        num_samples: Draws of each guide.
        seed: Of the draws and of the second fit.
        progress: Show progress bars.
        options: Of the second fit, as for :func:`~pyro_flows.infer.fit`.

    Raises:
        ValueError: If ``at`` names no latent site, has values of another shape or outside a support, or plates draw minibatches.

    Example:
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y = torch.tensor(2.0)
        >>> done = pf.fit(model, y, guide="affine", max_steps=300, seed=0, progress=False)
        >>> exact = dist.Normal(0.0, 1.0).log_prob(y) - dist.Normal(0.0, 2**0.5).log_prob(y)
        >>> abs(savage_dickey(done, {"x": 0.0}).log_value - float(exact)) < 0.02
        True
    """
    structure = fit.log_joint.structure
    if structure.subsampled:
        raise ValueError(f"plates {list(structure.subsampled)} draw minibatches; fit a model without subsampling")
    values = _checked_values(fit, at)
    restricted = poutine.condition(fit._model, data=values)
    prior, prior_mcse = _log_prior(restricted, fit, values)
    whole = fit.diagnose(num_samples, seed)
    verdicts: list[str] = [whole.verdict]
    if len(values) == len(structure.sites):
        with torch.no_grad():
            unconstrained = fit.log_joint.latents.unconstrain(values)
            at_point = fit.log_joint.full(unconstrained[None])[0] - fit.log_joint.latents.constrain(unconstrained[None])[1][0]
        found, mcse = float(at_point), 0.0
    else:
        done = fit_model(restricted, *fit._args, kwargs=fit._kwargs, seed=seed, progress=progress, **options)
        part = done.diagnose(num_samples, seed)
        found, mcse = part.log_evidence, part.log_evidence_mcse
        verdicts = [part.verdict, *verdicts]
    if not math.isfinite(found):
        raise ValueError(f"at: the model has no density at {dict(at)}; give values inside the supports")
    return BayesFactor(found - prior - whole.log_evidence, math.hypot(mcse, prior_mcse, whole.log_evidence_mcse), tuple(verdicts))


def _checked_values(fit: Fit, at: Mapping[str, Any]) -> dict[str, Tensor]:
    sites = {site.name: site for site in fit.log_joint.structure.sites}
    unknown = [name for name in at if name not in sites] if isinstance(at, Mapping) else []
    if not isinstance(at, Mapping) or not at or unknown:
        raise ValueError(f"at must hold values by latent site, of {list(sites)}, got {unknown or at!r}")
    values = {}
    for name, given in at.items():
        site, like = sites[name], fit.log_joint.structure.initial[name]
        value = torch.as_tensor(given, dtype=like.dtype, device=like.device)
        if value.dim() and value.shape != like.shape:
            raise ValueError(f"at[{name!r}] must be a number or have shape {tuple(like.shape)}, got {tuple(value.shape)}")
        values[name] = value.expand(like.shape).clone()
        if not bool(site.support.check(values[name]).all()):
            raise ValueError(f"at[{name!r}] must lie in the support {site.support}, got {value.tolist()}")
    return values


def _log_prior(restricted: Any, fit: Fit, values: Mapping[str, Tensor]) -> tuple[float, float]:
    """Log-density of the values under the prior, the other latents integrated out, and its standard error."""
    found: list[float] = []
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        while len(found) < _PRIOR_RUNS:
            with poutine.block():
                trace = poutine.trace(restricted).get_trace(*fit._args, **fit._kwargs)
            found.append(float(sum(_log_prob(trace.nodes[name]) for name in values)))
            if len(found) == 20 and max(found) - min(found) <= 1e-5 * (1 + abs(found[0])):
                return found[0], 0.0
    each = torch.tensor(found, dtype=torch.float64)
    mean = float(each.logsumexp(0)) - math.log(len(each))
    return mean, float((each - mean).exp().std()) / math.sqrt(len(each))


def _log_prob(site: Mapping[str, Any]) -> float:
    value = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        value = value * site["mask"]
    return float((value * site["scale"]).sum())
