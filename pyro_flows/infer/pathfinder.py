"""Pathfinder: the Gaussian of best evidence bound along the path of an optimiser."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .gaussian import Density

#: Pairs of steps and gradient changes from which the inverse Hessian is estimated.
HISTORY = 6


class _OutOfTimeError(Exception):
    pass


@dataclass(frozen=True)
class Path:
    """What one run of L-BFGS saw.

    Args:
        points: Iterates, ``(T, D)``.
        gradients: Gradients of the log-density there, ``(T, D)``.

    Example:
        >>> density = Density(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2))
        >>> climb(density, torch.ones(2).double()).points.shape[1]
        2
    """

    points: Tensor
    gradients: Tensor


def climb(density: Density, point: Tensor, *, max_iter: int = 200, deadline: float = math.inf) -> Path:
    """Follow L-BFGS from a point towards a mode.

    Args:
        density: The log joint density.
        point: Where the path begins, ``(D,)``; log-density and gradient must be finite there.
        max_iter: Iterations at most.
        deadline: When to stop, on the clock of ``time.monotonic``.

    Returns:
        The path, from ``point`` on. It ends early where the log-density ceases to be finite.
    """
    from scipy.optimize import minimize

    seen: dict[bytes, np.ndarray] = {}

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        if time.monotonic() > deadline and len(seen) > 1:
            raise _OutOfTimeError
        value, gradient = density.with_gradient(torch.as_tensor(z)[None])
        if not bool(torch.isfinite(value).all() & torch.isfinite(gradient).all()):
            return math.inf, np.zeros_like(z)
        seen[z.tobytes()] = gradient[0].numpy()
        return -float(value[0]), -seen[z.tobytes()]

    begin = point.numpy()
    points = [begin.copy()]
    try:
        with np.errstate(all="ignore"):
            options = {"maxiter": max_iter, "maxcor": HISTORY, "ftol": 1e-10}
            minimize(objective, begin, jac=True, method="L-BFGS-B", options=options, callback=lambda z: points.append(np.array(z)))
    except _OutOfTimeError:
        pass
    points = [z for z in points if z.tobytes() in seen]
    return Path(torch.as_tensor(np.stack(points)), torch.as_tensor(np.stack([seen[z.tobytes()] for z in points])))


def pathfinder(density: Density, path: Path, *, num_draws: int = 16, max_points: int = 40) -> tuple[Tensor, Tensor] | None:
    r"""Mean ``(D,)`` and Cholesky factor ``(D, D)`` of the best Gaussian along a path, float64; None where there is none.

    At every iterate L-BFGS knows an inverse Hessian :math:`H`; the Gaussian there is :math:`N(z + H \nabla \log p(z), H)`, and
    the one of best evidence lower bound is taken. Where a density has no mode, or one that holds no mass, that is found on the
    way there, not at the end.

    Args:
        density: The log joint density.
        path: A path of :func:`climb`.
        num_draws: Draws per Gaussian.
        max_points: Gaussians tried along the path, evenly spread where it has more iterates.

    References:
        Zhang, Carpenter, Gelman, Vehtari (2022), *Pathfinder: parallel quasi-Newton variational inference*, JMLR 23(306)

    Example:
        >>> target = lambda z: -0.5 * ((z - 3) / torch.tensor([1.0, 5.0])).square().sum(-1)
        >>> density = Density(target, torch.zeros(2))
        >>> loc, scale_tril = pathfinder(density, climb(density, torch.zeros(2).double()))
        >>> [round(value, 1) for value in scale_tril.diagonal().tolist()]
        [1.0, 5.0]
    """
    dim = path.points.shape[1]
    gaussians = _along(path, max_points)
    if not gaussians:
        return None
    noise = torch.randn(len(gaussians), num_draws, dim, dtype=torch.float64, device="cpu")
    draws = torch.cat([loc + eps @ scale_tril.mT for (loc, scale_tril), eps in zip(gaussians, noise, strict=True)])
    log_p = density(draws).reshape(len(gaussians), num_draws)
    log_det = torch.stack([scale_tril.diagonal().log().sum() for _, scale_tril in gaussians])
    elbos = (log_p + 0.5 * noise.square().sum(-1)).mean(-1) + log_det
    elbos = torch.where(torch.isfinite(elbos), elbos, -math.inf)
    best = int(elbos.argmax())
    return gaussians[best] if math.isfinite(float(elbos[best])) else None


def _along(path: Path, max_points: int) -> list[tuple[Tensor, Tensor]]:
    """Gaussians at iterates of the path after the first, by the recursion of the paper for diagonal and history."""
    points, gradients = path.points.numpy(), path.gradients.numpy()
    wanted = set(np.unique(np.linspace(1, len(points) - 1, max_points).round().astype(int)).tolist()) if len(points) > 1 else set()
    diagonal = np.ones(points.shape[1])
    from scipy.optimize import LbfgsInvHessProduct

    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    found = []
    for t in range(1, len(points)):
        step, change = points[t] - points[t - 1], gradients[t - 1] - gradients[t]
        if step @ change > 1e-12 * (change @ change):
            diagonal = _diagonal(diagonal, step, change)
            pairs = [*pairs[-(HISTORY - 1) :], (step, change)]
        if t not in wanted or not pairs:
            continue
        root = np.sqrt(diagonal)
        steps, changes = np.stack([s / root for s, _ in pairs]), np.stack([y * root for _, y in pairs])
        inverse = torch.as_tensor(LbfgsInvHessProduct(steps, changes).todense() * root[:, None] * root)
        scale_tril, info = torch.linalg.cholesky_ex(0.5 * (inverse + inverse.mT))
        loc = torch.as_tensor(points[t]) + inverse @ torch.as_tensor(gradients[t])
        if int(info) == 0 and bool(torch.isfinite(scale_tril).all() & torch.isfinite(loc).all()):
            found.append((loc, scale_tril))
    return found


def _diagonal(diagonal: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The next diagonal of the inverse Hessian (Gilbert and Lemarechal 1989, as in the paper)."""
    a, b, c = change @ (diagonal * change), change @ step, step @ (step / diagonal)
    inverse = a / (b * diagonal) + change**2 / b - a * step**2 / (b * c * diagonal**2)
    updated = 1 / inverse
    return updated if bool(np.isfinite(updated).all()) and bool((updated > 0).all()) else diagonal
