"""Probability integral transform of observations under predictive draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .arviz import psislw
from .bands import plot_bands
from .printed import Printed
from .uniformity import LEVEL, Uniformity, departure, uniformity_test
from .weights import check_log_weights, khat_threshold

#: Cells into which values between 0 and 1 are sorted for the test, and observations that it needs.
_CELLS, _LEAST = 100, 10


@dataclass(frozen=True)
class Pit(Printed):
    """Shares of the predictive distribution below each observation: uniform, if predictions are right.

    Args:
        values: The shares, ``(N,)``, between 0 and 1.
        leave_one_out: Whether each observation was predicted from the others alone.
        khat: Tail shape of the weights of each, ``(N,)``; minus infinity where there are none.
        khat_threshold: Above it the share of an observation is not reliable.
        independent: Whether the observations are independent given the latents; shares of others hang together, and no test holds.

    Example:
        See :func:`pit`.
    """

    values: Tensor = field(repr=False)
    leave_one_out: bool
    khat: Tensor = field(repr=False)
    khat_threshold: float
    independent: bool = True

    @property
    def test(self) -> Uniformity | None:
        """The test of uniformity; None of fewer than 10 observations, which are too few for one, and of components of vectors."""
        if len(self.values) < _LEAST or not self.independent:
            return None
        return uniformity_test((self.values * _CELLS).long().clamp(max=_CELLS - 1), _CELLS - 1)

    @property
    def p_value(self) -> float:
        """Probability that uniform shares are as far from their expectation somewhere; NaN of too few."""
        found = self.test
        return math.nan if found is None else found.p_value

    @property
    def num_unreliable(self) -> int:
        """Observations whose share is not reliable."""
        return int((self.khat > self.khat_threshold).sum())

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        count, p_value = len(self.values), self.p_value
        if not self.independent:
            return "Components of vectors hang together, so that there is no test of their shares; look at them one by one."
        if math.isnan(p_value):
            return f"{count} observations are too few to test predictions by, at least {_LEAST} are needed."
        if self.num_unreliable > 0.1 * count:
            found = f"Weights of {self.num_unreliable} of {count} observations are not reliable, so that nothing can be said."
        elif p_value >= LEVEL:
            found = f"Nothing in {count} observations speaks against the predictions (p = {p_value:.2f})."
        else:
            found = f"Predictions are {departure(self.values)} (p = {p_value:.2g}, {count} observations)."
        if 0 < self.num_unreliable <= 0.1 * count:
            found += f" For {self.num_unreliable} of them the weights are not reliable."
        if not self.leave_one_out:
            found += " Each observation helped to predict itself, which hides part of what is wrong."
        return found

    def __str__(self) -> str:
        return self.sentence

    def plot(self, path: str | Path | None = None) -> object:
        """Difference of their distribution function from the uniform one, with a band that holds 95 % of such curves as a whole.

        Args:
            path: Where to save the picture; None not to.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: If there are fewer than 10 observations, or they are components of vectors.
        """
        found = self.test
        if found is None:
            raise ValueError(self.sentence)
        name = "LOO-PIT" if self.leave_one_out else "PIT"
        return plot_bands({name: found}, xlabel="share below the observation", path=path)


def pit(
    predictive: Tensor,
    observed: Tensor,
    *,
    log_weights: Tensor | None = None,
    log_likelihood: Tensor | None = None,
    seed: int = 0,
) -> Pit:
    r"""Share of predictive draws below each observation, :math:`u_i = P(\tilde y_i \le y_i)`.

    With ``log_likelihood`` each observation is predicted from the others: draws are weighted by :math:`w_s / p(y_i | \theta_s)`,
    smoothed, so that uniform shares are what a right model gives. Without it observations helped to predict themselves, and shares
    of a right model crowd around one half. Ties, of discrete data say, are broken at random, and a share is spread over the width
    of one draw; both leave uniform what is so.

    References:
        Gelfand, Dey, Chang (1992), *Model determination using predictive distributions*; Vehtari, Gelman, Gabry (2017),
        https://arxiv.org/abs/1507.04544; Czado, Gneiting, Held (2009), *Predictive model assessment for count data*

    Args:
        predictive: Predictive draws, ``(S, N)``.
        observed: The observations, ``(N,)``.
        log_weights: Log importance weights of the draws, ``(S,)``; None for draws of the posterior itself.
        log_likelihood: Log-density of each observation at each draw, ``(S, N)``, nats, to leave it out.
        seed: Of ties.

    Raises:
        ValueError: If shapes do not fit, or there are NaNs.

    Example:
        >>> mean = torch.randn(1000, 1) / 10
        >>> y = torch.randn(100)
        >>> found = pit(mean + torch.randn(1000, 100), y)
        >>> found.values.shape, found.p_value > 0.01
        (torch.Size([100]), True)
    """
    draws, y = _checked(predictive, observed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    count = len(draws)
    base = torch.zeros(count, dtype=torch.float64, device="cpu") if log_weights is None else check_log_weights(log_weights)
    if len(base) != count:
        raise ValueError(f"log_weights must have one entry for each of the {count} draws of predictive, got {len(base)}")
    used = torch.isfinite(base)
    if log_likelihood is not None:
        if not isinstance(log_likelihood, Tensor) or log_likelihood.shape != draws.shape:
            got = tuple(log_likelihood.shape) if isinstance(log_likelihood, Tensor) else type(log_likelihood).__name__
            raise ValueError(f"log_likelihood must have the shape {tuple(draws.shape)} of predictive, got {got}")
        log_likelihood = log_likelihood.detach().to(device="cpu", dtype=torch.float64)[used]
        if not bool(torch.isfinite(log_likelihood).all()):
            raise ValueError("log_likelihood must be finite at draws that have weight")
    draws, base = draws[used], base[used]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    spread = torch.rand(2, len(y), generator=generator, dtype=torch.float64, device="cpu")
    values, khats = [], []
    smoothed, khat = psislw(base.numpy()) if log_weights is not None else (np.full(len(base), -math.log(len(base))), -math.inf)
    weights = torch.from_numpy(smoothed).exp()
    for i in range(len(y)):
        # Components of one vector are left out together and share their weights.
        if log_likelihood is not None and not (i and torch.equal(log_likelihood[:, i], log_likelihood[:, i - 1])):
            smoothed, khat = psislw((base - log_likelihood[:, i]).numpy())
            weights = torch.from_numpy(smoothed).exp()
        below = float(weights @ (draws[:, i] < y[i]).double()) + float(spread[0, i]) * float(
            weights @ (draws[:, i] == y[i]).double()
        )
        effective = 1 / float(weights.square().sum())
        values.append((below * effective + float(spread[1, i])) / (effective + 1))
        khats.append(khat)
    tensor = torch.tensor([values, khats], dtype=torch.float64, device="cpu")
    return Pit(tensor[0].clamp(0.0, 1.0), log_likelihood is not None, tensor[1], khat_threshold(len(base)))


def _checked(predictive: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    for name, value, rank in (("predictive", predictive, 2), ("observed", observed, 1)):
        if not isinstance(value, Tensor) or value.dim() != rank or value.numel() == 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of shape {'(S, N)' if rank == 2 else '(N,)'}, got {got}")
    draws, y = (value.detach().to(device="cpu", dtype=torch.float64) for value in (predictive, observed))
    if draws.shape[1] != len(y):
        raise ValueError(f"predictive must have one column for each of the {len(y)} observations, got {draws.shape[1]}")
    if bool(torch.isnan(draws).any()) or bool(torch.isnan(y).any()):
        raise ValueError("predictive and observed must not hold NaN; leave out what is missing")
    return draws, y
