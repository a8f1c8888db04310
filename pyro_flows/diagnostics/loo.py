"""Leave-one-out cross-validation from draws of an approximate posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .arviz import psislw
from .printed import Printed
from .weights import check_log_weights, khat_threshold


@dataclass(frozen=True)
class Loo(Printed):
    r"""Expected log-density of new data, estimated by leaving out each observation.

    Args:
        pointwise: Log-density of each observation given the others, ``(N,)``, nats.
        khat: Tail shape of the importance weights of each, ``(N,)``; above ``khat_threshold`` its estimate is not reliable.
        p_loo: Effective number of parameters: how much better the observations are predicted with themselves than without.
        khat_threshold: :math:`\min(1 - 1/\log_{10} S, 0.7)`.

    Example:
        See :func:`loo`.
    """

    pointwise: Tensor = field(repr=False)
    khat: Tensor = field(repr=False)
    p_loo: float
    khat_threshold: float

    @property
    def elpd(self) -> float:
        """Sum over observations, nats."""
        return float(self.pointwise.sum())

    @property
    def se(self) -> float:
        """Standard error of the sum, from the spread between observations; NaN of a single one."""
        count = len(self.pointwise)
        return float(self.pointwise.std() * math.sqrt(count)) if count > 1 else math.nan

    @property
    def num_unreliable(self) -> int:
        """Observations whose estimate is not reliable."""
        return int((self.khat > self.khat_threshold).sum())

    def __str__(self) -> str:
        error = "" if math.isnan(self.se) else f" ± {self.se:.2f}"
        lines = [
            f"elpd_loo  {self.elpd:.2f}{error} nats",
            f"p_loo     {self.p_loo:.2f}",
            f"k-hat     {int((self.khat <= self.khat_threshold).sum())} of {len(self.khat)} observations at most "
            f"{self.khat_threshold:.2f}, worst {float(self.khat.max()):.2f}",
        ]
        if self.num_unreliable:
            lines.append(
                f"The estimate is not reliable for {self.num_unreliable} observations: fit the others without them, or leave out "
                f"groups of observations instead."
            )
        return "\n".join(lines)


def loo(log_likelihood: Tensor, log_weights: Tensor | None = None) -> Loo:
    r"""Pareto-smoothed importance-sampling leave-one-out cross-validation.

    The density of an observation given the others is :math:`1 / E_{p(\theta | y)}[1 / p(y_i | \theta)]`. Draws of a guide q stand
    for those of the posterior by their weights :math:`w = p(\theta, y) / q(\theta)`, so that each observation has weights
    :math:`w / p(y_i | \theta)` of its own, which are smoothed. Without the weights the answer is that of the guide, which may be
    nats off.

    References:
        Vehtari, Gelman, Gabry (2017), *Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC*,
        https://arxiv.org/abs/1507.04544;
        Magnusson, Andersen, Jonasson, Vehtari (2019), *Bayesian leave-one-out cross-validation for large data*,
        https://arxiv.org/abs/1904.10679

    Args:
        log_likelihood: Log-density of each observation at each draw, ``(S, N)``, nats.
        log_weights: Log importance weights of the draws, ``(S,)``; None for draws of the posterior itself.

    Raises:
        ValueError: If shapes do not fit, or a log-density is NaN or plus infinity.

    Example:
        >>> y = torch.randn(20)
        >>> mean = y.mean() + torch.randn(4000) / 20**0.5
        >>> found = loo(torch.distributions.Normal(mean[:, None], 1.0).log_prob(y))
        >>> found.num_unreliable, 0.5 < found.p_loo < 1.5
        (0, True)
    """
    if not isinstance(log_likelihood, Tensor) or log_likelihood.dim() != 2 or log_likelihood.shape[1] < 1:
        got = tuple(log_likelihood.shape) if isinstance(log_likelihood, Tensor) else type(log_likelihood).__name__
        raise ValueError(f"log_likelihood must be a tensor of shape (S, N), got {got}")
    count = len(log_likelihood)
    weights = torch.zeros(count, dtype=torch.float64, device="cpu") if log_weights is None else check_log_weights(log_weights)
    if len(weights) != count:
        raise ValueError(f"log_weights must have one entry for each of the {count} draws of log_likelihood, got {len(weights)}")
    values = log_likelihood.detach().to(device="cpu", dtype=torch.float64)
    used = torch.isfinite(weights)
    if bool((torch.isnan(values) | torch.isposinf(values))[used].any()):
        raise ValueError("log_likelihood must be finite or minus infinity at draws that have weight; it holds NaN or plus infinity")
    if not bool(torch.isfinite(values[used]).all()):
        raise ValueError(
            "log_likelihood is minus infinity at draws that have weight: without that observation they would count most"
        )
    values, weights = values[used], weights[used]
    pointwise, khats = [], []
    for column in values.T:
        smoothed, khat = psislw((weights - column).numpy())
        pointwise.append(float(np.logaddexp.reduce(smoothed + column.numpy())))
        khats.append(khat)
    full = torch.as_tensor(psislw(weights.numpy())[0], device="cpu")
    lpd = (values + full[:, None]).logsumexp(0)
    found = torch.tensor(pointwise, dtype=torch.float64, device="cpu")
    heavy = torch.tensor(khats, dtype=torch.float64, device="cpu")
    return Loo(found, heavy, float(lpd.sum() - found.sum()), khat_threshold(len(values)))


@dataclass(frozen=True)
class Comparison(Printed):
    """Models in the order of their expected log-density.

    Args:
        names: The models, the best first.
        elpd: Their expected log-densities, nats.
        difference: How far each is behind the best, nats.
        se: Standard errors of these differences, from the same observations; 0 for the best.

    Example:
        See :func:`compare_loo`.
    """

    names: tuple[str, ...]
    elpd: tuple[float, ...]
    difference: tuple[float, ...]
    se: tuple[float, ...]

    def __str__(self) -> str:
        rows = zip(self.names, self.elpd, self.difference, self.se, strict=True)
        lines = [f"{'':<24}{'elpd_loo':>12}{'behind':>10}{'± se':>8}"]
        return "\n".join([*lines, *(f"{name:<24}{elpd:>12.2f}{gap:>10.2f}{se:>8.2f}" for name, elpd, gap, se in rows)])


def compare_loo(models: Mapping[str, Loo]) -> Comparison:
    """Compare models on the same observations.

    Args:
        models: Their estimates, by name; two at least.

    Raises:
        ValueError: If there are fewer, or their observations differ in number.

    Example:
        >>> y = torch.randn(30)
        >>> at = lambda mean: loo(torch.distributions.Normal(mean + torch.randn(2000, 1) / 30**0.5, 1.0).log_prob(y))
        >>> compare_loo({"wrong": at(2.0), "right": at(0.0)}).names
        ('right', 'wrong')
    """
    if len(models) < 2 or len({len(found.pointwise) for found in models.values()}) > 1:
        sizes = {name: len(found.pointwise) for name, found in models.items()}
        raise ValueError(f"models must hold two estimates at least, of the same observations, got {sizes}")
    order = sorted(models, key=lambda name: -models[name].elpd)
    best = models[order[0]].pointwise
    gaps = [best - models[name].pointwise for name in order]
    return Comparison(
        tuple(order),
        tuple(models[name].elpd for name in order),
        tuple(float(gap.sum()) for gap in gaps),
        tuple(float(gap.std() * math.sqrt(len(gap))) for gap in gaps),
    )
