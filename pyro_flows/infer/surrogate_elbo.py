"""What objectives with a gradient of their own have in common: Pyro's interface, and sums by particle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_flows.model.sites import is_subsample

from .path_trace import TracedGuide


def per_particle(trace: Trace, count: int) -> Tensor:
    """Log-probability of a trace, ``(count,)``; the first dimension of its sites is that of the particles if ``count > 1``."""
    total: Tensor | float = 0.0
    for site in trace.nodes.values():
        if site["type"] == "sample" and not is_subsample(site):
            log_prob = site["log_prob"]
            total = total + (log_prob.reshape(count, -1).sum(-1) if count > 1 else log_prob.sum().reshape(1))
    return torch.as_tensor(total).expand(count)


class SurrogateELBO(Trace_ELBO):  # type: ignore[misc]
    """A Pyro objective of several particles whose value and gradient come from two expressions, which :meth:`_evaluate` returns.

    Args:
        num_particles: Number of particles K, at least 2.
        options: As for ``Trace_ELBO``.

    Raises:
        ValueError: If there are fewer than two particles.
    """

    def __init__(self, *, num_particles: int, **options: Any) -> None:
        if not isinstance(num_particles, int) or isinstance(num_particles, bool) or num_particles < 2:
            raise ValueError(f"num_particles must be an integer of at least 2, got {num_particles!r}")
        super().__init__(num_particles=num_particles, **options)

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without gradient."""
        with torch.no_grad():
            return self._evaluate(model, guide, args, kwargs)[0]

    def differentiable_loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """A surrogate that has the value of the loss, and the gradient of the objective."""
        value, surrogate = self._evaluate(model, guide, args, kwargs)
        return value + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss in nats; adds the gradient of the objective to that of the parameters."""
        value, surrogate = self._evaluate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()  # type: ignore[no-untyped-call]
        return value

    def _evaluate(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, Tensor]:
        """The loss, and a tensor that has its gradient; without gradient any tensor."""
        raise NotImplementedError

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        traced = TracedGuide(guide)
        model_trace, guide_trace = super()._get_trace(model, traced, args, kwargs)
        # Pyro leaves the draws of indices out; a replay would draw others.
        guide_trace.nodes.update({n: s for n, s in traced.trace.nodes.items() if s["type"] == "sample" and is_subsample(s)})
        return model_trace, guide_trace

    @property
    def _count(self) -> int:
        """Particles in one trace."""
        return self.num_particles if self.vectorize_particles else 1

    def _scored(self, stochastic: Callable[..., Any], guide_trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Log-probability ``(count,)`` of a model or guide at the values of a trace."""
        replayed = poutine.replay(self._with_particles(stochastic), trace=guide_trace)
        trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return per_particle(trace, self._count)

    def _with_particles(self, stochastic: Callable[..., Any]) -> Callable[..., Any]:
        """A model or guide in the plate of the particles, where they are vectorised."""
        return self._vectorized_num_particles(stochastic) if self.vectorize_particles else stochastic  # type: ignore[no-any-return]
