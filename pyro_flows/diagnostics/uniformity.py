"""Whether ranks are uniform: a test by simultaneous bands of their empirical distribution."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

#: Draws of the null distribution, and places at which distribution functions are compared at most.
_NULL, _PLACES = 2000, 100
#: Probability at which a test rejects.
LEVEL = 0.05


@dataclass(frozen=True)
class Uniformity:
    """A test of uniform ranks.

    Args:
        p_value: Probability that uniform ranks are as far from their expectation somewhere.
        places: Values between 0 and 1 at which the distribution is looked at, ``(K,)``.
        difference: Empirical distribution function minus the uniform one there, ``(K,)``.
        lower: Lower edge of the band in which 95 % of all such differences lie as a whole, ``(K,)``.
        upper: Upper edge, ``(K,)``.

    Example:
        See :func:`uniformity_test`.
    """

    p_value: float
    places: np.ndarray
    difference: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def uniformity_test(ranks: Tensor, num_draws: int) -> Uniformity:
    r"""Test whether ranks are uniform on :math:`0, \dots, S`.

    At places :math:`z_j` the number of ranks below :math:`(S + 1) z_j` is binomial. The statistic is the smallest two-sided tail
    probability over all places, and its null distribution is simulated, so that all places are looked at together at the stated
    level, whatever the number of ranks; ties of a discrete distribution make the test conservative.

    References:
        Säilynoja, Bürkner, Vehtari (2022), *Graphical test for discrete uniformity and its applications in goodness of fit
        evaluation and multiple sample comparison*, https://arxiv.org/abs/2103.10522

    Args:
        ranks: Integers from 0 to S, ``(N,)``.
        num_draws: The number S of draws among which ranks were taken.

    Raises:
        ValueError: If ranks are no such integers, or fewer than 10.

    Example:
        >>> test = uniformity_test(torch.arange(1000) % 100, 99)
        >>> test.p_value > 0.5, uniformity_test(torch.arange(1000) % 50, 99).p_value < 0.001
        (True, True)
    """
    if not isinstance(ranks, Tensor) or ranks.dim() != 1 or ranks.is_floating_point() or len(ranks) < 10:
        what = f"{ranks.dtype} of shape {tuple(ranks.shape)}" if isinstance(ranks, Tensor) else type(ranks).__name__
        raise ValueError(f"ranks must be a tensor of 10 integers at least, (N,), got {what}")
    if not isinstance(num_draws, int) or num_draws < 1 or int(ranks.min()) < 0 or int(ranks.max()) > num_draws:
        raise ValueError(
            f"ranks must lie between 0 and num_draws={num_draws!r}, got {int(ranks.min())} to {int(ranks.max())}; a rank is the "
            f"number of draws below the true value"
        )
    total = len(ranks)
    edges = _edges(num_draws)
    places = edges / (num_draws + 1)
    counts = (ranks.cpu().numpy()[None, :] < edges[:, None]).sum(1)
    null = _null(total, num_draws)
    statistic = _smallest_tail(counts, total, places)
    p_value = (1 + int((null <= statistic * (1 + 1e-9)).sum())) / (len(null) + 1)
    from scipy.stats import binom  # takes long to import

    level = float(np.quantile(null, 0.05))
    lower = binom.ppf(0.5 * level, total, places) / total - places
    upper = binom.isf(0.5 * level, total, places) / total - places
    return Uniformity(p_value, places, counts / total - places, lower, upper)


def departure(shares: Tensor) -> str:
    """In words, what is wrong with distributions of which a share lies below each true value: uniform shares, if they were right.

    Args:
        shares: The shares, between 0 and 1, ``(N,)``.

    Example:
        >>> departure(torch.full((100,), 0.9))
        'too low and too narrow'
    """
    shift, spread = float(shares.mean()) - 0.5, 12 * float((shares - 0.5).square().mean())
    said = []
    if abs(shift) > 3 / math.sqrt(12 * len(shares)):
        said.append("too low" if shift > 0 else "too high")
    if abs(spread - 1) > 3 * math.sqrt(0.8 / len(shares)):
        said.append("too narrow" if spread > 1 else "too wide")
    return " and ".join(said) or "of another shape"


def _edges(num_draws: int) -> np.ndarray:
    """Ranks at which distribution functions are compared."""
    return np.unique(np.linspace(1, num_draws, min(num_draws, _PLACES)).round().astype(int))


def _smallest_tail(counts: np.ndarray, total: int, places: np.ndarray) -> np.ndarray:
    """Smallest two-sided tail probability of counts ``(*, K)``, ``(*)``."""
    from scipy.stats import binom  # takes long to import

    below, above = binom.cdf(counts, total, places), binom.sf(counts - 1, total, places)
    return 2 * np.minimum(below, above).min(-1)


@functools.lru_cache(maxsize=64)
def _null(total: int, num_draws: int) -> np.ndarray:
    """Draws of the statistic of uniform ranks."""
    edges = _edges(num_draws)
    share = np.diff(np.concatenate([[0], edges, [num_draws + 1]])) / (num_draws + 1)
    cells = np.random.default_rng(0).multinomial(total, share, size=_NULL)  # counts between edges
    return _smallest_tail(cells.cumsum(1)[:, :-1], total, edges / (num_draws + 1))
