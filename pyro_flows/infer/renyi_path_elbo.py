"""Rényi and importance-weighted bounds with path gradients (DReG)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .path_trace import path_trace
from .surrogate_elbo import SurrogateELBO, per_particle


class RenyiPathELBO(SurrogateELBO):
    r"""Rényi bound :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}` with path gradients.

    With :math:`\hat w_k \propto w_k^{1-\alpha}` that sum to one, the gradient for the guide is :math:`\sum_k (\alpha \hat w_k +
    (1 - \alpha) \hat w_k^2)\, \partial_z \log w_k\, dz_k/d\theta`: the doubly reparametrised one, of the expectation of the
    bound with K particles, unbiased, and free of noise where the guide is exact. Parameters of the model have the
    gradient :math:`\sum_k \hat w_k \nabla \log p_k`, which takes a second pass through the model if it has any.

    :math:`\alpha \to 1` is the evidence lower bound, :math:`\alpha = 0` the importance-weighted one (:class:`DReGELBO`), and
    :math:`\alpha < 0` presses the guide to cover the posterior.

    Takes the arguments of ``Trace_ELBO``; ``num_particles`` is K. Sites of the guide may depend on each other.

    Args:
        alpha: Order, any number but 1.

    Raises:
        ValueError: If ``alpha`` is 1 or not finite, there are fewer than two particles, or a site of the guide is not
            reparametrised; the message names it.

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
                path = path_trace(self._with_particles(guide), guide_trace, args, kwargs)
                paths.append(log_p - per_particle(path, count))
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
