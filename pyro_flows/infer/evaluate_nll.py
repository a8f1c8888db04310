"""Importance-weighted likelihood of held-out data, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_flows.diagnostics.printed import Printed

from .importance import ElementWeights

MIN_EFFECTIVE_DRAWS = 10


@dataclass(frozen=True)
class NLLEstimate(Printed):
    r"""What :func:`evaluate_nll` found; all in nats, in float64 on the CPU.

    Args:
        values: Estimate of :math:`-\log p(x_i)` per element, ``(N,)``.
        elbos: Evidence lower bound per element from the same draws, ``(N,)``.
        ess: Effective sample size of the weights of each element, ``(N,)``, from 1 to ``num_samples``.
        num_samples: Number S of draws per element.
        indices: Which elements of the plate these are, ``(N,)``, where it is subsampled; else None.
        vectorized: Whether draws ran together; one by one where the model or guide does not give the same then.

    Example:
        >>> result = NLLEstimate(torch.ones(2), -torch.ones(2), torch.tensor([100.0, 4.0]), 100)
        >>> print(result)
        1.000 ± 0.246 nats (N = 2, S = 100, ELBO -1.000); 1 of 2 elements have fewer than 10 effective draws: mend the guide
    """

    values: Tensor
    elbos: Tensor
    ess: Tensor
    num_samples: int
    indices: Tensor | None = None
    vectorized: bool = True

    @property
    def mean(self) -> float:
        """Mean over the elements."""
        return float(self.values.mean())

    @property
    def mcse(self) -> float:
        """Monte Carlo standard error of the mean, by the delta method: of the draws, not of the choice of elements."""
        count = self.num_samples
        variance = (1 / self.ess - 1 / count).clamp(min=0.0) * count / (count - 1)
        return math.sqrt(float(variance.sum())) / len(self.values)

    @property
    def elbo(self) -> float:
        """Mean evidence lower bound over the elements."""
        return float(self.elbos.mean())

    @property
    def ess_fraction(self) -> Tensor:
        """Effective draws as a fraction of all, ``(N,)``."""
        return self.ess / self.num_samples

    @property
    def unreliable(self) -> Tensor:
        """Elements with too few effective draws (below 10) for their value to be trusted, ``(N,)``, boolean."""
        return self.ess < MIN_EFFECTIVE_DRAWS

    @property
    def warning(self) -> str | None:
        """What is wrong with the weights, None if nothing is."""
        few, count = int(self.unreliable.sum()), len(self.values)
        remedy = (
            "mend the guide"
            if count > 1
            else "mend the guide, or name the plate of the data by plate=, to score it element by element"
        )
        return f"{few} of {count} elements have fewer than {MIN_EFFECTIVE_DRAWS} effective draws: {remedy}" if few else None

    def __str__(self) -> str:
        text = f"{self.mean:.3f} ± {self.mcse:.3f} nats (N = {len(self.values)}, S = {self.num_samples}, ELBO {self.elbo:.3f})"
        return f"{text}; {self.warning}" if self.warning else text


@torch.no_grad()
def evaluate_nll(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int = 20,
    plate: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> NLLEstimate:
    r"""Minus log-likelihood of every element of a plate, by importance sampling with the guide.

    :math:`-\log \frac1S \sum_{s=1}^S \frac{p(x_i, z_{is})}{q(z_{is} \mid x_i)}` with :math:`z_{is} \sim q(\cdot \mid x_i)`. In
    expectation it is at or above the truth, by about half the squared standard error, and falls to it as S grows.
    The scale of a subsampled plate is left out, and with it that of any ``poutine.scale``. Masks hold. As with all importance
    sampling, weights do not tell of a mode that the guide never visits: then the estimate is too high, and its error looks small.

    Draws run together, ``chunk_size`` in a plate of their own, where model and guide were seen to give the same as one by one.
    Interrupted from the keyboard, it returns what the draws so far say.

    Args:
        model: A Pyro model with observed sites.
        guide: A guide that draws all its latents.
        args: Arguments of both.
        num_samples: Number S of draws, at least 2.
        chunk_size: Number of draws at a time; memory grows with it.
        plate: Name of the plate whose elements are scored, in which all latents and observations are. None takes the whole joint
            density as one element, for models with latents that all data share.
        kwargs: Keyword arguments of model and guide.
        progress: Show a progress bar.

    Raises:
        ValueError: If an argument is not as described; the plate is not there; a site is outside of it, so that elements have no
            likelihood of their own; the guide leaves a latent of the model out, or has one that the model has not; or data that an
            element needs are subsampled. The message names the site or plate.
        ArithmeticError: If a log-weight is NaN or plus infinity.

    References:
        Burda, Grosse, Salakhutdinov (2016), *Importance weighted autoencoders*, https://arxiv.org/abs/1509.00519

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> x = torch.tensor([0.0, 1.0])
        >>> result = evaluate_nll(model, guide, x, plate="data")
        >>> [round(value, 1) for value in (-dist.Normal(0.0, 2**0.5).log_prob(x)).tolist()]
        [1.3, 1.5]
        >>> [round(value, 1) for value in result.values.tolist()]
        [1.3, 1.5]
    """
    for name, value, least in (("num_samples", num_samples, 2), ("chunk_size", chunk_size, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs must be a mapping of keyword arguments, got {type(kwargs).__name__}")
    weights = ElementWeights(model, guide, args, dict(kwargs or {}), plate)
    total = square = torch.full((weights.size,), -math.inf, dtype=torch.float64, device="cpu")
    mean = torch.zeros_like(total)
    done = 0
    with tqdm(total=num_samples, desc="draws", disable=not progress, dynamic_ncols=True) as bar:
        try:
            while done < num_samples:
                log_weights = weights.draw(min(chunk_size, num_samples - done))
                # New values all at once: an interrupt must not leave sums of different length.
                total, square, mean, done = (
                    torch.logaddexp(total, log_weights.logsumexp(0)),
                    torch.logaddexp(square, (2 * log_weights).logsumexp(0)),
                    mean + log_weights.sum(0),
                    done + len(log_weights),
                )
                bar.update(len(log_weights))
        except KeyboardInterrupt:
            if done < 2:
                raise
    ess = torch.where(total > -math.inf, (2 * total - square).exp(), torch.zeros_like(total))
    return NLLEstimate(math.log(done) - total, mean / done, ess, done, weights.indices, weights.vectorized)
