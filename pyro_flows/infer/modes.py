"""Modes, and those among them that a guide misses: the one failure that its own draws cannot show."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows.diagnostics import usable_log_weights
from pyro_flows.guides import AutoFlow
from pyro_flows.model import LogJoint, prior_points

from .gaussian import Density, Gaussian, gaussian_log_weights
from .laplace import laplace

#: Log-weight at a mode, in nats above the log evidence, from which on the guide is taken to be absent there.
ABSENT = 5.0
#: Share of the posterior below which a mode does not matter.
NEGLIGIBLE_MASS = 0.01
#: Depth in nats of the valley between two modes.
BARRIER = 3.0
#: Root mean square distance, in widths of a mode, below which the ends of two climbs are one mode.
SAME = 0.5


def climb_together(density: Density, points: Tensor, num_steps: int = 80, lr: float = 0.1, deadline: float = math.inf) -> Tensor:
    """Let many points climb to modes at once, each coordinate with a step size of its own (torch's Rprop).

    Args:
        density: The log joint density.
        points: Where they begin, ``(N, D)``, in coordinates where the posterior is of order one.
        num_steps: Steps.
        lr: First step.
        deadline: Moment of the monotonic clock at which to stop climbing.

    Returns:
        Where they end, ``(N, D)``; those at which the density or its gradient ceased to be finite are left out.

    Example:
        >>> density = Density(lambda z: -0.5 * (z.abs() - 3).square().sum(-1), torch.zeros(1))
        >>> climb_together(density, torch.tensor([[-1.0], [2.0]]).double()).round().tolist()
        [[-3.0], [3.0]]
    """
    at = points.clone()
    optimizer = torch.optim.Rprop([at], lr=lr, step_sizes=(1e-8, 5.0))
    alive = torch.ones(len(at), dtype=torch.bool, device="cpu")
    for _ in range(num_steps):
        if time.monotonic() > deadline:
            break
        value, gradient = density.with_gradient(at)
        alive = alive & torch.isfinite(value) & torch.isfinite(gradient).all(-1)
        at.grad = -torch.where(alive[:, None], gradient, torch.zeros_like(gradient))
        optimizer.step()
    return at[alive]


def describe_modes(modes: list[Gaussian]) -> list[dict[str, Any]]:
    """Modes as they stand in the record of a fit.

    Example:
        >>> describe_modes([Gaussian("mode 1", torch.zeros(1), torch.eye(1), -3.0)])
        [{'log_evidence': -3.0, 'at': [0.0]}]
    """
    return [{"log_evidence": mode.elbo, "at": mode.loc.tolist()} for mode in modes]


@torch.no_grad()
def missed_by(guide: AutoFlow, log_joint: LogJoint, chunk: int = 256, deadline: float = math.inf) -> list[Gaussian]:
    """Modes that a guide misses (:func:`missed_modes`), searched from its draws, the prior and the surroundings of zero.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> guide = pf.AutoFlow(model, flow="affine", init_scale=1.0).setup()
        >>> missed_by(guide, LogJoint(model))
        []
    """
    like = guide.whitening.loc
    z, log_q = guide.distribution.rsample_and_log_prob((1024,))
    log_weights = usable_log_weights(torch.cat([log_joint.full(part) for part in z.split(chunk)]), log_q, z)[0]
    few = 8 if log_joint.path == "loop" else 64  # of points to climb from, where each step takes a run of the model for each
    prior = prior_points(log_joint, few)
    near = torch.empty(few, z.shape[-1], dtype=like.dtype, device=like.device).uniform_(-2, 2)
    if not bool(torch.isfinite(log_weights).any()):
        return []
    return missed_modes(
        Density(log_joint, like, chunk),
        Density(guide.distribution.log_prob, like, chunk),
        z[:few].double().cpu(),
        float(log_weights.logsumexp(0)) - math.log(len(log_weights)),
        torch.cat([prior, near]).double().cpu(),
        deadline=deadline,
    )


@torch.no_grad()
def wide_points(guide: AutoFlow, log_joint: LogJoint, missed: list[Gaussian], num_prior: int = 512) -> Tensor:
    """Points from which all modes may be reached: the prior, draws of the guide blown up, and what is known to be missed.

    Args:
        guide: The guide.
        log_joint: The log joint density, whose model gives draws of the prior.
        missed: Modes that are known; points are spread as far as they lie.
        num_prior: Draws of the prior.

    Returns:
        Points ``(N, D)``, float64, on the CPU.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> guide = pf.AutoFlow(model, flow="affine").setup()
        >>> wide_points(guide, LogJoint(model), [], 100).shape
        torch.Size([484, 1])
    """
    draws = guide.distribution.sample((64,)).double().cpu()
    mean, sd = draws.mean(0), draws.std(0)
    found = torch.stack([mode.loc for mode in missed]) if missed else draws[:0]
    # Where one latent has a mode that far away, others may.
    apart = max([3.0, *((mode.loc - mean).abs().div(sd).max().item() for mode in missed)])
    spread = mean + apart * sd * torch.randn(256, len(mean), dtype=torch.float64, device="cpu")
    points = torch.cat([draws, mean + 5 * (draws - mean), found, spread, prior_points(log_joint, num_prior).double().cpu()])
    return points[torch.isfinite(points).all(-1)]


def missed_modes(
    density: Density,
    log_q: Density,
    draws: Tensor,
    log_evidence: float,
    starts: Tensor,
    most: int = 8,
    deadline: float = math.inf,
) -> list[Gaussian]:
    r"""Modes where the posterior has mass and the guide has none.

    Points climb from ``starts`` and from draws of the guide blown up by 2 and by 5 about their mean. An end where
    :math:`\log p - \log q` stands more than 5 nats above the log evidence is a mode that the guide may miss; how much of the
    posterior lies there, where the guide is absent, is estimated by importance weights of the Gaussian with the end's curvature.

    Args:
        density: The log joint density.
        log_q: Log-density of the guide.
        draws: Draws of the guide, ``(N, D)``.
        log_evidence: Log evidence as the guide sees it, in nats.
        starts: More points to climb from, ``(M, D)``.
        most: Number of modes to describe, at most.
        deadline: Moment of the monotonic clock at which to stop.

    Returns:
        A Gaussian at each mode found that holds more than 1 % of what the guide sees, the heaviest first. Its ``elbo`` is the log
        evidence of the mode, in nats.

    Example:
        >>> pair = Density(lambda z: torch.logaddexp(-0.5 * (z + 9).square(), -0.5 * (z - 9).square()).sum(-1), torch.zeros(1))
        >>> one = Density(lambda z: -0.5 * (z - 9).square().sum(-1), torch.zeros(1))
        >>> draws = 9 + torch.randn(64, 1).double()
        >>> [round(float(mode.loc)) for mode in missed_modes(pair, one, draws, 0.92, torch.tensor([[-3.0]]).double())]
        [-9]
    """
    mean, centred = draws.mean(0), draws - draws.mean(0)
    scale = draws.std(0)
    begin = torch.cat([mean + 2 * centred, mean + 5 * centred, starts])
    ends = mean + scale * climb_together(_standardised(density, mean, scale), (begin - mean) / scale, deadline=deadline)
    excess = density(ends) - log_q(ends) - log_evidence
    order = torch.argsort(torch.where(torch.isnan(excess), -math.inf, density(ends)), descending=True)
    found: list[Gaussian] = []

    def absent(z: Tensor) -> Tensor:
        value = density.log_density(z)
        return torch.where(value - log_q.log_density(z) > log_evidence + ABSENT, value, torch.full_like(value, -math.inf))

    # An end on a slope far out may have the mode that the guide knows within its reach.
    counted = Density(absent, torch.empty(0, dtype=density.dtype, device=density.device), density.chunk)
    for index in order.tolist():
        if not float(excess[index]) > ABSENT or len(found) >= most or time.monotonic() > deadline:
            continue
        if any(_distance(ends[index], mode) < math.sqrt(len(mean)) + 3 for mode in found):
            continue
        mode = _describe(density, ends[index], f"mode {len(found) + 1}", counted)
        if mode is not None:
            found.append(mode)
    heavy = [mode for mode in found if mode.elbo - log_evidence > math.log(NEGLIGIBLE_MASS)]
    return sorted(heavy, key=lambda mode: mode.elbo, reverse=True)


def are_separate(density: Density, modes: list[Gaussian]) -> bool:
    """Whether two of the heaviest modes are maxima with a barrier between them.

    Args:
        density: The log joint density.
        modes: Of :func:`survey`, the heaviest first.

    Returns:
        True if each of two holds at least 1 % of the mass of all, and on the straight line between them the
        log-density falls 3 nats below the lower of both.

    Example:
        >>> pair = Density(lambda z: torch.logaddexp(-0.5 * (z + 9).square(), -0.5 * (z - 9).square()).sum(-1), torch.zeros(1))
        >>> are_separate(pair, survey(pair, torch.linspace(-20, 20, 50)[:, None].double()).modes)
        True
    """
    total = _total(modes)
    heavy = [mode for mode in modes[:6] if mode.elbo - total > math.log(NEGLIGIBLE_MASS)]
    ends = [(mode.loc, float(density(mode.loc[None])[0])) for mode in heavy]
    share = torch.linspace(0, 1, 21, dtype=torch.float64, device="cpu")[:, None]
    for i, (a, at_a) in enumerate(ends):
        for b, at_b in ends[:i]:
            between = density(a + share * (b - a))
            if float(between.nan_to_num(nan=math.inf).min()) < min(at_a, at_b) - BARRIER:
                return True
    return False


def _total(modes: list[Gaussian]) -> float:
    """Log evidence of all modes together, in nats."""
    return float(torch.tensor([mode.elbo for mode in modes], dtype=torch.float64, device="cpu").logsumexp(0))


def _is_maximum(density: Density, mode: Gaussian) -> bool:
    """Whether the log-density rises by less than a twentieth of a nat from there (half of Newton's decrement squared)."""
    gradient = density.with_gradient(mode.loc[None])[1][0]
    return 0.5 * float((mode.scale_tril.mT @ gradient).square().sum()) < 0.05


@dataclass(frozen=True)
class Survey:
    """The modes of a posterior.

    Args:
        modes: A Gaussian at each mode that was found, the heaviest first; its ``elbo`` is the log evidence of the mode, in nats.
        complete: Whether the climbs came to the same few modes again and again, so that hardly any is left to find.
        ends: Where the climbs ended, ``(N, D)``.

    Example:
        >>> Survey([], False, torch.zeros(0, 2)).complete
        False
    """

    modes: list[Gaussian]
    complete: bool
    ends: Tensor


def survey(density: Density, starts: Tensor, most: int = 64, deadline: float = math.inf) -> Survey:
    """Climb from many points, and describe the modes at which they end.

    Args:
        density: The log joint density.
        starts: Where to begin, ``(N, D)``.
        most: Number of modes to describe, at most.
        deadline: Moment of the monotonic clock at which to stop.

    Returns:
        Modes that hold more than 0.1 % of all that was found.

    Example:
        >>> pair = Density(lambda z: torch.logaddexp(-0.5 * (z + 9).square(), -0.5 * (z - 9).square()).sum(-1), torch.zeros(1))
        >>> found = survey(pair, torch.linspace(-20, 20, 50)[:, None].double())
        >>> len(found.modes), found.complete
        (2, True)
    """
    mean, scale = starts.mean(0), starts.std(0)
    ends = mean + scale * climb_together(_standardised(density, mean, scale), (starts - mean) / scale, 150, deadline=deadline)
    modes: list[Gaussian] = []
    members: list[int] = []
    strangers = 0
    for index in torch.argsort(density(ends).nan_to_num(nan=-math.inf), descending=True).tolist():
        home = next((k for k, mode in enumerate(modes) if _distance(ends[index], mode) < SAME * math.sqrt(len(mean))), None)
        if home is not None:
            members[home] += 1
        elif len(modes) == most or time.monotonic() > deadline:
            strangers += 1
        else:
            mode = _describe(density, ends[index], f"mode {len(modes) + 1}")
            if mode is not None and _is_maximum(density, mode):
                modes.append(mode)
                members.append(1)
    if not modes:
        return Survey([], False, ends)
    total = _total(modes)
    kept = [k for k, mode in enumerate(modes) if mode.elbo - total > math.log(0.1 * NEGLIGIBLE_MASS)]
    # The share of climbs that are alone at their mode is that of the climbs to come that would end at a new one (Good, Turing).
    alone = strangers + sum(members[k] == 1 for k in kept)
    complete = alone <= 0.05 * (strangers + sum(members))
    return Survey(sorted((modes[k] for k in kept), key=lambda mode: mode.elbo, reverse=True), complete, ends)


def _describe(density: Density, at: Tensor, name: str, counted: Density | None = None) -> Gaussian | None:
    """The Gaussian with the curvature of a mode and the evidence of its neighbourhood, by importance weights.

    The evidence is that of ``counted``, a part of the density, if it is given.
    """
    scale_tril = laplace(density, at)
    if scale_tril is None:
        return None
    weights = gaussian_log_weights(counted or density, at, scale_tril, 1024)
    return Gaussian(name, at, scale_tril, float(weights.nan_to_num(nan=-math.inf).logsumexp(0)) - math.log(1024))


def _standardised(density: Density, mean: Tensor, scale: Tensor) -> Density:
    """The density in coordinates of zero mean and unit scale."""
    like = torch.empty(0, dtype=density.dtype, device=density.device)
    shift, factor = mean.to(like), scale.to(like)
    return Density(lambda x: density.log_density(shift + factor * x), like, density.chunk)


def _distance(point: Tensor, mode: Gaussian) -> float:
    """How far a point is from a mode, in units of its width."""
    return float(torch.linalg.solve_triangular(mode.scale_tril, (point - mode.loc)[:, None], upper=False).norm())
