"""Choosing the guide of ``fit`` where the user names none."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from pyro_flows.guides import AutoFlow
from pyro_flows.model import LogJoint

from .descent import Training
from .gaussian import Density, Gaussian
from .ladder import Train, climb_ladder, enough_ess, judge, keeps_gaussian
from .modes import are_separate, describe_modes, missed_by, survey, wide_points
from .multimodal import LEAST_STEPS, Kept, cover_modes

#: Points of the quick search for modes.
QUICK = 200


def choose_guide(
    guide: AutoFlow,
    log_joint: LogJoint,
    train: Train,
    max_steps: int,
    num_particles: int,
    record: dict[str, Any],
    *,
    learns: bool = False,
    max_time: float = math.inf,
    progress: bool = False,
) -> Training:
    """Find the simplest guide that the posterior needs, and train it.

    The Gaussian of the start where it is exact (:func:`keeps_gaussian`). Where a quick search finds several modes with barriers
    between them, a guide of several modes (:func:`cover_modes`). Else flows of growing capacity over the Gaussian
    (:func:`climb_ladder`), and a guide of several modes if what they came to misses one.

    Args:
        guide: Its whitening is the Gaussian of the start; its flow is replaced.
        log_joint: The log joint density.
        train: Trains the guide in place.
        max_steps: Steps in all, at most.
        num_particles: Draws to evaluate at once, at most.
        record: Gets ``flow`` and ``rungs``: what was tried, how good it was, and why it went on.
        learns: Whether the model has parameters to learn; then it is one flow, trained on.
        max_time: Seconds that annealing may take.
        progress: Show bars.

    Returns:
        What was done, all guides together.
    """
    if learns:
        return climb_ladder(guide, log_joint, train, max_steps, record)
    density = Density(log_joint, guide.whitening.loc, num_particles)

    def cover(missed: list[Gaussian], steps: int) -> tuple[Training, bool]:
        starts = wide_points(guide, log_joint, missed)
        return cover_modes(guide, log_joint, starts, train, steps, num_particles, record, max_time=max_time, progress=progress)

    if keeps_gaussian(guide, log_joint, record):
        training = Training(stop_reason="the Gaussian of the start is exact")
    else:
        points = wide_points(guide, log_joint, [], num_prior=64)
        quick = points[torch.randperm(len(points), device="cpu")[:QUICK]]
        # Where each step takes a run of the model for each point, the search after training must do.
        dear = log_joint.path == "loop"
        first = [] if dear else survey(density, quick, most=8, deadline=time.monotonic() + 0.2 * max_time).modes
        training = Training()
        several: tuple[float, Kept, str] | None = None
        if first and are_separate(density, first):
            start = Kept.of(guide)
            training, kept = cover(first, max_steps)
            if training.stop_reason in ("interrupted", "max_time"):
                return training
            if kept:
                judged = judge(guide, log_joint)
                if judged.ess_fraction >= enough_ess(guide.latent_dim) or max_steps - training.steps < LEAST_STEPS:
                    return training
                several = judged.elbo, Kept.of(guide), record["flow"]
                start.restore(guide)
        training = training.then(climb_ladder(guide, log_joint, train, max_steps - training.steps, record))
        if several is not None and judge(guide, log_joint).elbo < several[0]:
            several[1].restore(guide)
            record["flow"] = several[2]
            return training
    left = max_steps - training.steps
    if left >= LEAST_STEPS and training.stop_reason not in ("interrupted", "max_time"):
        missed = missed_by(guide, log_joint, num_particles, time.monotonic() + 0.2 * max_time)
        if missed:
            record["missed_modes"] = describe_modes(missed)  # until the guide has been searched again
            training = training.then(cover(missed, left)[0])
    return training
