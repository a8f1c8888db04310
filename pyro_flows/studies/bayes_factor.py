"""Bayes factors from the evidences of two fits, and of a point in a larger model (Savage-Dickey)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_flows.diagnostics.printed import Printed
from pyro_flows.infer import Fit
from pyro_flows.infer import fit as fit_model
from pyro_flows.model import LogJoint
from pyro_flows.model.dependence import prior_parents
from pyro_flows.model.observations import Reading, read_observations


@dataclass(frozen=True)
class BayesFactor(Printed):
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
        ValueError: If the models do not have the same observations, or have parameters that are fitted.

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
    for name, fit in (("first", first), ("second", second)):
        _check_fit(name, fit)
    data = [_read(fit).observed for fit in (first, second)]
    if not data[0]:
        raise ValueError("the models have no observed site, so there are no data that could favour one")
    alike = data[0].keys() == data[1].keys() and all(data[0][name].same(data[1][name]) for name in data[0])
    if not alike:
        shapes = [{name: tuple(one.value.shape) for name, one in sites.items()} for sites in data]
        raise ValueError(
            f"first and second must have the same observations, which count alike, or their evidences are of different things; got "
            f"{shapes[0]} and {shapes[1]}{', with other values, masks or scales' if shapes[0] == shapes[1] else ''}"
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
    the posterior as well. So does another for the prior density, where that hangs on other latents. Where there are no others, it
    is the model's density at the point. It is the Bayes factor of a nested model whose prior of the others is the larger model's
    given :math:`\phi_0`.

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
        ValueError: If ``at`` names no latent site, has values of another shape or outside a support, plates draw minibatches, or
            the model has factors, latents that are scaled or masked, or parameters that are fitted.

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
    _check_fit("fit", fit)
    structure, reading = fit.log_joint.structure, _read(fit)
    if reading.factors or reading.weighted:
        raise ValueError(
            f"pyro.factor terms {list(reading.factors)} and latent sites {list(reading.weighted)} that are scaled or masked make a "
            f"prior that is no distribution, so that its density at a point is not known; write the model without them"
        )
    fixed = {"seed", "progress", "kwargs", "minibatches"} & set(options)
    if fixed:
        raise ValueError(f"options must not hold {sorted(fixed)}, which are set here")
    values = _checked_values(fit, at)
    whole = fit.diagnose(num_samples, seed)
    restricted = poutine.condition(fit._model, data=values)
    unseen = _unseen(fit._model, frozenset(structure.observed))

    def found(model: Callable[..., Any], exact: Callable[[], float] | None) -> tuple[float, float, list[str]]:
        """Log-evidence of a model in which the values are observed, its standard error, and verdicts."""
        if exact is not None:
            return exact(), 0.0, []
        done = fit_model(model, *fit._args, kwargs=fit._kwargs, seed=seed, progress=progress, **options)
        judged = done.diagnose(num_samples, seed)
        return judged.log_evidence, judged.log_evidence_mcse, [judged.verdict]

    everything = len(values) == len(structure.sites)
    at_point = partial(_at_point, fit, values) if everything else None
    with warnings.catch_warnings(record=True) as unread:  # where parents are not known, none is not taken for an answer
        warnings.simplefilter("always")
        parents = prior_parents(fit._model, fit._args, fit._kwargs, structure.initial)
    own = not (unread or structure.enumerated) and all(set(parents[name]) <= set(values) for name in values)
    prior_at_point: Callable[[], float] | None = None
    if own:  # the prior of the values hangs on no other latent
        prior_at_point = partial(_log_prob_of, fit, values)
    elif everything:
        prior_at_point = partial(_at_point, fit, values, unseen)
    parts = [
        found(restricted, None if at_point is None else at_point),
        found(poutine.condition(unseen, data=values), prior_at_point),
    ]
    for part, what in zip(parts, ("the model", "its prior"), strict=True):
        if not math.isfinite(part[0]):
            raise ValueError(f"at: {what} has no finite density at {dict(at)}; give values inside the supports")
    return BayesFactor(
        parts[0][0] - parts[1][0] - whole.log_evidence,
        math.hypot(parts[0][1], parts[1][1], whole.log_evidence_mcse),
        (*parts[0][2], *parts[1][2], whole.verdict),
    )


def _check_fit(name: str, fit: Any) -> None:
    if not isinstance(fit, Fit):
        raise ValueError(f"{name} must be a Fit, as pf.fit returns it, got {type(fit).__name__}")
    learnt = fit.record.get("model_parameters") or []
    if learnt:
        raise ValueError(
            f"{name}: the model has parameters {learnt} that were fitted by maximum likelihood, which is no evidence: the larger "
            f"model always gains; give them priors (pyro.sample), or hold them fixed"
        )
    if fit.log_joint.structure.subsampled:
        raise ValueError(f"plates {list(fit.log_joint.structure.subsampled)} draw minibatches; fit a model without subsampling")


def _read(fit: Fit) -> Reading:
    return read_observations(fit._model, fit._args, fit._kwargs, fit.log_joint.structure.initial)


class _Unseen(Messenger):  # type: ignore[misc]
    """Takes the likelihood of sites away."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.names:
            msg["mask"] = False


def _unseen(model: Callable[..., Any], names: frozenset[str]) -> Callable[..., Any]:
    """The model without its data: its prior."""

    def prior(*args: Any, **kwargs: Any) -> Any:
        with _Unseen(names):
            return model(*args, **kwargs)

    return prior


@torch.no_grad()
def _at_point(fit: Fit, values: Mapping[str, Tensor], model: Callable[..., Any] | None = None) -> float:
    """Log-density of a model, the fit's own if None, at values of all its latents; discrete sites are summed out."""
    structure = fit.log_joint.structure
    if not structure.enumerated:
        with poutine.block(), pyro.validation_enabled(False):
            given = poutine.condition(model or fit._model, data=dict(values))
            return float(poutine.trace(given).get_trace(*fit._args, **fit._kwargs).log_prob_sum())
    log_joint = fit.log_joint if model is None else LogJoint(model, fit._args, fit._kwargs, structure)
    latents = log_joint.latents.unconstrain(values)[None]
    return float(log_joint.full(latents)[0] - log_joint.latents.constrain(latents)[1][0])


@torch.no_grad()
def _log_prob_of(fit: Fit, values: Mapping[str, Tensor]) -> float:
    """Log-density of values under a prior that hangs on nothing else."""
    with torch.random.fork_rng(), poutine.block(), pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(fit._model, data=dict(values))).get_trace(*fit._args, **fit._kwargs)
    return float(sum(trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]).sum() for name in values))


def _checked_values(fit: Fit, at: Mapping[str, Any]) -> dict[str, Tensor]:
    sites = {site.name: site for site in fit.log_joint.structure.sites}
    unknown = [name for name in at if name not in sites] if isinstance(at, Mapping) else []
    if not isinstance(at, Mapping) or not at or unknown:
        raise ValueError(f"at must hold values by latent site, of {list(sites)}, got {unknown or at!r}")
    values = {}
    for name, given in at.items():
        site, like = sites[name], fit.log_joint.structure.initial[name]
        try:
            value = torch.as_tensor(given, dtype=like.dtype, device=like.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"at[{name!r}] must be a number or a tensor, got {given!r}") from error
        if value.dim() and value.shape != like.shape:
            raise ValueError(f"at[{name!r}] must be a number or have shape {tuple(like.shape)}, got {tuple(value.shape)}")
        values[name] = value.expand(like.shape).clone()
        if not bool(site.support.check(values[name]).all()):
            raise ValueError(f"at[{name!r}] must lie in the support {site.support}, got {value.tolist()}")
    return values
