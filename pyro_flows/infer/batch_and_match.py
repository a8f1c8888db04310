"""Batch and match: the Gaussian whose score is nearest that of the posterior, without a step size."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from .gaussian import Density

#: Iterations on the variances alone, before covariances: they bring all scales to one order, where eigenvalues are exact.
SCALING = 12
#: A step that lowers the median log-weight by this many nats per latent is taken back, and the next ones are smaller.
DROP = 20.0


class _Held(NamedTuple):
    """A state to go back to, and the median of its log-weights."""

    loc: Tensor
    scale_tril: Tensor
    middle: float


def batch_and_match(
    density: Density,
    loc: Tensor,
    scale_tril: Tensor,
    *,
    num_draws: int = 256,
    max_iter: int = 150,
    window: int = 10,
    averaged: int = 30,
    deadline: float = math.inf,
) -> tuple[Tensor, Tensor]:
    r"""Move a Gaussian until its score :math:`\nabla \log q` agrees with :math:`\nabla \log p` where it has its mass.

    Each iteration takes draws :math:`z` with scores :math:`g`, and minimises their squared score difference in the metric of
    :math:`q` plus :math:`2/\lambda` times the Kullback-Leibler divergence from the last :math:`q`. The minimum is a closed form:
    with the means and covariances :math:`\bar z, C` of the draws and :math:`\bar g, \Gamma` of the scores,

    .. math::
        U = \lambda\Gamma + \tfrac{\lambda}{1+\lambda}\bar g \bar g^T, \quad
        V = \Sigma_t + \lambda C + \tfrac{\lambda}{1+\lambda}(\mu_t - \bar z)(\mu_t - \bar z)^T, \quad
        \Sigma = 2V\bigl(I + (I + 4UV)^{1/2}\bigr)^{-1}, \quad
        \mu = \tfrac{1}{1+\lambda}\mu_t + \tfrac{\lambda}{1+\lambda}(\Sigma\bar g + \bar z).

    It knows no unit and no step size, and finds the full covariance of a Gaussian in a handful of iterations. A few iterations move
    the variances alone, along the columns of the Cholesky factor of the start, by the same formula for each; then
    :math:`\lambda = ND/(t+1)`, until the evidence lower bound rises no more; then :math:`\lambda = 1/(t+1)`, which averages.

    Args:
        density: The log joint density.
        loc: Mean at the start, ``(D,)``, float64.
        scale_tril: Cholesky factor at the start, ``(D, D)``, float64.
        num_draws: Draws N per iteration.
        max_iter: Iterations of the first kind, at most.
        window: Iterations without progress after which the averaging begins.
        averaged: Iterations of averaging.
        deadline: When to stop, on the clock of ``time.monotonic``.

    Returns:
        Mean ``(D,)`` and Cholesky factor ``(D, D)``.

    References:
        Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei, Saul (2024), *Batch and match: black-box variational inference with a
        score-based divergence*, https://arxiv.org/abs/2402.14758

    Example:
        >>> density = Density(lambda z: -0.5 * ((z - 3) / torch.tensor([1.0, 500.0])).square().sum(-1), torch.zeros(2))
        >>> loc, scale_tril = batch_and_match(density, torch.zeros(2).double(), torch.eye(2).double())
        >>> [round(value, 1) for value in scale_tril.diagonal().tolist()]
        [1.0, 500.0]
    """
    dim, first, best, stale = loc.shape[0], 0, -math.inf, 0
    averaging, recent, held, caution = False, [], None, 1.0
    for t in range(max_iter + averaged):
        if time.monotonic() > deadline or (averaging and t - first >= averaged):
            break
        noise = torch.randn(num_draws, dim, dtype=torch.float64, device="cpu")
        z = loc + noise @ scale_tril.mT
        value, gradient = density.with_gradient(z)
        usable = _usable(value, gradient @ scale_tril)
        if int(usable.sum()) < max(2, num_draws // 2):
            scale_tril = 0.5 * scale_tril  # most of it lies where the density is none
            continue
        log_weights = value + 0.5 * noise.square().sum(-1) + scale_tril.diagonal().log().sum()
        if held is not None and float(log_weights.nan_to_num(nan=-math.inf).median()) < held.middle - DROP * dim:
            loc, scale_tril, caution = held.loc, held.scale_tril, 0.1 * caution  # it went over a cliff
            continue
        recent.append(float(log_weights[usable].mean()))
        if t < SCALING:
            scale_tril = _rescaled(scale_tril, noise[usable], gradient[usable] @ scale_tril)
            continue
        if not averaging and len(recent) % window == 0:
            level, noise_of_level = _level(recent[-window:])
            stale = 0 if level > best + 2 * noise_of_level else stale + 1
            best = max(best, level)
            averaging = stale >= 2 or t + 1 >= max_iter
            first = t + 1
        if averaging and t >= first:
            rate = 1 / (t - first + 1)
        else:
            # A mean many sds away needs more than the customary ND, or the term of the mean score shrinks the covariance instead.
            distance = float((gradient[usable].mean(0) @ scale_tril).square().sum())
            rate = max(num_draws * dim, distance) / (t - SCALING + 1)
        held = _Held(loc, scale_tril, float(log_weights.nan_to_num(nan=-math.inf).median()))
        moved = _match(loc, scale_tril, z[usable], gradient[usable], caution * rate)
        if moved is None:
            break
        loc, scale_tril = moved
    return loc, scale_tril


def _usable(value: Tensor, score: Tensor) -> Tensor:
    """Draws with a finite density and a score of the order of the others': one beyond a cliff would drown them."""
    finite = torch.isfinite(value) & torch.isfinite(score).all(-1)
    length = torch.where(finite, score.norm(dim=-1), torch.inf)
    return finite & (length <= 100 * length.median())


def _level(values: list[float]) -> tuple[float, float]:
    """Median of some values, and its standard error from their spread."""
    window = torch.tensor(values, dtype=torch.float64, device="cpu")
    level = window.median()
    return float(level), 1.25 * 1.4826 * float((window - level).abs().median()) / math.sqrt(len(values))


def _rescaled(scale_tril: Tensor, noise: Tensor, score: Tensor) -> Tensor:
    """The limit of a large rate for variances alone, in the coordinates of ``noise`` and ``score``."""
    ratio = noise.var(0, correction=0) / score.var(0, correction=0).clamp_min(1e-300)
    return scale_tril * ratio.clamp(1e-30, 1e30) ** 0.25


def _match(loc: Tensor, scale_tril: Tensor, z: Tensor, score: Tensor, rate: float) -> tuple[Tensor, Tensor] | None:
    """One closed-form step; None where rounding or overflow leaves no covariance."""
    mean, mean_score = z.mean(0), score.mean(0)
    centred, centred_score = z - mean, score - mean_score
    share = rate / (1 + rate)
    u = rate * (centred_score.mT @ centred_score) / len(z) + share * torch.outer(mean_score, mean_score)
    v = scale_tril @ scale_tril.mT + rate * (centred.mT @ centred) / len(z) + share * torch.outer(loc - mean, loc - mean)
    root, info = torch.linalg.cholesky_ex(v)
    product = root.mT @ u @ root
    if int(info) != 0 or not bool(torch.isfinite(product).all()):
        return None
    values, vectors = torch.linalg.eigh(0.5 * (product + product.mT))
    factor = root @ vectors * (2 / (1 + (1 + 4 * values.clamp_min(0)).sqrt())).sqrt()
    covariance = factor @ factor.mT
    new_tril, info = torch.linalg.cholesky_ex(covariance)
    new_loc = loc / (1 + rate) + share * (covariance @ mean_score + mean)
    finite = bool(torch.isfinite(new_tril).all() & torch.isfinite(new_loc).all())
    return (new_loc, new_tril) if int(info) == 0 and finite else None
