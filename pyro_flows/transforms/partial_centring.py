"""Map from standardised effects to actual ones, by a given prior and a learned normal likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .context_parameters import ContextParameters
from .core import FlowTransform


class PartialCentring(FlowTransform):
    r"""The conditional posterior of normal effects whose prior is told, :math:`y \mid x \sim` prior :math:`N(m, e^{2s})` times data
    :math:`N(d, e^{2\ell})`.

    .. math:: y = \lambda m + (1 - \lambda)\, d + \sigma x, \quad
        \sigma^{-2} = e^{-2s} + e^{-2\ell}, \quad \lambda = \sigma^2 e^{-2s},

    elementwise; :math:`\log|\det \partial y/\partial x| = \sum_i \log \sigma_i`. A standard normal :math:`x` becomes the exact
    posterior of a normal effect, at every location :math:`m` and log-scale :math:`s` of its prior: where the prior is wide the
    effect is centred at the data, and where it is narrow it is non-centred, :math:`y = m + e^s x`. That is the funnel of a
    hierarchical model, neck and mouth.

    Location :math:`d` and log-scale :math:`\ell` are learned, and linear in the context (or the output of a network, by
    ``hidden_dims``). The prior is not learned: :math:`m` and :math:`-2s`, the log of its precision, are the last :math:`2D` numbers
    of the context. Location is learned in units, :math:`d = c + u b`, which are buffers.

    Args:
        input_dim: Number ``D`` of effects.
        context_dim: Size of the whole context, at least ``2 D``.
        hidden_dims: Hidden layers of the network from the context, less the prior, to :math:`d` and :math:`\ell`.

    Raises:
        ValueError: If ``input_dim`` or ``context_dim`` is out of range.

    References:
        Papaspiliopoulos, Roberts, Sköld (2007), *A general framework for the parametrization of hierarchical models*,
        https://arxiv.org/abs/0708.3797;
        Gorinova, Moore, Hoffman (2020), *Automatic reparameterisation of probabilistic programs*, https://arxiv.org/abs/1906.03028

    Example:
        >>> layer = PartialCentring(1, 2)
        >>> wide, narrow = torch.tensor([3.0, -100.0]), torch.tensor([3.0, 100.0])
        >>> layer.condition(wide)(torch.ones(1)).item(), layer.condition(narrow)(torch.ones(1)).item()
        (1.0, 3.0)
    """

    centre: Tensor
    unit: Tensor

    def __init__(self, input_dim: int, context_dim: int, *, hidden_dims: Sequence[int] = ()) -> None:
        super().__init__(input_dim, context_dim)
        if context_dim < 2 * input_dim:
            raise ValueError(
                f"context_dim must be at least 2 * input_dim = {2 * input_dim}, location and log-precision of the prior of each "
                f"effect at its end, got {context_dim}"
            )
        zero = torch.zeros(input_dim)
        self.params = ContextParameters({"bias": zero, "log_scale": zero}, context_dim - 2 * input_dim, hidden_dims)
        self.register_buffer("centre", zero.clone())
        self.register_buffer("unit", torch.ones(input_dim))

    def location_and_log_scale(self, context: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\lambda m + (1 - \lambda) d` and :math:`\log \sigma`, each ``(*, D)``, at a context ``(*, C)``."""
        dim = self.input_dim
        told, prior_loc, prior = context.split([self.context_dim - 2 * dim, dim, dim], -1)
        bias, log_scale = self.params(told if told.shape[-1] else None)
        data = -2 * log_scale
        log_precision = torch.logaddexp(prior, data)
        loc = (prior - log_precision).exp() * prior_loc + (data - log_precision).exp() * (self.centre + self.unit * bias)
        return loc, -0.5 * log_precision

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.location_and_log_scale(_told(context))
        return loc + log_scale.exp() * x, log_scale.sum(-1).expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.location_and_log_scale(_told(context))
        return (y - loc) * (-log_scale).exp(), -log_scale.sum(-1).expand(y.shape[:-1])


def _told(context: Tensor | None) -> Tensor:
    if context is None:
        raise ValueError("context must hold the prior of the effects, got None")
    return context
