"""Rényi and importance-weighted bounds with path gradients (DReG)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor

from .path_elbo import path_log_prob
from .surrogate_elbo import SurrogateELBO, is_plate, particle_sum, per_particle


class RenyiPathELBO(SurrogateELBO):
    r"""Rényi bound :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}` with path gradients.

    With :math:`\hat w_k \propto w_k^{1-\alpha}` that sum to one, the gradient for the guide is :math:`\sum_k (\alpha \hat w_k +
    (1 - \alpha) \hat w_k^2)\, \partial_z \log w_k\, dz_k/d\theta`: the doubly reparametrised one, of the expectation of the
    bound with K particles, unbiased, and free of noise where the guide is exact. Parameters of the model have the
    gradient :math:`\sum_k \hat w_k \nabla \log p_k`, which takes a second pass through the model if it has any.

    :math:`\alpha \to 1` is the evidence lower bound, :math:`\alpha = 0` the importance-weighted one (:class:`DReGELBO`), and
    :math:`\alpha < 0` presses the guide to cover the posterior.

    Takes the arguments of ``Trace_ELBO``; ``num_particles`` is K. The sites of the guide must not depend on each other, as in
    ``AutoFlow`` or a mean field.

    Args:
        alpha: Order, any number but 1.

    Raises:
        ValueError: If ``alpha`` is 1 or not finite, there are fewer than two particles, or a site of the guide is not
            reparametrised or depends on another; the message names it.

    References:
        Li, Turner (2016), *Rényi divergence variational inference*, https://arxiv.org/abs/1602.02311;
        Tucker, Lawson, Gu, Maddison (2019), *Doubly reparameterized gradient estimators for Monte Carlo objectives*,
        https://arxiv.org/abs/1810.04152

    Example:
        >>> from pyro.infer import SVI
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> guide = pf.AutoFlow(model, flow="affine").setup()
        >>> loss = RenyiPathELBO(alpha=0.5, num_particles=8, vectorize_particles=True)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        >>> svi.step() > 0
        True
    """

    def __init__(self, alpha: float = 0.5, *, num_particles: int = 16, **options: Any) -> None:
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha == 1:
            raise ValueError(f"alpha must be a finite number other than 1, got {alpha!r}; for 1 take PathELBO")
        super().__init__(num_particles=num_particles, **options)
        self.alpha = float(alpha)

    def _evaluate(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, Tensor]:
        count = self._count
        log_weights, paths, fixed = [], [], []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            log_p, log_q = per_particle(model_trace, count), per_particle(guide_trace, count)
            log_weights.append((log_p - log_q).detach())
            if torch.is_grad_enabled():
                paths.append(log_p - self._path(guide_trace, count))
                if any(site["type"] == "param" for site in model_trace.nodes.values()):
                    latents = guide_trace.copy()
                    latents.detach_()  # what is left is a function of the model's parameters alone
                    fixed.append(self._scored(model, latents, args, kwargs))
        weights = torch.cat(log_weights)
        order = 1 - self.alpha
        bound = float(((order * weights).logsumexp(0) - math.log(len(weights))) / order)
        if not paths:
            return -bound, weights.new_zeros(())
        share = (order * weights).softmax(0)
        factor = self.alpha * share + order * share.square()
        surrogate = (factor * torch.cat(paths)).sum()
        if fixed:
            surrogate = surrogate + ((share - factor) * torch.cat(fixed)).sum()
        return -bound, -surrogate

    @staticmethod
    def _path(guide_trace: Trace, count: int) -> Tensor:
        """Surrogate ``(count,)`` of the guide's log-density, with the gradient of the path alone."""
        total: Tensor | float = 0.0
        earlier: list[tuple[str, Tensor]] = []
        for name, site in guide_trace.nodes.items():
            if site["type"] != "sample" or is_plate(site):
                continue
            if isinstance(innermost(site["fn"]), dist.Delta):
                total = total + particle_sum(site["log_prob"], count)
                continue
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"site {name!r} of the guide is not reparametrised; this bound needs rsample: use RenyiELBO of Pyro"
                )
            for other in _dependencies(site, earlier):
                raise ValueError(
                    f"site {name!r} of the guide depends on site {other!r}, for which this bound has no path gradient; "
                    f"use RenyiELBO of Pyro, or a guide of one joint site"
                )
            path = path_log_prob(site["fn"], site["value"])[1] * site["scale"]
            total = total + particle_sum(path, count)
            earlier.append((name, site["value"]))
        return torch.as_tensor(total).expand(count)


class DReGELBO(RenyiPathELBO):
    r"""Importance-weighted bound :math:`\log \frac1K \sum_k w_k` with doubly reparametrised gradients.

    As :class:`RenyiPathELBO` with :math:`\alpha = 0`: tighter than the evidence lower bound, with a gradient whose signal does not
    drown in noise as K grows.

    References:
        Burda, Grosse, Salakhutdinov (2016), *Importance weighted autoencoders*, https://arxiv.org/abs/1509.00519;
        Tucker, Lawson, Gu, Maddison (2019), *Doubly reparameterized gradient estimators for Monte Carlo objectives*,
        https://arxiv.org/abs/1810.04152

    Example:
        >>> DReGELBO(num_particles=4).alpha
        0.0
    """

    def __init__(self, *, num_particles: int = 16, **options: Any) -> None:
        super().__init__(0.0, num_particles=num_particles, **options)


def innermost(fn: Any) -> Any:
    """The distribution inside of what wraps it."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return fn


def _dependencies(site: dict[str, Any], earlier: list[tuple[str, Tensor]]) -> Iterator[str]:
    """Names of the earlier sites on whose values the parameters of this site's distribution depend."""
    candidates = [(name, value) for name, value in earlier if value.requires_grad]
    if not candidates:
        return
    with torch.enable_grad():
        log_q = site["fn"].log_prob(site["value"].detach()).sum()
    if not log_q.requires_grad:
        return
    gradients = torch.autograd.grad(log_q, [value for _, value in candidates], retain_graph=True, allow_unused=True)
    yield from (name for (name, _), gradient in zip(candidates, gradients, strict=True) if gradient is not None)
