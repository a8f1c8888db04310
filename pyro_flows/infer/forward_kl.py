"""The inclusive Kullback-Leibler divergence, on importance-reweighted draws of the guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .surrogate_elbo import SurrogateELBO, per_particle


class ForwardKLELBO(SurrogateELBO):
    r"""Divergence :math:`\mathrm{KL}(p \| q)` of the guide from the posterior, which widens tails.

    Its gradient is :math:`-E_p[\nabla_\theta \log q_\theta(z)]`, estimated with draws of the guide, held fixed, and weights
    :math:`w_k = p/q` that are made to sum to one. That is biased, by a term that falls as 1/K, and more so the worse the guide:
    use it once the guide is near, not from the start. Parameters of the model climb the importance-weighted bound, of which minus
    the value is returned as the loss.

    Takes the arguments of ``Trace_ELBO``; ``num_particles`` is K. Any guide will do, reparametrised or not.

    Raises:
        ValueError: If there are fewer than two particles.

    References:
        Bornschein, Bengio (2015), *Reweighted wake-sleep*, https://arxiv.org/abs/1406.2751;
        Naesseth, Lindsten, Blei (2020), *Markovian score climbing*, https://arxiv.org/abs/2003.10374

    Example:
        >>> from pyro.infer import SVI
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> guide = pf.AutoFlow(model, flow="affine").setup()
        >>> loss = ForwardKLELBO(num_particles=64, vectorize_particles=True)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        >>> isinstance(svi.step(), float)
        True
    """

    def __init__(self, *, num_particles: int = 64, **options: Any) -> None:
        super().__init__(num_particles=num_particles, **options)

    def _evaluate(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, Tensor]:
        count = self._count
        log_weights, terms = [], []
        with torch.no_grad():
            traces = list(self._get_traces(model, guide, args, kwargs))
        for model_trace, guide_trace in traces:
            log_weights.append(per_particle(model_trace, count) - per_particle(guide_trace, count))
            if torch.is_grad_enabled():
                terms.append(self._scored(guide, guide_trace, args, kwargs) + self._scored(model, guide_trace, args, kwargs))
        weights = torch.cat(log_weights)
        value = math.log(len(weights)) - float(weights.logsumexp(0))
        if not terms:
            return value, weights.new_zeros(())
        return value, -(weights.softmax(0) * torch.cat(terms)).sum()
