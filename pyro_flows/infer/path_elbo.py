"""The evidence lower bound with path gradients (sticking the landing)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from torch import Tensor

from .path_trace import TracedGuide, path_trace


class PathELBO(Trace_ELBO):  # type: ignore[misc]
    r"""Evidence lower bound whose gradient takes the path through the guide's draws.

    :math:`\nabla_\theta E[\log p(z) - \log q_\theta(z)]` without the score :math:`\nabla_\theta \log q_\theta(z)` at fixed
    :math:`z`, whose mean is zero: unbiased, and free of noise where the guide is exact. Sites of the guide may depend on each
    other. It takes a second pass through the guide. Takes the arguments of ``Trace_ELBO``, and is used like it.

    Raises:
        ValueError: If a site of the guide is not reparametrised; the message names it.

    References:
        Roeder, Wu, Duvenaud (2017), *Sticking the landing*, https://arxiv.org/abs/1703.09194;
        Vaitl, Nicoli, Nakajima, Kessel (2022), *Gradients should stay on path*, https://arxiv.org/abs/2206.09016

    Example:
        >>> from pyro.infer import SVI
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> guide = pf.AutoFlow(model, flow="affine").setup()
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), PathELBO(num_particles=4))
        >>> svi.step() > 0
        True
    """

    def __init__(self, *, plates_only: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.plates_only = plates_only

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        traced = TracedGuide(guide)
        model_trace, guide_trace = super()._get_trace(model, traced, args, kwargs)
        guide_trace.path = path_trace(guide, traced.trace, args, kwargs) if torch.is_grad_enabled() else guide_trace
        return model_trace, guide_trace

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor | float, Tensor]:
        elbo: Tensor | float = 0.0
        surrogate: Tensor | float = 0.0
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                elbo = elbo + torch_item(site["log_prob_sum"])
                surrogate = surrogate + site["log_prob_sum"]
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":
                elbo = elbo - torch_item(site["log_prob_sum"])
                total = self.plates_only and not _in_plate(site)
                surrogate = surrogate - (site if total else guide_trace.path.nodes[name])["log_prob_sum"]
        return -elbo, -surrogate  # type: ignore[return-value, operator]


def _in_plate(site: dict[str, Any]) -> bool:
    return any(frame.vectorized and frame.name != "num_particles_vectorized" for frame in site["cond_indep_stack"])
