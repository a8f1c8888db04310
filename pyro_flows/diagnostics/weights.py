"""What log importance weights say: evidence, ELBO, effective sample size, tail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .arviz import psislw


def check_log_weights(log_weights: Tensor, name: str = "log_weights") -> Tensor:
    """The log-weights in float64, without gradient, on the CPU.

    Raises:
        ValueError: If they are not of shape ``(S,)`` with at least two entries, or hold NaN or plus infinity.

    Example:
        >>> check_log_weights(torch.zeros(3)).dtype
        torch.float64
    """
    if not isinstance(log_weights, Tensor) or log_weights.dim() != 1 or len(log_weights) < 2:
        shape = tuple(log_weights.shape) if isinstance(log_weights, Tensor) else type(log_weights).__name__
        raise ValueError(f"{name} must be a tensor of shape (S,) with S of at least 2, got {shape}")
    values = log_weights.detach().to(device="cpu", dtype=torch.float64)
    if bool((torch.isnan(values) | torch.isposinf(values)).any()):
        raise ValueError(f"{name} must be finite or minus infinity; they hold NaN or plus infinity")
    return values


def usable_log_weights(log_p: Tensor, log_q: Tensor, draws: Tensor | None = None) -> tuple[Tensor, int]:
    """Log-weights in float64, minus infinity where there is none, and how often that is.

    A draw has none where a log-density is NaN or plus infinity, the guide's is not finite, or the draw itself is not.

    Args:
        log_p: Log joint density of the model at the draws, ``(S,)``, nats; minus infinity is a density of zero.
        log_q: Log-density of the guide at the draws, ``(S,)``, nats.
        draws: The draws, ``(S, D)``.

    Raises:
        ValueError: If the shapes do not fit, or there are fewer than two draws.

    Example:
        >>> usable_log_weights(torch.tensor([1.0, torch.nan]), torch.zeros(2))
        (tensor([1., -inf], dtype=torch.float64), 1)
    """
    for name, value in (("log_p", log_p), ("log_q", log_q)):
        if not isinstance(value, Tensor) or value.dim() != 1 or len(value) < 2:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of shape (S,) with S of at least 2, got {got}")
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_p and log_q must have the same shape, got {tuple(log_p.shape)} and {tuple(log_q.shape)}")
    if draws is not None and (draws.dim() != 2 or len(draws) != len(log_p) or draws.shape[1] == 0):
        raise ValueError(f"draws must have shape ({len(log_p)}, D) with D of at least 1, got {tuple(draws.shape)}")
    p = log_p.detach().to(device="cpu", dtype=torch.float64)
    q = log_q.detach().to(device="cpu", dtype=torch.float64)
    invalid = torch.isnan(p) | torch.isposinf(p) | ~torch.isfinite(q)
    if draws is not None:
        invalid = invalid | ~torch.isfinite(draws.detach()).all(-1).cpu()
    return check_log_weights(torch.where(invalid, -math.inf, p - q)), int(invalid.sum())


def elbo(log_weights: Tensor) -> tuple[float, float]:
    r"""Evidence lower bound :math:`E_q[\log w]` in nats and its Monte Carlo standard error.

    Args:
        log_weights: :math:`\log w = \log p - \log q` at draws of q, ``(S,)``.

    Example:
        >>> elbo(torch.zeros(10))
        (0.0, 0.0)
    """
    values = check_log_weights(log_weights)
    if not bool(torch.isfinite(values).all()):
        return -math.inf, math.nan
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def eubo(log_weights: Tensor) -> tuple[float, float]:
    r"""Evidence upper bound :math:`E_p[\log w]` in nats and its Monte Carlo standard error.

    References:
        Blessing, Jia, Esslinger, Vargas, Neumann (2024), *Beyond ELBOs: a large-scale evaluation of variational methods for
        sampling*, https://arxiv.org/abs/2406.07423

    Args:
        log_weights: :math:`\log w = \log p - \log q` at draws of the posterior p, ``(S,)``; plus infinity where the guide has
            no density.

    Raises:
        ValueError: If they are not of shape ``(S,)`` with at least two entries, or hold NaN or minus infinity.

    Example:
        >>> eubo(torch.zeros(10))
        (0.0, 0.0)
    """
    if isinstance(log_weights, Tensor) and bool((log_weights == -math.inf).any()):
        raise ValueError("log_weights at posterior draws must not be minus infinity: the model has no density at its own draws")
    values = check_log_weights(-log_weights) if isinstance(log_weights, Tensor) else check_log_weights(log_weights)
    mean, mcse = elbo(values)
    return 0.0 - mean, mcse


def log_evidence(log_weights: Tensor) -> tuple[float, float]:
    r"""Log evidence :math:`\log \frac1S \sum w` in nats and its Monte Carlo standard error by the delta method.

    Args:
        log_weights: :math:`\log w` at draws of q, ``(S,)``.

    Example:
        >>> log_evidence(torch.full((10,), -2.0))
        (-2.0, 0.0)
    """
    values = check_log_weights(log_weights)
    total = float(values.logsumexp(0))
    if not math.isfinite(total):
        return -math.inf, math.nan
    relative = (values - total + math.log(len(values))).exp()
    return total - math.log(len(values)), float(relative.std()) / math.sqrt(len(values))


def importance_ess(log_weights: Tensor) -> float:
    r"""Effective sample size :math:`(\sum w)^2 / \sum w^2` of importance weights, between 1 and S.

    Args:
        log_weights: :math:`\log w`, ``(S,)``.

    Example:
        >>> importance_ess(torch.zeros(10))
        10.0
    """
    values = check_log_weights(log_weights)
    if not bool(torch.isfinite(values).any()):
        return 0.0
    ess = float((2 * values.logsumexp(0) - (2 * values).logsumexp(0)).exp())
    return min(ess, float(len(values)))


@dataclass(frozen=True)
class Psis:
    r"""Pareto-smoothed importance weights.

    Args:
        khat: Shape :math:`\hat k` of the tail of the weights.
        threshold: Above it the weights alone cannot be relied on: :math:`\min(1 - 1/\log_{10} S, 0.7)`.
        log_weights: Smoothed log-weights that sum to one, ``(S,)``.
        missing_mass: Share of the target that the tail fit expects beyond the largest weight, where no draw came; 1 where
            :math:`\hat k` is 1 or more and the tail has no mean.

    Example:
        >>> psis(torch.zeros(100)).threshold
        0.5
    """

    khat: float
    threshold: float
    log_weights: Tensor
    missing_mass: float


def psis(log_weights: Tensor) -> Psis:
    r"""Smooth the tail of importance weights, and say how heavy it is.

    References:
        Vehtari et al. (2024), *Pareto smoothed importance sampling*, https://arxiv.org/abs/1507.02646

    Args:
        log_weights: :math:`\log w`, ``(S,)``.

    Raises:
        ValueError: If they are not as described, or all are minus infinity.

    Example:
        >>> psis(torch.zeros(10_000)).threshold
        0.7
    """
    values = check_log_weights(log_weights)
    smoothed, khat = psislw(values.numpy())
    log_smoothed = torch.from_numpy(smoothed)
    return Psis(khat, khat_threshold(len(values)), log_smoothed, _missing_mass(log_smoothed, khat))


def khat_threshold(size: int) -> float:
    r"""Tail shape up to which so many weights can be relied on, :math:`\min(1 - 1/\log_{10} S, 0.7)`; 0 for ten and fewer.

    Example:
        >>> khat_threshold(100), khat_threshold(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(size), 0.7) if size > 10 else 0.0


def _missing_mass(log_smoothed: Tensor, khat: float) -> float:
    r"""Mass of a generalised Pareto tail beyond the quantile of the largest weight.

    The smoothed tail holds the quantiles :math:`u + \frac{\sigma}{k} (p^{-k} - 1)` at upper tail probabilities :math:`p`, from two
    of which threshold :math:`u` and scale :math:`\sigma` follow. Of the :math:`M` draws of the tail, the largest stands at
    :math:`p = 1/M`, and the mass of what lies beyond is the integral of the quantile function from 0 to there.
    """
    size = len(log_smoothed)
    count = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    if khat < 1e-6:
        return 0.0
    if not khat < 1 or count < 10:
        return 1.0
    tail = (log_smoothed + math.log(size)).sort().values[-count:].exp()
    low, high = count // 10, 8 * count // 10  # the upper end is cut at the largest raw weight
    power = (1 - (torch.tensor([low, high], dtype=torch.float64, device="cpu") + 0.5) / count) ** -khat
    ratio = float((tail[high] - tail[low]) / (power[1] - power[0]))  # sigma / k at k-hat
    threshold = float(tail[low]) - ratio * (float(power[0]) - 1)
    beyond = ((threshold - ratio) / count + ratio * count ** (khat - 1) / (1 - khat)) * count / size
    return min(max(beyond - float(tail[-1]) / size, 0.0), 1.0)


def psis_resample(log_weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Indices drawn with replacement in proportion to weights, by systematic resampling, in random order.

    An index with normalised weight :math:`w` comes up :math:`\lfloor nw \rfloor` or :math:`\lceil nw \rceil` times,
    so equal weights give each index once. The weights are taken as they are: smooth them first by :func:`psis`.

    References:
        Douc, Cappe, Moulines (2005), *Comparison of resampling schemes for particle filtering*,
        https://arxiv.org/abs/cs/0507025

    Args:
        log_weights: Log-weights, ``(S,)``, normalised or not.
        num_samples: Number of indices.
        generator: Random generator, on the CPU.

    Returns:
        Indices, ``(num_samples,)``.

    Raises:
        ValueError: If the weights are not as described, or ``num_samples`` is not positive.

    Example:
        >>> psis_resample(torch.tensor([0.0, -torch.inf]), 3).tolist()
        [0, 0, 0]
    """
    values = check_log_weights(log_weights)
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
    if not bool(torch.isfinite(values).any()):
        raise ValueError("log_weights must not all be minus infinity: there is no draw to choose")
    cumulative = values.softmax(0).cumsum(0)
    start = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
    ticks = (torch.arange(num_samples, dtype=torch.float64, device="cpu") + start) / num_samples
    chosen = torch.searchsorted(cumulative / cumulative[-1], ticks, right=True).clamp_max(len(values) - 1)
    return chosen[torch.randperm(num_samples, generator=generator, device="cpu")]
