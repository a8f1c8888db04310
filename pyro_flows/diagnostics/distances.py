"""Distances between draws and reference draws, each with what chance alone would make of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .printed import Printed

#: Rows whose distances are held in memory at once.
_PART = 2048


@dataclass(frozen=True)
class Distance(Printed):
    """A distance between two sets of draws.

    Args:
        value: The distance.
        floor: What it is between draws of one distribution, on average.
        error: Standard deviation of that, or standard error of the value.
        p_value: Probability of so large a value for draws of one distribution; NaN where there is no test.

    Example:
        >>> print(Distance(0.6, 0.5, 0.01, 0.001))
        0.6 (0.5 ± 0.01 for draws of one distribution, p = 0.001)
    """

    value: float
    floor: float
    error: float
    p_value: float = math.nan

    def __str__(self) -> str:
        test = "" if math.isnan(self.p_value) else f", p = {self.p_value:.3g}"
        return f"{self.value:.4g} ({self.floor:.4g} ± {self.error:.2g} for draws of one distribution{test})"


def c2st(draws: Tensor, reference: Tensor, *, num_folds: int = 5, seed: int = 0) -> Distance:
    """Accuracy of a classifier that tells draws from reference draws: 0.5 if nothing does, 1 if all does.

    A multilayer perceptron of two layers of 10 D units on standardised draws, by cross-validation, as sbibm defines it.

    References:
        Lopez-Paz, Oquab (2017), *Revisiting classifier two-sample tests*, https://arxiv.org/abs/1610.06545;
        Lueckmann et al. (2021), *Benchmarking simulation-based inference*, https://arxiv.org/abs/2101.04653

    Args:
        draws: Draws ``(S, D)``.
        reference: Reference draws ``(R, D)``; as many are used as there are draws, or the other way round.
        num_folds: Number of folds.
        seed: Of the classifier and the folds.

    Returns:
        The accuracy, and the error of a share of so many.

    Raises:
        ValueError: If shapes do not fit, or draws are not finite.
        ImportError: If scikit-learn is not installed.

    Example:
        >>> c2st(torch.randn(200, 1), torch.randn(200, 1) + 5).value > 0.95
        True
    """
    x, y = _checked(draws, reference)
    try:
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
    except ImportError as missing:
        raise ImportError("c2st needs scikit-learn: pip install scikit-learn") from missing
    count = min(len(x), len(y))
    x, y = _in_sd(x[:count], y[:count])
    width = 10 * x.shape[1]
    network = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    folds = KFold(num_folds, shuffle=True, random_state=seed)
    label = np.concatenate([np.zeros(count), np.ones(count)])
    value = float(cross_val_score(network, torch.cat([x, y]).numpy(), label, cv=folds, scoring="accuracy").mean())
    error = 0.5 / math.sqrt(2 * count)
    return Distance(value, 0.5, error, 0.5 * math.erfc((value - 0.5) / error / math.sqrt(2)))


def mmd(draws: Tensor, reference: Tensor, *, num_permutations: int = 200, most: int = 1000, seed: int = 0) -> Distance:
    r"""Squared maximum mean discrepancy under a Gaussian kernel, without bias, and its permutation test.

    :math:`E\,k(x, x') + E\,k(y, y') - 2\,E\,k(x, y)` with a width that is the median distance of all draws.

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012), *A kernel two-sample test*, https://jmlr.org/papers/v13/gretton12a.html

    Args:
        draws: Draws ``(S, D)``.
        reference: Reference draws ``(R, D)``.
        num_permutations: Number of permutations.
        most: Draws of either kind that are used at most, the first ones.
        seed: Of the permutations.

    Raises:
        ValueError: As :func:`c2st`.

    Example:
        >>> mmd(torch.randn(200, 2), torch.randn(200, 2) + 1).p_value < 0.01
        True
    """
    x, y = _checked(draws, reference)
    x, y = x[:most], y[:most]
    both = torch.cat([x, y])
    squared = torch.cdist(both, both).square()
    width = squared[squared > 0].median() if bool((squared > 0).any()) else squared.new_tensor(1.0)
    kernel = (-squared / width).exp().fill_diagonal_(0.0)
    m, n = len(x), len(y)

    def statistic(signs: Tensor) -> Tensor:
        """Of memberships ``(P, m + n)``, ones for the first kind."""
        other = 1 - signs
        inside = torch.einsum("pi,ij,pj->p", signs, kernel, signs) / (m * (m - 1))
        outside = torch.einsum("pi,ij,pj->p", other, kernel, other) / (n * (n - 1))
        return inside + outside - 2 * torch.einsum("pi,ij,pj->p", signs, kernel, other) / (m * n)

    own = torch.cat([kernel.new_ones(m), kernel.new_zeros(n)])
    generator = torch.Generator(device="cpu").manual_seed(seed)
    orders = torch.stack([torch.randperm(m + n, generator=generator, device="cpu") for _ in range(num_permutations)])
    null = statistic(own[orders])
    value = float(statistic(own[None])[0])
    p_value = (1 + int((null >= value).sum())) / (num_permutations + 1)
    return Distance(value, 0.0, float(null.std()), p_value)


def sliced_wasserstein(draws: Tensor, reference: Tensor, *, num_directions: int = 200, seed: int = 0) -> Distance:
    r"""Mean distance :math:`W_1` of draws along random directions, in sd of the reference.

    References:
        Bonneel, Rabin, Peyré, Pfister (2015), *Sliced and Radon Wasserstein barycenters of measures*,
        https://doi.org/10.1007/s10851-014-0506-3

    Args:
        draws: Draws ``(S, D)``.
        reference: Reference draws ``(R, D)``.
        num_directions: Number of directions.
        seed: Of the directions.

    Returns:
        The distance, beside that between halves of the reference.

    Raises:
        ValueError: As :func:`c2st`.

    Example:
        >>> sliced_wasserstein(torch.randn(500, 3) + 1, torch.randn(500, 3)).value > 0.5
        True
    """
    x, y = _in_sd(*_checked(draws, reference))
    generator = torch.Generator(device="cpu").manual_seed(seed)
    ways = torch.randn(y.shape[1], num_directions, generator=generator, dtype=y.dtype, device="cpu")
    ways = ways / ways.norm(dim=0)
    return _beside_halves(_along(x @ ways, y @ ways).mean(), y @ ways, generator, len(x))


def marginal_wasserstein(draws: Tensor, reference: Tensor, *, seed: int = 0) -> Distance:
    r"""Largest distance :math:`W_1` of one variable's draws, in sd of the reference.

    Args:
        draws: Draws ``(S, D)``.
        reference: Reference draws ``(R, D)``.
        seed: Of the halves.

    Returns:
        The distance, beside that between halves of the reference.

    Raises:
        ValueError: As :func:`c2st`.

    Example:
        >>> round(marginal_wasserstein(torch.randn(4000, 2) + torch.tensor([0.0, 2.0]), torch.randn(4000, 2)).value)
        2
    """
    x, y = _in_sd(*_checked(draws, reference))
    return _beside_halves(_along(x, y).max(), y, torch.Generator(device="cpu").manual_seed(seed), len(x), largest=True)


def energy_distance(draws: Tensor, reference: Tensor, *, seed: int = 0) -> Distance:
    r"""Energy distance :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, in sd of the reference.

    References:
        Székely, Rizzo (2013), *Energy statistics: A class of statistics based on distances*,
        https://doi.org/10.1016/j.jspi.2013.03.018

    Args:
        draws: Draws ``(S, D)``.
        reference: Reference draws ``(R, D)``.
        seed: Of the halves.

    Returns:
        The distance, beside that between halves of the reference.

    Raises:
        ValueError: As :func:`c2st`.

    Example:
        >>> energy_distance(torch.randn(500, 2) + 1, torch.randn(500, 2)).value > 0.3
        True
    """
    x, y = _in_sd(*_checked(draws, reference))

    def between(a: Tensor, b: Tensor) -> float:
        return 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)

    halves = [between(*_halves(y, torch.Generator(device="cpu").manual_seed(seed + i))) for i in range(5)]
    return Distance(between(x, y), float(np.mean(halves)), float(np.std(halves)))


def _checked(draws: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    for name, value in (("draws", draws), ("reference", reference)):
        if not isinstance(value, Tensor) or value.dim() != 2 or len(value) < 20 or value.shape[1] < 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of shape (S, D) with S of 20 at least, got {got}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity in {int((~torch.isfinite(value)).any(1).sum())} rows")
    if draws.shape[1] != reference.shape[1]:
        raise ValueError(f"draws and reference must have as many variables, got {draws.shape[1]} and {reference.shape[1]}")
    return draws.detach().double().cpu(), reference.detach().double().cpu()


def _in_sd(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Draws and reference draws, both about the mean of the latter, in their sd."""
    scale = y.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x - y.mean(0)) / scale, (y - y.mean(0)) / scale


def _along(x: Tensor, y: Tensor) -> Tensor:
    """Distance of the columns of draws ``(S, K)`` and ``(R, K)``, each by itself, ``(K,)``."""
    levels = (torch.arange(_PART, dtype=x.dtype, device=x.device) + 0.5) / _PART
    if len(x) == len(y):
        return (x.sort(0).values - y.sort(0).values).abs().mean(0)
    at = lambda part: part.sort(0).values[(levels * len(part)).long().clamp(max=len(part) - 1)]  # noqa: E731
    return (at(x) - at(y)).abs().mean(0)


def _halves(y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(y), generator=generator, device="cpu")
    return y[order[: len(y) // 2]], y[order[len(y) // 2 :][: len(y) // 2]]


def _beside_halves(value: Tensor, y: Tensor, generator: torch.Generator, count: int, largest: bool = False) -> Distance:
    """Beside distances between halves of the reference, brought from their size to that of the draws."""
    found = []
    for _ in range(10):
        distances = _along(*_halves(y, generator))
        found.append(float(distances.max() if largest else distances.mean()))
    half = len(y) // 2
    share = math.sqrt((1 / count + 1 / len(y)) / (2 / half))
    return Distance(float(value), share * float(np.mean(found)), share * float(np.std(found)))


def _mean_distance(a: Tensor, b: Tensor) -> float:
    total = sum(float(torch.cdist(part, b).sum()) for part in a.split(_PART))
    return total / (len(a) * (len(b) - 1 if a is b else len(b)))
