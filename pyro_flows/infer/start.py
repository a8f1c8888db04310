"""Where training starts: Gaussians proposed for the unconstrained latents, and the one with the best ELBO."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_flows.model import LogJoint
from pyro_flows.transforms import FlowTransform

from .batch_and_match import batch_and_match
from .gaussian import Density, Gaussian, LogDensity, gaussian_elbo
from .hierarchy import read_hierarchy
from .laplace import laplace
from .pathfinder import climb, pathfinder


class SearchInterrupted(KeyboardInterrupt):
    """The search for a start was interrupted, and had found these."""

    def __init__(self, tried: list[Gaussian]) -> None:
        super().__init__()
        self.tried = tried


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Args:
        best: The best Gaussian.
        tried: All that were tried.
        coordinates: From the coordinates of the best to the unconstrained latents; None if they are the same.
        effects: Names of the sites that are standardised there.
        interrupted: Whether the search was interrupted.
        note: Why other coordinates were not tried, if something went wrong.

    Example:
        >>> gaussian = Gaussian("plain", torch.zeros(1), torch.eye(1), -1.0)
        >>> Start(gaussian, [gaussian]).effects
        ()
    """

    best: Gaussian
    tried: list[Gaussian]
    coordinates: FlowTransform | None = None
    effects: tuple[str, ...] = ()
    interrupted: bool = False
    note: str = ""


#: Iterations after which the finalists are compared.
HEAT = 20


def choose_start(
    log_density: LogDensity,
    point: Tensor,
    init_scale: float,
    num_particles: int = 256,
    max_time: float = math.inf,
    num_paths: int = 4,
) -> tuple[Gaussian, list[Gaussian]]:
    """Propose Gaussians, match the best of them to the posterior, and take the one with the best evidence lower bound.

    Proposed are the plain one at ``point`` with ``init_scale`` and with unit scale, the best along several paths of L-BFGS
    (:func:`~pyro_flows.infer.pathfinder.pathfinder`), and the Laplace approximation at the highest end of these. The plain ones and
    the best two others run a heat of :func:`~pyro_flows.infer.batch_and_match.batch_and_match`; the winner goes on until it has
    converged.

    Args:
        log_density: Maps ``(N, D)`` to ``(N,)``.
        point: Initial point, ``(D,)``.
        init_scale: Scale of the plain start.
        num_particles: Draws to evaluate at once, at most.
        max_time: Seconds after which the best found by then is taken.
        num_paths: Paths of L-BFGS, the first from ``point``, the others from random points around it.

    Returns:
        The best, and all in the order of their making; float64, on the CPU.

    Raises:
        SearchInterrupted: If it is interrupted from the keyboard; it holds what was found.

    Example:
        >>> best, tried = choose_start(lambda z: -0.5 * (z - 3).square().sum(-1), torch.zeros(2), 0.1)
        >>> abs(best.elbo - 1.8379) < 0.01
        True
    """
    deadline = time.monotonic() + max_time
    density = Density(log_density, point, chunk=num_particles)
    tried: list[Gaussian] = []
    try:
        _search(density, point.detach().double().cpu(), init_scale, num_paths, deadline, tried)
    except KeyboardInterrupt as interrupt:
        raise SearchInterrupted(tried) from interrupt
    return max(tried, key=lambda start: start.elbo), tried


def _search(density: Density, begin: Tensor, init_scale: float, num_paths: int, deadline: float, tried: list[Gaussian]) -> None:
    """Append to ``tried`` what :func:`choose_start` tries."""
    for name, loc, scale_tril in _proposals(density, begin, init_scale, num_paths, deadline):
        tried.append(Gaussian(name, loc, scale_tril, gaussian_elbo(density, loc, scale_tril)))
    others = sorted(tried[2:], key=lambda start: start.elbo, reverse=True)[:2]
    finalists = [start for start in (*tried[:2], *others) if math.isfinite(start.elbo)]
    matched = []
    for start in finalists:
        if time.monotonic() < deadline:
            options = {"max_iter": HEAT, "averaged": 0, "deadline": deadline}
            matched.append(_matched(density, start, f"{start.name}, matched", options))
            tried.append(matched[-1])
    if matched:
        winner = max(matched, key=lambda start: start.elbo)
        tried.append(_matched(density, winner, f"{winner.name} until converged", {"deadline": deadline}))


def choose_coordinates(
    log_joint: LogJoint,
    point: Tensor,
    init_scale: float,
    num_particles: int = 256,
    max_time: float = math.inf,
    non_centred: bool | None = None,
) -> Start:
    """Choose the start in the coordinates of the model, and again with its effects standardised, and take the better.

    Args:
        log_joint: The model.
        point: Initial point, ``(D,)``.
        init_scale: Scale of the plain start.
        num_particles: Draws to evaluate at once, at most.
        max_time: Seconds after which the best found by then is taken.
        non_centred: True or False for one of the two, None for the better.

    Returns:
        The better start; if the search is interrupted from the keyboard, the best so far.

    Raises:
        KeyboardInterrupt: If it is interrupted before anything was found.

    Example:
        >>> def model():
        ...     v = pyro.sample("v", dist.Normal(0.0, 3.0))
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), (0.5 * v).exp()).to_event(1))
        >>> start = choose_coordinates(LogJoint(model), torch.zeros(3), 0.1)
        >>> start.effects, abs(start.best.elbo) < 0.01
        (('x',), True)
    """
    began = time.monotonic()
    try:
        best, tried = choose_start(
            log_joint, point, init_scale, num_particles, max_time if non_centred is False else 0.5 * max_time
        )
    except SearchInterrupted as interrupt:
        if not any(math.isfinite(start.elbo) for start in interrupt.tried):
            raise
        return Start(max(interrupt.tried, key=lambda start: start.elbo), interrupt.tried, interrupted=True)
    left = max_time - (time.monotonic() - began)
    if non_centred is False or not math.isfinite(best.elbo) or left <= 0:
        return Start(best, tried)
    interrupted = False
    try:
        try:
            found = read_hierarchy(log_joint, best.loc.to(point), best.scale_tril.norm(dim=1).to(point))
        except (ValueError, RuntimeError, KeyError) as error:
            # A prior that is of one family here and of another there; what is wrong with a model, its density has told by now.
            return Start(best, tried, note=f"non-centred: not tried, {type(error).__name__}: {error}")
        if found is None:
            return Start(best, tried)
        layer, effects = found

        def log_density(x: Tensor) -> Tensor:
            z, log_det = layer.forward_and_log_det(x)
            return log_joint(z) + log_det

        _, more = choose_start(log_density, layer.inverse_and_log_det(point)[0], init_scale, num_particles, left)
    except SearchInterrupted as interrupt:
        more, interrupted = interrupt.tried, True
    except KeyboardInterrupt:
        return Start(best, tried, interrupted=True)
    more = [replace(start, name=f"non-centred: {start.name}") for start in more]
    other = max(more, key=lambda start: start.elbo, default=best)
    if not math.isfinite(other.elbo) or (non_centred is None and not other.elbo > best.elbo):
        return Start(best, tried + more, interrupted=interrupted)
    return Start(other, tried + more, layer, tuple(effects), interrupted)


def _matched(density: Density, start: Gaussian, name: str, options: dict[str, float]) -> Gaussian:
    loc, scale_tril = batch_and_match(density, start.loc, start.scale_tril, **options)  # type: ignore[arg-type]
    return Gaussian(name, loc, scale_tril, gaussian_elbo(density, loc, scale_tril))


def _proposals(
    density: Density, point: Tensor, init_scale: float, num_paths: int, deadline: float
) -> Iterator[tuple[str, Tensor, Tensor]]:
    eye = torch.eye(point.shape[0], dtype=torch.float64, device="cpu")
    yield "plain", point, init_scale * eye
    yield "plain, unit scale", point, eye
    best_end, best_value = point, -math.inf
    for number in range(num_paths):
        begin = point if number == 0 else point + torch.empty_like(point).uniform_(-2, 2)
        value, gradient = density.with_gradient(begin[None])
        if time.monotonic() > deadline or not bool(torch.isfinite(value).all() & torch.isfinite(gradient).all()):
            continue
        path = climb(density, begin, deadline=deadline)
        end_value = float(density(path.points[-1:])[0])
        if end_value > best_value:
            best_end, best_value = path.points[-1], end_value
        found = pathfinder(density, path)
        if found is not None:
            yield f"path {number + 1}", *found
    if math.isfinite(best_value) and time.monotonic() < deadline:
        scale_tril = laplace(density, best_end)
        if scale_tril is not None:
            yield "Laplace", best_end, scale_tril
