"""The point mass by which a guide hands one site its value, with the Jacobian that belongs to it."""

from __future__ import annotations

from pyro.distributions import Delta
from pyro.distributions.distribution import Distribution
from torch import Tensor
from torch.distributions import register_kl


class SiteDelta(Delta):
    r"""Point mass at a site's value whose log-density is the log-Jacobian of the site's transform.

    The Kullback-Leibler divergence against a prior keeps that Jacobian, :math:`\mathrm{KL} = \log q(v) - \log p(v)`. Pyro's for
    :class:`pyro.distributions.Delta` drops it, which makes ``TraceMeanField_ELBO`` wrong by :math:`E[\log|\det J|]` on every
    constrained site.

    Args:
        v: Value, ``(*, event)``.
        log_density: Log-density, ``(*)``.
        event_dim: Number of event dimensions of the value.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> q = SiteDelta(torch.tensor(1.0), log_density=torch.tensor(2.0))
        >>> kl_divergence(q, dist.Normal(1.0, 1.0))
        tensor(2.9189)
    """


@register_kl(SiteDelta, Distribution)
def _kl_site_delta(p: SiteDelta, q: Distribution) -> Tensor:
    return p.log_density - q.log_prob(p.v)
