"""Choosing the guide: the simplest that the posterior needs."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows.diagnostics import Diagnosis, diagnose
from pyro_flows.flows import nsf_coupling, real_nvp
from pyro_flows.guides import AutoFlow
from pyro_flows.transforms import Compose, FlowTransform

from .descent import Training
from .gaussian import LogDensity
from .noted_run import remembered

#: A Gaussian is kept from this effective share of draws on, which bounds the error of any mean by 0.1 sd, ...
GAUSSIAN_ESS = 1 / (1 + 0.1**2)
#: ... if reweighting moves no mean of a latent by more than this many sd, and no sd by more than this share.
GAUSSIAN_SHIFT = 0.03
#: Tail shape of the weights from which on their variance is infinite, and their effective share of draws erratic.
HEAVY_TAIL = 0.5
#: Draws by which a rung is judged, ...
JUDGED = 8192
#: ... and the seconds after which those that there are must do.
JUDGING = 5.0
#: Trains the guide for so many steps at most, at a share of the customary step size.
Train = Callable[[int, float], Training]


def default_flow(input_dim: int, context_dim: int = 0) -> Compose:
    """Eight affine couplings; narrow conditioners are as good in few dimensions, and twice as fast.

    With one variable affine maps make nothing but Gaussians, so there it is splines.

    Example:
        >>> len(default_flow(3).parts) > len(default_flow(1).parts)
        True
    """
    if input_dim == 1:
        return nsf_coupling(input_dim, context_dim, num_layers=3)
    return real_nvp(input_dim, context_dim, num_layers=8, hidden_dims=_hidden_dims(input_dim), log_scale_bound=6.0)


def spline_flow(input_dim: int, context_dim: int = 0) -> Compose:
    """Four spline couplings, for what affine ones cannot do.

    Example:
        >>> spline_flow(3)(torch.zeros(3)).shape
        torch.Size([3])
    """
    return nsf_coupling(input_dim, context_dim, num_layers=4, hidden_dims=_hidden_dims(input_dim))


def _hidden_dims(input_dim: int) -> tuple[int, int]:
    """Widths of the conditioners."""
    width = 32 if input_dim <= 20 else 64
    return (width, width)


def enough_ess(dim: int) -> float:
    r"""Effective share of draws below which a flow is given more capacity: :math:`e^{-0.005 D}` between 0.5 and 0.95.

    What the latents lack in accuracy adds up in the variance of the log-weights.

    Example:
        >>> enough_ess(10), enough_ess(175)
        (0.95, 0.5)
    """
    return min(0.95, max(0.5, math.exp(-0.005 * dim)))


def keeps_gaussian(guide: AutoFlow, log_density: LogDensity, record: dict[str, Any]) -> bool:
    """Whether the importance weights of the guide's Gaussian start say that it is exact.

    Args:
        guide: Set up as a Gaussian.
        log_density: Maps ``(N, D)`` to ``(N,)``.
        record: Gets ``rungs``, and ``flow`` if it is kept.
    """
    judged = judge(guide, log_density)
    shift = max(abs(judged.worst_mean_shift), abs(judged.worst_sd_ratio - 1))
    keep = judged.verdict == "good" and judged.ess_fraction >= GAUSSIAN_ESS and shift < GAUSSIAN_SHIFT
    reason = "its weights are constant: kept" if keep else "its weights vary: a flow over it"
    record.setdefault("rungs", []).append(describe_rung("gaussian", 0, judged, reason))
    if keep:
        record["flow"] = "gaussian"
    return keep


def climb_ladder(guide: AutoFlow, log_density: LogDensity, train: Train, max_steps: int, record: dict[str, Any]) -> Training:
    """Train the simplest flow that is good enough over the Gaussian of the start, or a deeper one over that.

    First come eight affine couplings, and if these leave the effective share of draws too low (:func:`enough_ess`) or the tail of
    the weights heavy, four spline couplings more, at the identity to begin with. A rung that is no better than the one before is
    undone by the training loop, which keeps the better state.

    Args:
        guide: Its whitening is the Gaussian of the start; its flow is replaced.
        log_density: Maps ``(N, D)`` to ``(N,)``.
        train: Trains the guide in place.
        max_steps: Steps in all, at most.
        record: Gets ``flow`` and ``rungs``: what was tried, how good it was, and why it went on.

    Returns:
        What was done, all rungs together.
    """
    rungs: list[dict[str, Any]] = record.setdefault("rungs", [])
    guide.set_flow(default_flow)
    record["flow"] = "nsf_coupling" if guide.latent_dim == 1 else "real_nvp"
    done = train(max_steps, 1.0)
    left = max_steps - done.steps
    ended = done.stop_reason if done.stop_reason not in ("converged", "weights constant") else ""
    if ended or left < max_steps // 10 or guide.latent_dim == 1:
        rungs.append({"flow": record["flow"], "steps": done.steps, "reason": ended or "there is nothing deeper to try"})
        return done
    more = deepen(guide, log_density, train, left, done.steps, record)
    return done if more is None else done.then(more)


def deepen(
    guide: AutoFlow, log_density: LogDensity, train: Train, max_steps: int, steps: int, record: dict[str, Any]
) -> Training | None:
    """Judge a trained flow, and train it on with four spline couplings before it where it falls short.

    Args:
        guide: Its flow may get deeper.
        log_density: Maps ``(N, D)`` to ``(N,)``.
        train: Trains the guide in place.
        max_steps: Steps at most.
        steps: Steps that the flow has had.
        record: Gets a longer ``flow`` and two more ``rungs``, or one.

    Returns:
        What was done; None if the flow was good enough.
    """
    judged = judge(guide, log_density)
    reason = _shortfall(judged, enough_ess(guide.latent_dim))
    record["rungs"].append(describe_rung(record["flow"], steps, judged, f"{reason}: deeper" if reason else "good enough: kept"))
    if not reason:
        return None
    base = guide.get_base_dist() if guide.has_own_base else None
    guide.set_flow(Deeper(guide.flow), base)
    record["flow"] += " + nsf_coupling"
    done = train(max_steps, 0.5)
    record["rungs"].append(describe_rung(record["flow"], done.steps, judge(guide, log_density), "there is nothing deeper to try"))
    return done


def _shortfall(judged: Diagnosis, limit: float) -> str:
    """What is amiss with a flow, empty if nothing is."""
    if judged.ess_fraction < limit:
        return f"effective share of draws {judged.ess_fraction:.2f}, below {limit:.2f}"
    if judged.khat >= HEAVY_TAIL and not math.isnan(judged.missing_mass):
        return f"k-hat {judged.khat:.2f}, at least {HEAVY_TAIL}"
    return ""


@dataclass(frozen=True)
class Deeper:
    """Makes the same flow with spline couplings before it. A class, for guides are pickled with what makes them.

    Args:
        trained: The flow.

    Example:
        >>> len(Deeper(default_flow(3))(3).parts)
        2
    """

    trained: FlowTransform

    def __call__(self, input_dim: int, context_dim: int = 0) -> FlowTransform:
        return Compose([spline_flow(input_dim, context_dim), copy.deepcopy(self.trained)])


@torch.no_grad()
def judge(guide: AutoFlow, log_density: LogDensity, num_draws: int = JUDGED) -> Diagnosis:
    """The verdict on a guide as it stands.

    Example:
        >>> guide = pf.AutoFlow(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), flow="affine", init_scale=1.0).setup()
        >>> guide.whitening.set(torch.zeros(1), torch.ones(1, 1))
        >>> judge(guide, lambda z: -0.5 * z.square().sum(-1)).verdict
        'good'
    """
    z, log_q = guide.distribution.rsample_and_log_prob((num_draws,))

    def evaluated() -> Tensor:
        parts, began = [], time.monotonic()
        for part in z.split(1024):
            parts.append(log_density(part))
            if time.monotonic() - began > JUDGING:
                break
        return torch.cat(parts)

    log_p = remembered("judgement", evaluated, z.device)
    count = len(log_p)
    return diagnose(log_p.double(), log_q[:count].double(), draws=z[:count].double())


def describe_rung(flow: str, steps: int, judged: Diagnosis, reason: str) -> dict[str, Any]:
    """What stands in the record about a guide that was tried.

    Example:
        >>> judged = pf.diagnostics.diagnose(torch.zeros(200), torch.zeros(200))
        >>> describe_rung("real_nvp", 100, judged, "good enough: kept")["elbo"]
        0.0
    """
    figures = {name: getattr(judged, name) for name in ("elbo", "ess_fraction", "khat")}
    return {"flow": flow, "steps": steps, **{k: v if math.isfinite(v) else str(v) for k, v in figures.items()}, "reason": reason}
