"""The evidence lower bound with path gradients (sticking the landing)."""

from __future__ import annotations

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

from pyro_flows.distributions import FlowDistribution


def path_log_prob(distribution: Distribution, value: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log-density at ``value`` with the gradient of the path alone.

    For :math:`z = f_\theta(\epsilon)` the gradient of :math:`\log q_\theta(z)` has a part through :math:`z` and a score part
    whose mean is zero. This keeps the first, :math:`\nabla_z \log q_\theta(z)\, dz/d\theta`, and drops the second.

    Args:
        distribution: A reparametrised distribution.
        value: Draws from it, ``(*, event)``, with their graph.

    Returns:
        The log-density without gradient, ``(*)``, and a surrogate, ``(*)``, whose gradient is that of the path. The value of the
        surrogate means nothing.

    References:
        Roeder, Wu, Duvenaud (2017), *Sticking the landing*, https://arxiv.org/abs/1703.09194

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(2))
        >>> log_q, surrogate = path_log_prob(q, q.rsample((5,)))
        >>> log_q.shape, log_q.requires_grad, surrogate.requires_grad
        (torch.Size([5]), False, True)
    """
    with torch.enable_grad():
        at = value.detach().requires_grad_()
        log_q = distribution.log_prob(at)
        (gradient,) = torch.autograd.grad(log_q.sum(), at)
    event = len(distribution.event_shape)
    return log_q.detach(), (value * gradient).flatten(value.dim() - event).sum(-1) if event else value * gradient


class PathELBO(Trace_ELBO):  # type: ignore[misc]
    r"""Evidence lower bound whose gradient takes the path through every :class:`~pyro_flows.distributions.FlowDistribution`.

    :math:`\nabla_\theta E[\log p(z) - \log q_\theta(z)]` without the score :math:`\nabla_\theta \log q_\theta(z)` at fixed
    :math:`z`, whose mean is zero: unbiased, and free of noise where the guide is exact. Other reparametrised sites take the
    total gradient. Takes the arguments of ``Trace_ELBO``, and is used like it.

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

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor | float, Tensor]:
        elbo: Tensor | float = 0.0
        surrogate: Tensor | float = 0.0
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                elbo = elbo + torch_item(site["log_prob_sum"])
                surrogate = surrogate + site["log_prob_sum"]
        for name, site in guide_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if not site["fn"].has_rsample:
                raise ValueError(f"site {name!r} of the guide is not reparametrised; PathELBO needs rsample: use Trace_ELBO")
            elbo = elbo - torch_item(site["log_prob_sum"])
            if isinstance(site["fn"], FlowDistribution):
                path = path_log_prob(site["fn"], site["value"])[1]
                surrogate = surrogate - (path * site["scale"]).sum()
            else:
                surrogate = surrogate - site["log_prob_sum"]
        return -elbo, -surrogate  # type: ignore[return-value, operator]
