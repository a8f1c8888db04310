"""The inclusive Kullback-Leibler divergence, on importance-reweighted draws of the guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from .renyi_path_elbo import per_particle


class ForwardKLELBO(Trace_ELBO):  # type: ignore[misc]
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
        if not isinstance(num_particles, int) or isinstance(num_particles, bool) or num_particles < 2:
            raise ValueError(f"num_particles must be an integer of at least 2, got {num_particles!r}")
        super().__init__(num_particles=num_particles, **options)

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Minus the importance-weighted bound, in nats."""
        with torch.no_grad():
            return self._evaluate(model, guide, args, kwargs)[0]

    def differentiable_loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """A surrogate that has the value of :meth:`loss`, and the gradient of the divergence."""
        value, surrogate = self._evaluate(model, guide, args, kwargs)
        return value + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Minus the importance-weighted bound, in nats; adds the gradient of the divergence to that of the parameters."""
        value, surrogate = self._evaluate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()  # type: ignore[no-untyped-call]
        return value

    def _evaluate(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, Tensor]:
        count = self.num_particles if self.vectorize_particles else 1
        log_weights, terms = [], []
        with torch.no_grad():
            traces = list(self._get_traces(model, guide, args, kwargs))
        for model_trace, guide_trace in traces:
            log_weights.append(per_particle(model_trace, count) - per_particle(guide_trace, count))
            if torch.is_grad_enabled():
                scored = torch.zeros_like(log_weights[-1])
                for stochastic in (self._vectorized(guide), self._vectorized(model)):
                    trace = poutine.trace(poutine.replay(stochastic, trace=guide_trace)).get_trace(*args, **kwargs)
                    trace.compute_log_prob()
                    scored = scored + per_particle(trace, count)
                terms.append(scored)
        weights = torch.cat(log_weights)
        value = math.log(len(weights)) - float(weights.logsumexp(0))
        if not terms:
            return value, torch.zeros(())
        return value, -(weights.softmax(0) * torch.cat(terms)).sum()

    def _vectorized(self, stochastic: Callable[..., Any]) -> Callable[..., Any]:
        return self._vectorized_num_particles(stochastic) if self.vectorize_particles else stochastic
