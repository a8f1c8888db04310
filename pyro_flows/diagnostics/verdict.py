"""The verdict on a fit, from its importance weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from .weights import elbo, importance_ess, log_evidence, psis

Verdict = Literal["good", "reweight", "poor"]

#: Below this spread of the log-weights, in nats, their tail is noise and the Pareto fit to it means nothing.
CONSTANT_SD = 0.05
#: Share of draws that may have a log-density that is NaN.
NAN_SHARE = 1e-3
#: Effective draws that reweighting needs to be worth anything.
MIN_ESS = 100.0
#: A verdict of good asks for: a share of effective draws, and shifts of mean and spread under reweighting, in posterior sd.
GOOD_ESS_FRACTION = 0.5
GOOD_MEAN_SHIFT = 0.06
GOOD_SD_RATIO = 0.08
#: Without draws to look at, the bound |E_q f - E_p f| <= sd_q(f) sqrt(1 / ess_fraction - 1) has to carry the verdict alone.
GOOD_ESS_FRACTION_ALONE = 0.99


@dataclass(frozen=True)
class Diagnosis:
    r"""Whether to trust draws of a guide.

    ``good``: use the draws as they are. ``reweight``: resample them by their importance weights first
    (``fit.resample`` or ``to_arviz(resample="psis")``). ``poor``: neither can be relied on. All is judged from where the guide puts
    its draws: a mode that it misses altogether is not seen.

    Args:
        verdict: ``"good"``, ``"reweight"`` or ``"poor"``.
        khat: Tail shape of the weights.
        khat_threshold: What it should stay below.
        ess: Effective number of draws after reweighting.
        ess_fraction: The same as a share of the draws.
        log_weight_sd: Standard deviation of the log-weights in nats.
        elbo: Evidence lower bound in nats.
        elbo_mcse: Its Monte Carlo standard error.
        log_evidence: Log evidence in nats.
        log_evidence_mcse: Its Monte Carlo standard error.
        worst_mean_shift: Largest change of a mean under reweighting, in posterior sd, over the unconstrained coordinates.
        worst_sd_ratio: Standard deviation over reweighted one, where it is farthest from 1.
        num_draws: Number of draws.
        num_nonfinite: Draws whose model log-density was NaN or plus infinity; they count as weight zero.
        stop_reason: Why training ended.
        advice: What to do.

    Example:
        >>> torch.manual_seed(0).get_state().shape[0] > 0
        True
        >>> draws = torch.randn(1000, 1)
        >>> log_q = -0.5 * draws.square().sum(-1)
        >>> diagnose(log_q, log_q, draws=draws).verdict
        'good'
    """

    verdict: Verdict
    khat: float
    khat_threshold: float
    ess: float
    ess_fraction: float
    log_weight_sd: float
    elbo: float
    elbo_mcse: float
    log_evidence: float
    log_evidence_mcse: float
    worst_mean_shift: float
    worst_sd_ratio: float
    num_draws: int
    num_nonfinite: int
    stop_reason: str | None
    advice: str

    def __str__(self) -> str:
        rows = [
            ("verdict", self.verdict),
            ("k-hat", f"{self.khat:.2f}  (threshold {self.khat_threshold:.2f})"),
            ("IS-ESS", f"{self.ess:.0f} of {self.num_draws}  ({self.ess_fraction:.3f})"),
            ("sd of log-weights", f"{self.log_weight_sd:.3f} nats"),
            ("ELBO", f"{self.elbo:.3f} ± {self.elbo_mcse:.3f} nats"),
            ("log evidence", f"{self.log_evidence:.3f} ± {self.log_evidence_mcse:.3f} nats"),
            ("worst shift of a mean", f"{self.worst_mean_shift:.3f} sd"),
            ("worst ratio of sds", f"{self.worst_sd_ratio:.3f}"),
        ]
        if self.num_nonfinite:
            rows.append(("not finite", f"{self.num_nonfinite} draws"))
        if self.stop_reason:
            rows.append(("stopped", self.stop_reason))
        rows.append(("advice", self.advice))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def as_dict(self) -> dict[str, float | int | str | None]:
        """All figures by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def diagnose(log_p: Tensor, log_q: Tensor, *, draws: Tensor | None = None, stop_reason: str | None = None) -> Diagnosis:
    r"""Judge draws of a guide from their log-densities.

    No figure decides alone. The weights must be reliable: :math:`\hat k` below its threshold, or log-weights so nearly constant
    that :math:`\hat k` is a fit to noise; and enough effective draws. Then reweighting tells how far raw means and spreads are off.
    Where that is little, and most draws are effective, the raw draws are good.

    Args:
        log_p: Log joint density of the model at the draws, ``(S,)``; minus infinity is a density of zero.
        log_q: Log-density of the guide at the draws, ``(S,)``.
        draws: The draws, unconstrained, ``(S, D)``, to see shifts of means and spreads.
        stop_reason: Why training ended.

    Raises:
        ValueError: If the shapes do not fit, or ``log_q`` is not finite.

    Example:
        >>> log_q = torch.zeros(1000)
        >>> print(diagnose(log_q - 2.0, log_q).log_evidence)
        -2.0
    """
    if log_p.shape != log_q.shape or log_p.dim() != 1 or len(log_p) < 2:
        raise ValueError(f"log_p and log_q must have one shape (S,), S of at least 2, got {tuple(log_p.shape)} and {tuple(log_q.shape)}")
    if not bool(torch.isfinite(log_q).all()):
        raise ValueError("log_q must be finite at draws of the guide itself; the guide is broken")
    if draws is not None and (draws.dim() != 2 or len(draws) != len(log_p)):
        raise ValueError(f"draws must have shape ({len(log_p)}, D), got {tuple(draws.shape)}")
    log_weights = (log_p.detach().double() - log_q.detach().double()).cpu()
    invalid = torch.isnan(log_weights) | torch.isposinf(log_weights)
    num_nonfinite = int(invalid.sum())
    log_weights = torch.where(invalid, -math.inf, log_weights)
    if not bool(torch.isfinite(log_weights).any()):
        nothing = "no draw has a finite posterior density: check the model and its initial point"
        nan = math.nan
        return Diagnosis("poor", math.inf, nan, 0.0, 0.0, nan, -math.inf, nan, -math.inf, nan, nan, nan, len(log_p), num_nonfinite,
                         stop_reason, nothing)  # fmt: skip
    smoothed = psis(log_weights)
    ess = importance_ess(log_weights)
    finite = log_weights[torch.isfinite(log_weights)]
    sd = float(finite.std()) if len(finite) > 1 else math.nan
    shift, ratio = (math.nan, math.nan) if draws is None else _shifts(draws.detach().double().cpu(), smoothed.log_weights)
    verdict, advice = _judge(smoothed.khat, smoothed.threshold, ess, ess / len(log_p), sd, shift, ratio, num_nonfinite / len(log_p))
    if stop_reason in ("max_steps", "max_time", "interrupted") and verdict != "good":
        advice += f" Training ended by {stop_reason}: more steps may help."
    return Diagnosis(
        verdict,
        smoothed.khat,
        smoothed.threshold,
        ess,
        ess / len(log_p),
        sd,
        *elbo(log_weights),
        *log_evidence(log_weights),
        shift,
        ratio,
        len(log_p),
        num_nonfinite,
        stop_reason,
        advice,
    )


def _shifts(draws: Tensor, log_weights: Tensor) -> tuple[float, float]:
    """Largest shift of a mean in posterior sd, and the ratio of sds farthest from 1, raw against reweighted."""
    weights = log_weights.exp()[:, None]
    mean = (weights * draws).sum(0)
    sd = (weights * (draws - mean).square()).sum(0).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    shift = ((draws.mean(0) - mean).abs() / sd).max()
    log_ratio = (draws.std(0) / sd).log()
    return float(shift), math.exp(float(log_ratio[log_ratio.abs().argmax()]))


def _judge(
    khat: float, threshold: float, ess: float, ess_fraction: float, sd: float, shift: float, ratio: float, nan_share: float
) -> tuple[Verdict, str]:
    constant = sd < CONSTANT_SD
    if nan_share > NAN_SHARE:
        return "poor", f"{nan_share:.1%} of the draws have no log-density: the model fails in part of its space; mend it or bound its priors."
    if not (khat < threshold or constant) or ess < MIN_ESS:
        return "poor", (
            "Neither draws nor weights can be relied on. Give the guide more capacity or steps, reparametrise the model "
            "(non-centred), or check the model with MCMC."
        )
    if math.isnan(shift):
        good = ess_fraction >= GOOD_ESS_FRACTION_ALONE or constant
    else:
        good = ess_fraction >= GOOD_ESS_FRACTION and shift <= GOOD_MEAN_SHIFT and abs(ratio - 1) <= GOOD_SD_RATIO
    if good:
        return "good", "Use the draws as they are. A mode that the guide misses altogether would not show here."
    return "reweight", (
        "Resample by importance weights before use: fit.resample(n), or fit.to_arviz(resample='psis'). The raw draws are off by more "
        "than they should be."
    )
