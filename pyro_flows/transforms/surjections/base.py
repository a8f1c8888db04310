"""The contract of a surjection."""

from __future__ import annotations

from torch import Tensor

from ..core import FlowTransform


class Surjection(FlowTransform):
    r"""A layer between latents x and data y that is no bijection: one of its directions, or both, draw at random.

    The direction from data to latents gives the likelihood contribution :math:`V(x, y)` in place of a log-determinant,

    .. math:: \log p(y) = \log p(x) + V(x, y) \quad\text{or}\quad \log p(y) \ge \mathrm{E}\,[\log p(x) + V(x, y)].

    Where the latents are a function of the data, the first holds and :attr:`log_det_kind` is ``"exact"``; where they are drawn, the
    second, and it is ``"bound"``: one draw, whose mean is a lower bound. In a :class:`~pyro_flows.distributions.FlowDistribution`
    it serves as any transform does, for draws and for likelihoods, as data of a Pyro model too. Draws have no gradients, so that it
    is no part of a guide.

    A subclass writes :meth:`generate` and :meth:`inverse_and_log_det`, and sets shapes, domain and codomain.

    References:
        Nielsen, Jaini, Hoogeboom, Winther, Welling (2020), *SurVAE flows: surjections to bridge the gap between VAEs and flows*,
        https://arxiv.org/abs/2007.02731

    Args:
        input_dim: Number of latents.
        context_dim: Size of the context; 0 for none.

    Example:
        >>> Surjection.bijective
        False
    """

    bijective = False
    caches = False  # one of its directions draws

    def generate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Data for latents.

        Args:
            x: Latents ``(*, *event_shape)``.
            context: Context ``(*, context_dim)``, or None where ``context_dim`` is 0.
        """
        raise TypeError(f"{type(self).__name__} does not define generate(x, context=None)")

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data for latents, and NaN: what they contribute to the likelihood is known in the other direction only."""
        batch = x.shape[: x.dim() - len(self.event_shape)]
        return self.generate(x, context), x.new_full(batch, float("nan"))
