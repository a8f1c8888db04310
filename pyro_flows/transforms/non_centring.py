"""Fixed map from standardised to actual effects, whose location and scale are other variables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .core import FlowTransform

#: Largest absolute log-scale; what is beyond has no place in single precision.
BOUND = 20.0


class NonCentring(FlowTransform):
    r"""Fixed map from standardised to actual effects of a hierarchy, by the conditional posterior of normal effects.

    In a hierarchical model the effects have a prior whose location and scale are latents themselves, such as :math:`\theta_j \sim
    N(\mu, \tau^2)`: there :math:`(\mu, \log\tau, \theta)` is a funnel, whose neck the data close more or less. With location
    :math:`m = b + B y` and log-scale :math:`s = c + C y`, linear in earlier variables, and data that say :math:`d_i` with a
    precision of :math:`P_i`,

    .. math:: y_i = \lambda_i m_i + (1 - \lambda_i) d_i + \sqrt{\lambda_i}\, e^{s_i} x_i, \quad \lambda_i = 1 / (1 + P_i e^{2 s_i}),

    which takes a standard normal :math:`x` to what these say of the effects together. Without data (:math:`P = 0`) it is the
    non-centred parametrisation :math:`y = m + e^s x`; for variables that are no effects, all are 0 and :math:`y = x`.

    :math:`\log|\det \partial y/\partial x| = \sum_i s_i + \frac12 \log\lambda_i`. The inverse is one pass, the forward direction as
    many as the hierarchy has levels. All six are buffers: nothing is learned, everything is saved. Log-scales are held between -20
    and 20.

    Args:
        loc_bias: :math:`b`, ``(D,)``.
        loc_weight: :math:`B`, ``(D, D)``, strictly lower triangular.
        log_scale_bias: :math:`c`, ``(D,)``.
        log_scale_weight: :math:`C`, ``(D, D)``, strictly lower triangular.
        precision: :math:`P`, ``(D,)``, not negative; zero if None.
        centre: :math:`d`, ``(D,)``; zero if None.

    Raises:
        ValueError: If a shape does not fit, an entry is not finite, a precision is negative, or a matrix is not strictly lower
            triangular.

    References:
        Papaspiliopoulos, Roberts, Sköld (2007), *A general framework for the parametrization of hierarchical models*,
        https://arxiv.org/abs/0708.3797;
        Gorinova, Moore, Hoffman (2020), *Automatic reparameterisation of probabilistic programs*, https://arxiv.org/abs/1906.03028

    Example:
        >>> log_scale = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> funnel = NonCentring(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2), log_scale)
        >>> funnel(torch.tensor([2.0, 1.0]))
        tensor([2.0000, 7.3891])
    """

    loc_bias: Tensor
    loc_weight: Tensor
    log_scale_bias: Tensor
    log_scale_weight: Tensor
    precision: Tensor
    centre: Tensor

    def __init__(
        self,
        loc_bias: Tensor,
        loc_weight: Tensor,
        log_scale_bias: Tensor,
        log_scale_weight: Tensor,
        precision: Tensor | None = None,
        centre: Tensor | None = None,
    ) -> None:
        if loc_bias.dim() != 1:
            raise ValueError(f"loc_bias must have shape (D,), got {tuple(loc_bias.shape)}")
        super().__init__(loc_bias.shape[0])
        dim = self.input_dim
        given = {
            "loc_bias": (loc_bias, (dim,)),
            "loc_weight": (loc_weight, (dim, dim)),
            "log_scale_bias": (log_scale_bias, (dim,)),
            "log_scale_weight": (log_scale_weight, (dim, dim)),
            "precision": (torch.zeros_like(loc_bias) if precision is None else precision, (dim,)),
            "centre": (torch.zeros_like(loc_bias) if centre is None else centre, (dim,)),
        }
        for name, (value, shape) in given.items():
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
            if value.dtype != loc_bias.dtype or not value.is_floating_point():
                raise ValueError(
                    f"{name} must be of one floating-point dtype with loc_bias, got {value.dtype} and {loc_bias.dtype}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity")
            if len(shape) == 2 and bool(value.triu().any()):
                raise ValueError(f"{name} must be strictly lower triangular: a variable may depend on earlier ones alone")
            self.register_buffer(name, value.detach().clone())
        if bool((self.precision < 0).any()):
            raise ValueError(f"precision must not be negative, got {self.precision.min().item()}")
        self.depth = _depth((loc_weight != 0) | (log_scale_weight != 0))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.depth = _depth((self.loc_weight != 0) | (self.log_scale_weight != 0))

    def extra_repr(self) -> str:
        return f"depth={self.depth}"

    def _location_and_log_scale(self, y: Tensor) -> tuple[Tensor, Tensor]:
        prior_loc = self.loc_bias + y @ self.loc_weight.mT
        prior_log_scale = (self.log_scale_bias + y @ self.log_scale_weight.mT).clamp(-BOUND, BOUND)
        prior_over_data = -(self.precision.log() + 2 * prior_log_scale)
        share = prior_over_data.sigmoid()
        return share * prior_loc + (1 - share) * self.centre, prior_log_scale + 0.5 * nn.functional.logsigmoid(prior_over_data)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = x
        for _ in range(self.depth + 1):  # the first pass is right for those that depend on none, the second on these, ...
            loc, log_scale = self._location_and_log_scale(y)
            y = loc + log_scale.exp() * x
        return y, log_scale.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._location_and_log_scale(y)
        return (y - loc) * (-log_scale).exp(), -log_scale.sum(-1)


def _depth(parents: Tensor) -> int:
    """Number of edges of the longest path in a graph whose nodes follow their parents."""
    levels: list[int] = []
    for row in parents.cpu():
        levels.append(max((levels[j] + 1 for j in row.nonzero().flatten().tolist()), default=0))
    return max(levels)
