"""The report of a fit: what was fitted, how, whether to believe it, and what it says."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from pyro_flows.diagnostics import Diagnosis, Psis, plot_losses, plot_pairs, plot_weights, psis, usable_log_weights
from pyro_flows.diagnostics.arviz import load as load_arviz
from pyro_flows.diagnostics.numbers import numbered
from pyro_flows.diagnostics.posterior_plots import plot_marginals, plot_predictive
from pyro_flows.diagnostics.report import Picture, Report, Section, Table
from pyro_flows.guides import AutoPlateFlow
from pyro_flows.model import predictive
from pyro_flows.model.observations import read_observations

from .evaluate_nll import evaluate_nll
from .fit_checks import checked_draws, leave_one_out_of, predictive_shares

if TYPE_CHECKING:
    from .result import Fit

#: Numbers that are listed, and marginals and pairs that are drawn, at most.
_LISTED, _MARGINALS, _PAIRS = 60, 12, 3
#: Draws that predictions, leave-one-out and sensitivity take; entries of all draws together, at most.
_DRAWS, _ENTRIES = 2000, 40_000_000


def report_of(fit: Fit, num_samples: int | None, title: str | None, seed: int | None) -> Report:
    """Gather all that a report shows; see :meth:`~pyro_flows.infer.Fit.report`.

    Example:
        See :meth:`~pyro_flows.infer.Fit.report`.
    """
    name = title or f"Posterior of {getattr(fit._model, '__name__', type(fit._model).__name__)}"
    try:
        structure = fit.log_joint.structure
        if structure.subsampled:
            raise ValueError(f"plates {list(structure.subsampled)} draw minibatches")
    except ValueError as error:
        return Report(
            name,
            "no verdict",
            f"{error}.",
            [_training(fit), _settings(fit)],
        )
    width = max(structure.dim, sum(value.numel() for value in structure.observed.values()), 1)
    count = max(200, min(10_000, _ENTRIES // width)) if num_samples is None else num_samples
    latents, log_p, log_q = fit._weighted(count, seed)
    diagnosis = fit._judge(latents, log_p, log_q)
    log_weights = usable_log_weights(log_p, log_q, latents)[0]
    smoothed = psis(log_weights) if bool(torch.isfinite(log_weights).any()) else None
    numbers = _Numbers(fit, latents, smoothed)
    draws = min(count, _DRAWS)
    sections = [
        _verdict(diagnosis, log_weights),
        _model(fit),
        _training(fit),
        numbers.section(diagnosis),
        _predictions(fit, draws, seed),
        _elements(fit, seed),
        _sensitivity(fit, draws, seed),
        _settings(fit),
    ]
    return Report(name, diagnosis.verdict, diagnosis.advice, [section for section in sections if section is not None])


def _verdict(diagnosis: Diagnosis, log_weights: Tensor) -> Section:
    lines = [line.split("  ", 1) for line in str(diagnosis).splitlines()]
    parts: list[Any] = [Table(("figure", "value"), [(key, value.strip()) for key, value in lines])]
    if bool(torch.isfinite(log_weights).any()):
        words = (
            "Log importance weights of draws of the guide: a spike where the guide is the posterior, a long right tail where it "
            "leaves some of it out."
        )
        parts.append(Picture(plot_weights(log_weights), words))
    return Section("Verdict", parts)


def _model(fit: Fit) -> Section:
    structure = fit.log_joint.structure
    rows = [
        (site.name, "latent", _shape(site.shape), f"{site.support}", ", ".join(site.plates) or "none") for site in structure.sites
    ]
    rows += [(name, "deterministic", "", "", "") for name in structure.deterministic]
    rows += [(name, "summed out", "", "", "") for name in structure.enumerated]
    for name, value in structure.observed.items():
        finite = value.double()[torch.isfinite(value.double())]
        seen = f"{float(finite.min()):.4g} to {float(finite.max()):.4g}" if finite.numel() else "nothing finite"
        rows.append((name, "observed", _shape(value.shape), seen, ", ".join(structure.named_dims.get(name, [])) or "none"))
    words = f"{structure.dim} unconstrained numbers, {structure.dtype}, on {structure.device}."
    learnt = fit.record.get("model_parameters") or []
    if learnt:
        words += f" Parameters of the model that were trained too: {', '.join(map(str, learnt))}."
    return Section("Model", [words, Table(("site", "kind", "shape", "support or range", "plates"), rows)])


def _training(fit: Fit) -> Section:
    guide = type(fit.guide).__name__
    parameters = sum(parameter.numel() for parameter in fit.guide.parameters())
    record = fit.record
    words = (
        f"{guide} with the flow {record.get('flow', 'given')!r}, {parameters:,} parameters. Training ended by {fit.stop_reason}."
    )
    parts: list[Any] = [words]
    if record.get("rungs"):
        rungs = [
            (str(rung.get("flow", "")), str(rung.get("steps", "")), _number(rung.get("elbo")), str(rung.get("reason", "")))
            for rung in record["rungs"]
        ]
        parts.append(Table(("tried", "steps", "ELBO", "what became of it"), rungs))
    if any(math.isfinite(loss) for loss in fit.losses):
        parts.append(Picture(plot_losses(fit.losses), "Negative ELBO of every step, and a running median."))
    return Section("Training", parts)


class _Numbers:
    """The posterior number by number, raw and reweighted."""

    def __init__(self, fit: Fit, latents: Tensor, smoothed: Psis | None) -> None:
        values = fit._values(latents)
        columns: list[Tensor] = []
        self.names: list[str] = []
        for site, value in values.items():
            flat = value.detach().reshape(len(latents), -1).double().cpu()
            self.names += numbered(site, value.shape[1:])
            columns.append(flat)
        self.draws = torch.cat(columns, 1)
        self.weights = None if smoothed is None else smoothed.log_weights.exp()

    def section(self, diagnosis: Diagnosis) -> Section:
        usable = torch.isfinite(self.draws).all(1)
        draws = self.draws[usable]
        if len(draws) < 2:
            return Section("Posterior", ["No draw of the guide is finite."])
        raw = draws.new_full((len(draws),), 1 / len(draws))
        weights = raw if self.weights is None else self.weights[usable] / self.weights[usable].sum()
        # Weights of a poor fit rest on a few draws, and their spread means nothing.
        shown = weights if diagnosis.verdict == "reweight" else raw
        mean, sd = _moments(draws, shown)
        raw_mean, _ = _moments(draws, raw)
        true_mean, true_sd = _moments(draws, weights)
        shift = (raw_mean - true_mean) / true_sd.clamp_min(1e-300)
        edges = [_quantiles(draws, shown, level) for level in (0.05, 0.5, 0.95)]
        listed = range(min(len(self.names), _LISTED))
        rows = [
            (self.names[i], *(_number(float(value[i])) for value in (mean, sd, *edges)), f"{float(shift[i]):+.3f}") for i in listed
        ]
        how = {
            "good": "the draws as they are",
            "reweight": "draws reweighted by their smoothed importance weights",
            "poor": "the draws as they are, which cannot be relied on",
        }[diagnosis.verdict]
        words = [f"Figures are those of {how}; the last column is how far the raw mean is from the reweighted one."]
        if len(self.names) > _LISTED:
            words.append(f"The first {_LISTED} of {len(self.names):,} numbers are listed; pictures are of all.")
        order = shift.abs().argsort(descending=True, stable=True)[:_MARGINALS].sort().values.tolist()
        marginals = plot_marginals(draws[:, order], [self.names[i] for i in order], weights=weights)
        told = f"The {len(order)} numbers with the largest shift: draws of the guide, and as a line the same reweighted."
        pairs = [Picture(*pair) for pair in self._pairs(draws, weights, shift)]
        table = Table(("", "mean", "sd", "5 %", "median", "95 %", "shift, sd"), rows)
        return Section("Posterior", [*words, table, Picture(marginals, told), *pairs])

    def _pairs(self, draws: Tensor, weights: Tensor, shift: Tensor) -> list[tuple[Any, str]]:
        """Pictures of the pairs whose dependence the guide has most wrong, or of the most dependent ones."""
        few = shift.abs().argsort(descending=True, stable=True)[:100].sort().values
        few = few[draws[:, few].std(0) > 0]
        if len(few) < 2:
            return []
        some = draws[:, few]
        raw = torch.full_like(weights, 1 / len(weights))
        wrong = (_correlation(some, raw) - _correlation(some, weights)).abs() + 0.05 * _correlation(some, weights).abs()
        wrong = wrong.nan_to_num(0.0).triu(1)
        chosen = wrong.flatten().argsort(descending=True)[: min(_PAIRS, len(few) * (len(few) - 1) // 2)]
        keep = torch.multinomial(weights, 3000, replacement=True, generator=torch.Generator(device="cpu").manual_seed(0))
        pictures = []
        for place in chosen.tolist():
            i, j = int(few[place // len(few)]), int(few[place % len(few)])
            panels = {"Draws of the guide": (draws[:, i], draws[:, j])}
            reference = (draws[keep, i], draws[keep, j])
            figure = plot_pairs(
                panels, reference=reference, xlabel=self.names[i], ylabel=self.names[j], reference_label="reweighted"
            )
            pictures.append((figure, f"{self.names[i]} and {self.names[j]}: draws, and lines around the reweighted ones."))
        return pictures


def _predictions(fit: Fit, count: int, seed: int | None) -> Section | None:
    structure = fit.log_joint.structure
    if not structure.observed:
        return None
    parts: list[Any] = []
    latents = fit._latents(count, seed)[0]
    with torch.no_grad():
        values = fit.log_joint.latents.constrain(latents)[0]
    drawn = _or_words(parts, "Predictions", lambda: predictive(fit._model, values, fit._args, fit._kwargs, seed=seed))
    for name, one in read_observations(fit._model, fit._args, fit._kwargs, structure.initial).observed.items():
        if drawn is not None and name in drawn:
            kept = one.counted.reshape(one.counted.shape + (1,) * one.event_dim).expand(one.value.shape).reshape(-1)
            flat, y = drawn[name].expand(count, *one.value.shape).reshape(count, -1)[:, kept], one.value.reshape(-1)[kept]
            flat = flat[~flat.isnan().all(1)] if flat.is_floating_point() else flat  # draws at which the model raised
            every = max(1, len(y) // 20_000)
            words = f"Observations of {name!r} among predictive draws of the guide."
            picture = _or_words(parts, f"Picture of {name!r}", partial(plot_predictive, flat[:, ::every], y[::every], name=name))
            parts += [] if picture is None else [Picture(picture, words)]
    draws = _or_words(parts, "Leave-one-out predictions and cross-validation", partial(checked_draws, fit, count, seed))
    if draws is not None:
        checked = predictive_shares(fit, draws, True, None, seed)
        parts.append(f"Each observation predicted from the others: {checked.sentence}")
        if not math.isnan(checked.p_value) and checked.num_unreliable <= 0.1 * len(checked.values):
            words = "Share of the predictive distribution below each observation, less what is expected: inside the band if right."
            parts.append(Picture(checked.plot(), words))
        left_out = _or_words(parts, "Cross-validation", partial(leave_one_out_of, fit, draws))
        parts += [] if left_out is None else str(left_out).splitlines()
    return Section("Data and predictions", parts)


def _elements(fit: Fit, seed: int | None) -> Section | None:
    """Weights of the elements of a plate one by one, where the guide is one of plates and there is no global latent."""
    if not isinstance(fit.guide, AutoPlateFlow):
        return None
    plates = {site.plates[0] if site.plates else None for site in fit.log_joint.structure.sites}
    plate = next(iter(plates))
    if len(plates) != 1 or plate is None:
        return None
    parts: list[Any] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)
        found = _or_words(
            parts,
            "Element by element",
            lambda: evaluate_nll(fit._model, fit.guide, *fit._args, plate=plate, num_samples=200, kwargs=fit._kwargs),
        )
    if found is not None:
        share = found.ess_fraction
        parts.append(f"Minus log-likelihood of an element of plate {plate!r}: {found}.")
        parts.append(f"Effective of {found.num_samples} draws: median {float(share.median()):.1%}, worst {float(share.min()):.1%}.")
    return Section("Element by element", parts)


def _sensitivity(fit: Fit, count: int, seed: int | None) -> Section | None:
    structure = fit.log_joint.structure
    if not structure.observed:
        return None
    parts: list[Any] = []
    if structure.dim > 100:
        words = f"Not looked at, for {structure.dim} numbers; fit.prior_sensitivity() does."
        return Section("Sensitivity to the prior", [words])
    found = _or_words(parts, "Sensitivity to the prior", lambda: fit.prior_sensitivity(count, seed=seed))
    if found is not None:
        matters = found.matters
        if matters:
            rows = [(n, f"{found.prior[n]:.3f}", f"{found.likelihood[n]:.3f}", found.diagnosis(n)) for n in matters[:20]]
            parts.append("Numbers whose posterior changes if the prior gets a little stronger or weaker (0.05 or more).")
            parts.append(Table(("", "prior", "likelihood", ""), rows))
        else:
            parts.append("No posterior changes much if the prior gets a little stronger or weaker.")
        if not found.reliable:
            parts.append("The weights of the fit are not reliable, and neither are these figures.")
    return Section("Sensitivity to the prior", parts)


def _settings(fit: Fit) -> Section:
    hidden = {"rungs", "model_parameters"}
    rows = [(key, _plain(value)) for key, value in fit.record.items() if key not in hidden]
    versions = [
        ("pyro_flows", metadata.version("pyro_flows")),
        ("pyro", pyro.__version__),
        ("torch", torch.__version__),
        ("arviz", load_arviz().__version__),
        ("Python", platform.python_version()),
        ("system", platform.platform()),
        ("threads", str(torch.get_num_threads())),
    ]
    return Section("Settings and versions", [Table(("setting", "value"), rows), Table(("version of", ""), versions)])


def _or_words(parts: list[Any], what: str, ask: Callable[[], Any]) -> Any:
    """The answer, or None and a paragraph that says why there is none."""
    try:
        return ask()
    except (ValueError, ArithmeticError, RuntimeError) as error:
        parts.append(f"{what}: not there, for {str(error).splitlines()[0]}.")
        return None


def _shape(shape: torch.Size) -> str:
    return "number" if not shape else " x ".join(map(str, shape))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else json.dumps(value, default=str)
    return text if len(text) <= 300 else text[:297] + "..."


def _moments(draws: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mean = weights @ draws
    return mean, (weights @ (draws - mean).square()).sqrt()


def _quantiles(draws: Tensor, weights: Tensor, level: float) -> Tensor:
    order = draws.argsort(0)
    mass = weights[order].cumsum(0)
    place = (mass < level * mass[-1]).sum(0).clamp(max=len(draws) - 1)
    return draws.gather(0, order.gather(0, place[None]))[0]


def _correlation(draws: Tensor, weights: Tensor) -> Tensor:
    mean, sd = _moments(draws, weights)
    centred = (draws - mean) / sd.clamp_min(1e-300)
    return (centred * weights[:, None]).T @ centred
