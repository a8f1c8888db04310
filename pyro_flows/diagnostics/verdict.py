"""The verdict on a fit, from its importance weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from .printed import Printed
from .shift import Shift, worst_shift
from .weights import elbo, eubo, importance_ess, log_evidence, psis, usable_log_weights

Verdict = Literal["good", "reweight", "poor"]

#: A verdict of good promises means within this many posterior sd, and sds within this share, of what reweighting gives.
TOLERANCE = 0.1
#: An error of sqrt(1 / ess_fraction - 1) sd is the worst that any mean can have: this is TOLERANCE, turned round.
ESS_FRACTION_FOR_ANY_MEAN = 1 / (1 + TOLERANCE**2)
#: Where the draws were looked at coordinate by coordinate, what was not looked at may be off by 1 sd at the very worst.
ESS_FRACTION_FOR_CHECKED_DRAWS = 0.5
#: Below this spread of the log-weights, in nats, their chi2 is below TOLERANCE squared, and the Pareto fit is to noise.
NEARLY_CONSTANT_SD = TOLERANCE
#: Leaving out this share of the posterior moves a mean by TOLERANCE sd at most.
MISSING_MASS = TOLERANCE**2 / (1 + TOLERANCE**2)
#: A reweighted mean has a standard error of 1 / sqrt(ESS) sd, which is to be within TOLERANCE.
MIN_ESS = 1 / TOLERANCE**2
#: Leaving out a share e of the draws moves a mean by sqrt(e / (1 - e)) sd at most: here 0.03.
TRIVIAL_SHARE = 1e-3
#: ELBOs of several starts agree within these nats if training ended anywhere near the optimum.
AGREEMENT = 0.5
#: A Kullback-Leibler divergence from posterior to guide, in nats, above which the guide misses some of the posterior.
MISSED = 0.5
#: A start that ended further below the evidence than this could hold no more than 1 % of the posterior.
NEGLIGIBLE = math.log(100)


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Printed):
    r"""Whether to trust draws of a guide.

    ``good``: use the draws as they are. ``reweight``: resample them by their importance weights first. ``poor``:
    neither can be relied on. All is judged from where the guide puts its draws: a mode that it misses altogether is
    not seen.

    Args:
        verdict: ``"good"``, ``"reweight"`` or ``"poor"``.
        khat: Tail shape :math:`\hat k` of the weights; minus infinity if they are constant.
        khat_threshold: What it has to stay below for the weights to be reliable whatever the rest says.
        missing_mass: Share of the posterior that the tail of the weights puts where no draw came; NaN where the weights are
            nearly constant and have no tail to speak of.
        ess: Effective number of draws after reweighting.
        ess_fraction: The same as a share of the draws.
        log_weight_sd: Standard deviation of the finite log-weights, nats.
        elbo: Evidence lower bound, nats.
        elbo_mcse: Its Monte Carlo standard error, nats.
        eubo: Evidence upper bound, nats, from posterior draws; NaN without them. Less the ELBO, it is the sum of both
            Kullback-Leibler divergences, and large where the guide misses a mode that the posterior draws know.
        eubo_mcse: Its Monte Carlo standard error, nats.
        log_evidence: Log evidence, nats.
        log_evidence_mcse: Its Monte Carlo standard error, nats.
        num_draws: Number of draws.
        num_nonfinite: Draws at which a density was NaN or plus infinity; they count as weight zero.
        worst_mean_shift: Mean of the raw draws less the reweighted one, in posterior sd, where it is largest; NaN
            without draws.
        worst_sd_ratio: Sd of the raw draws over the reweighted one, where it is farthest from 1; NaN without draws.
        stop_reason: Why training ended.
        advice: What to do.

    Example:
        >>> log_q = torch.zeros(1000)
        >>> diagnose(log_q - 2.0, log_q).verdict
        'good'
    """

    verdict: Verdict
    khat: float
    khat_threshold: float
    missing_mass: float
    ess: float
    ess_fraction: float
    log_weight_sd: float
    elbo: float
    elbo_mcse: float
    eubo: float
    eubo_mcse: float
    log_evidence: float
    log_evidence_mcse: float
    num_draws: int
    num_nonfinite: int
    worst_mean_shift: float
    worst_sd_ratio: float
    stop_reason: str | None
    advice: str

    def __str__(self) -> str:
        rows = [
            ("verdict", self.verdict),
            ("k-hat", self._khat_text()),
            ("posterior not reached", self._missing_text()),
            ("effective draws", f"{self.ess:,.0f} of {self.num_draws:,} ({self.ess_fraction:.1%})"),
            ("sd of log-weights", f"{self.log_weight_sd:.3g} nats"),
            ("ELBO", f"{self.elbo:.3f} ± {self.elbo_mcse:.2g} nats"),
            ("log evidence", f"{self.log_evidence:.3f} ± {self.log_evidence_mcse:.2g} nats"),
        ]
        if not math.isnan(self.eubo):
            rows.insert(-1, ("EUBO", f"{self.eubo:.3f} ± {self.eubo_mcse:.2g} nats"))
        if not math.isnan(self.worst_mean_shift):
            rows.append(("worst shift of a mean", f"{self.worst_mean_shift:+.3f} posterior sd"))
            rows.append(("worst ratio of sds", f"{self.worst_sd_ratio:.3f}"))
        if self.num_nonfinite:
            rows.append(("draws without density", f"{self.num_nonfinite:,}"))
        if self.stop_reason is not None:
            rows.append(("training ended", self.stop_reason))
        rows.append(("advice", self.advice))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _missing_text(self) -> str:
        if math.isnan(self.missing_mass):
            return "nothing to speak of"
        return f"{self.missing_mass:.2%}" if self.missing_mass < 1 else "cannot be bounded: a tail with this k-hat has no mean"

    def _khat_text(self) -> str:
        if math.isnan(self.missing_mass):
            return f"{_khat_text(self.khat)}, a fit to noise: the weights are nearly constant"
        if self.khat < self.khat_threshold:
            return f"{_khat_text(self.khat)}, reliable below {self.khat_threshold:.2f}"
        held = self.missing_mass < MISSING_MASS
        return f"{_khat_text(self.khat)}, not reliable by itself from {self.khat_threshold:.2f} on" + (
            ", but the tail holds next to nothing" if held else ""
        )

    def as_dict(self) -> dict[str, float | int | str | None]:
        """All figures by name.

        Example:
            >>> diagnose(torch.zeros(1000), torch.zeros(1000)).as_dict()["num_draws"]
            1000
        """
        return asdict(self)


def diagnose(
    log_p: Tensor,
    log_q: Tensor,
    *,
    draws: Tensor | None = None,
    stop_reason: str | None = None,
    start_elbos: Sequence[float] | None = None,
    posterior_log_weights: Tensor | None = None,
) -> Diagnosis:
    r"""Judge draws of a guide from their log-densities.

    No figure decides alone. The weights :math:`w = p/q` are reliable if the effective draws are at least 100, so that a
    reweighted mean is known to 0.1 sd, and their tail is light: :math:`\hat k` is below its threshold, or the share of the
    posterior that the tail puts beyond all draws is below 1 % although :math:`\hat k` is not, so that no mean can be off by more
    than 0.1 sd for it; or if they are nearly constant (sd of the log-weights below 0.1 nats), where :math:`\hat k` is a fit
    to noise. Fewer than 100 draws are too few to judge by, and are called poor. Given reliable weights, the raw draws
    are good

    - if the effective share is at least 0.99: by Cauchy-Schwarz no mean can be off by more than
      :math:`|E_q f - E_p f| \le \mathrm{sd}_q(f) \sqrt{\chi^2}` with :math:`\chi^2 = S/\mathrm{ESS} - 1`, here 0.1
      sd; or
    - if the share is at least 0.5, and in every coordinate of ``draws`` the reweighted mean lies within 0.1 sd of the
      raw one and the sds within 10 %, two standard errors included.

    References:
        Vehtari et al. (2024), *Pareto smoothed importance sampling*, https://arxiv.org/abs/1507.02646;
        Yao et al. (2018), *Yes, but did it work?: evaluating variational inference*, https://arxiv.org/abs/1802.02538

    Args:
        log_p: Log joint density of the model at the draws, ``(S,)``, nats; minus infinity is a density of zero.
        log_q: Log-density of the guide at the draws, ``(S,)``, nats.
        draws: The draws ``(S, D)``, best unconstrained, to see shifts of means and spreads.
        stop_reason: Why training ended.
        start_elbos: ELBOs in nats at the end of training from several starts, this fit's included.
        posterior_log_weights: :math:`\log p - \log q` at draws of the posterior, ``(M,)``, such as those of a long MCMC run.
            Their mean is the EUBO. Where it stands more than 0.5 nats, three standard errors included, above the log evidence,
            the guide misses some of what these draws know, and the verdict is poor.

    Returns:
        Figures, verdict and advice.

    Raises:
        ValueError: If the shapes do not fit, there are fewer than two draws, or ``start_elbos`` holds no finite number.

    Example:
        >>> draws = torch.randn(10_000, 1)
        >>> log_q = -0.5 * draws.square().sum(-1)
        >>> log_p = -0.5 * (draws - 0.2).square().sum(-1)
        >>> diagnose(log_p, log_q, draws=draws).verdict
        'reweight'
    """
    log_weights, num_nonfinite = usable_log_weights(log_p, log_q, draws)
    best_start = _check_starts(start_elbos)
    num_draws = len(log_weights)
    finite = log_weights[torch.isfinite(log_weights)]
    ess = importance_ess(log_weights)
    sd = float(finite.std()) if len(finite) > 1 else math.nan
    bound, evidence = elbo(log_weights), log_evidence(log_weights)
    shift = None
    khat, threshold, missing = math.inf, math.nan, 1.0
    if num_nonfinite > TRIVIAL_SHARE * num_draws or len(finite) == 0:
        verdict, advice = _no_density(log_q, num_nonfinite, num_draws)
    if len(finite) > 0:
        smoothed = psis(log_weights)
        khat, threshold, missing = smoothed.khat, smoothed.threshold, smoothed.missing_mass
        if draws is not None:
            shift = worst_shift(draws, smoothed.log_weights)
        if num_nonfinite <= TRIVIAL_SHARE * num_draws:
            constant = sd < NEARLY_CONSTANT_SD and ess >= ESS_FRACTION_FOR_ANY_MEAN * num_draws
            if constant:
                missing = math.nan
            light = khat < threshold or missing < MISSING_MASS
            verdict, advice = _judge(constant, light, num_draws, ess, shift)
            if start_elbos is not None:
                verdict, advice = _judge_starts(verdict, advice, start_elbos, best_start, evidence)
    upper = (math.nan, math.nan) if posterior_log_weights is None else eubo(posterior_log_weights)
    if verdict != "poor" and upper[0] - evidence[0] > MISSED + 3 * math.hypot(upper[1], evidence[1]):
        verdict, advice = (
            "poor",
            (
                f"At the posterior draws given, the guide's density is too low by {upper[0] - evidence[0]:.2f} nats on average: it "
                "misses a mode or a tail that they know. Give it more capacity, or other starts."
            ),
        )
    if verdict != "good" and stop_reason in ("max_steps", "max_time", "interrupted"):
        advice += f" Training ended by {stop_reason}, before it had converged: more steps may help."
    return Diagnosis(
        verdict=verdict,
        khat=khat,
        khat_threshold=threshold,
        missing_mass=missing,
        ess=ess,
        ess_fraction=ess / num_draws,
        log_weight_sd=sd,
        elbo=bound[0],
        elbo_mcse=bound[1],
        eubo=upper[0],
        eubo_mcse=upper[1],
        log_evidence=evidence[0],
        log_evidence_mcse=evidence[1],
        num_draws=num_draws,
        num_nonfinite=num_nonfinite,
        worst_mean_shift=math.nan if shift is None else shift.mean,
        worst_sd_ratio=math.nan if shift is None else shift.sd_ratio,
        stop_reason=stop_reason,
        advice=advice,
    )


def _check_starts(start_elbos: Sequence[float] | None) -> float:
    """The best of the ELBOs of several starts."""
    finite = [float(value) for value in start_elbos or () if math.isfinite(value)]
    if start_elbos is not None and not finite:
        raise ValueError(f"start_elbos must hold at least one finite number, got {list(start_elbos)}; pass None if there are none")
    return max(finite, default=-math.inf)


def _no_density(log_q: Tensor, num_nonfinite: int, num_draws: int) -> tuple[Verdict, str]:
    bad_guide = int((~torch.isfinite(log_q)).sum())
    if bad_guide > TRIVIAL_SHARE * num_draws:
        return "poor", (
            f"The guide has no finite log-density at {bad_guide:,} of its own {num_draws:,} draws: training "
            "diverged. Fit again with "
            "a lower learning rate, in float64, or from another start."
        )
    if num_nonfinite > TRIVIAL_SHARE * num_draws:
        return "poor", (
            f"{num_nonfinite:,} of {num_draws:,} draws have no log-density (NaN or infinite): the model fails in "
            "part of its space. "
            "Mend it there, or bound its priors."
        )
    return "poor", "No draw has any posterior density: check the model, its data and the initial point."


def _judge(constant: bool, tail_reliable: bool, num_draws: int, ess: float, shift: Shift | None) -> tuple[Verdict, str]:
    if num_draws < MIN_ESS:
        return "poor", f"{num_draws} draws are too few to judge by, at least {MIN_ESS:.0f} are needed: diagnose with more."
    if not constant and ess < MIN_ESS:
        return "poor", (
            f"Reweighting leaves {ess:.0f} effective draws, at least {MIN_ESS:.0f} are needed. If these were few "
            "draws, diagnose with "
            "more; else give the guide more capacity or steps, or reparametrise the model (non-centred)."
        )
    if not constant and not tail_reliable:
        return "poor", (
            "The tail of the weights is too heavy: neither draws nor weights can be relied on. Give the guide "
            "more capacity or "
            "steps, reparametrise the model (non-centred), or check with MCMC."
        )
    ess_fraction = ess / num_draws
    any_mean = ess_fraction >= ESS_FRACTION_FOR_ANY_MEAN
    checked = ess_fraction >= ESS_FRACTION_FOR_CHECKED_DRAWS and shift is not None and shift.within(TOLERANCE)
    if any_mean or checked:
        return "good", "Use the draws as they are. A mode that the guide misses altogether would not show here."
    return "reweight", (
        "Resample by importance weights before use: fit.resample(n), fit.predict(n, resample='psis'), "
        "or fit.to_arviz(resample='psis'). The raw "
        "draws are off by more "
        "than they should be, the weights correct that."
    )


def _judge_starts(
    verdict: Verdict, advice: str, start_elbos: Sequence[float], best: float, evidence: tuple[float, float]
) -> tuple[Verdict, str]:
    """Lower a verdict by what other starts say.

    Any ELBO bounds the evidence from below, so a start above this fit's own evidence proves that this fit leaves out
    a share of the posterior of at least 1 - exp(evidence - best). A start below it may sit in a mode of its own,
    which would then hold a share of about exp(its ELBO - evidence), or may just have trained less well; its weights
    cannot tell which.
    """
    value, mcse = evidence
    margin = 3 * mcse if math.isfinite(mcse) else 0.0
    if best - value > TOLERANCE + margin:
        return "poor", (
            f"Another start reached an ELBO of {best:.2f} nats, above the evidence {value:.2f} that this fit "
            "sees: it leaves out at "
            f"least {-math.expm1(value - best):.0%} of the posterior. Keep the other start."
        )
    gaps = [best - float(start) for start in start_elbos]
    apart = max((gap for gap in gaps if AGREEMENT < gap < NEGLIGIBLE), default=0.0)
    if apart and verdict != "poor":
        return "reweight", (
            f"Starts ended up to {apart:.1f} nats apart: they found different modes, or some trained less well. "
            "Compare their draws or "
            f"train longer before relying on one of them. {advice if verdict == 'reweight' else ''}".rstrip()
        )
    return verdict, advice


def _khat_text(khat: float) -> str:
    if khat == -math.inf:
        return "none (the largest weights are all equal)"
    return "unknown (too few draws)" if khat == math.inf else f"{khat:.2f}"
