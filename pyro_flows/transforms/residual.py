"""Invertible residual layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..nn.contractive import Contraction, ContractiveNetwork
from ..solvers import damped_newton, fixed_point, log_det_near_one
from .core import FlowTransform

#: Number of variables up to which the Jacobian is a matrix unless told otherwise.
_SMALL = 64
_STOP = 0.5  # probability that a series goes on no further, after each term


class Residual(FlowTransform):
    r"""Residual layer :math:`y = x + g(x; c)`, invertible because g, or what it is made of, contracts.

    With a :class:`~pyro_flows.nn.LipschitzNetwork` it is that of invertible residual networks and residual flows, with a
    :class:`~pyro_flows.nn.ProximalNetwork` that of proximal residual flows. For :math:`g = s\,x + h(x)`,

    .. math:: \log|\det \partial y/\partial x| = D \log(1 + s) + \log\det\big(I + J\big), \quad
        J = \frac{1}{1 + s} \frac{\partial h}{\partial x},

    exactly, of a Jacobian in closed form, or estimated without bias by the series

    .. math:: \log\det(I + J) = \mathrm{E} \sum_{k=1}^{n} \frac{(-1)^{k+1}}{k\,P(n \ge k)} v^\top J^k v

    with normal v for each row and a random number n of terms (Russian roulette). Gradients of the estimate to weights and points
    are unbiased too and need the memory of one term. Estimated densities cannot weigh draws, so that ``diagnose`` refuses them.

    The inverse is solved, by Newton steps with the exact Jacobian or by fixed-point iteration, with implicit gradients, and raises
    where it does not converge.

    References:
        Behrmann et al. (2019), *Invertible residual networks*, https://arxiv.org/abs/1811.00995;
        Chen et al. (2019), *Residual flows for invertible generative modeling*, https://arxiv.org/abs/1906.02735;
        Hertrich (2023), *Proximal residual flows for Bayesian inverse problems*, https://arxiv.org/abs/2211.17158

    Args:
        network: The map g.
        log_det: ``"exact"``, ``"estimate"``, or ``"auto"``: exact for up to 64 variables.
        num_exact_terms: Terms of the series that are always summed.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> from pyro_flows.nn import LipschitzNetwork
        >>> layer = Residual(LipschitzNetwork(2))
        >>> layer.inv(layer(torch.ones(2))).tolist()
        [1.0, 1.0]
    """

    inverse_kind = "solved"
    cheap_direction = "forward"

    def __init__(
        self,
        network: ContractiveNetwork,
        *,
        log_det: Literal["auto", "exact", "estimate"] = "auto",
        num_exact_terms: int = 4,
    ) -> None:
        if not isinstance(network, ContractiveNetwork):
            raise ValueError(f"network must be a ContractiveNetwork, such as LipschitzNetwork(2), got {type(network).__name__}")
        super().__init__(network.dim, network.context_dim)
        if log_det not in ("auto", "exact", "estimate"):
            raise ValueError(f'log_det must be "auto", "exact" or "estimate", got {log_det!r}')
        if not isinstance(num_exact_terms, int) or num_exact_terms < 1:
            raise ValueError(f"num_exact_terms must be a positive integer, got {num_exact_terms!r}")
        self.network = network
        self.num_exact_terms = num_exact_terms
        exact = log_det == "exact" or (log_det == "auto" and self.input_dim <= _SMALL)
        self.log_det_kind = "exact" if exact else "estimate"

    def extra_repr(self) -> str:
        return f"log_det={self.log_det_kind!r}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        return self._mapped(self.network.at(context), x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        map_ = self.network.at(context)
        x = self._solved(map_, y)
        return x, -self._mapped(map_, x)[1]

    def _mapped(self, map_: Contraction, x: Tensor) -> tuple[Tensor, Tensor]:
        one = 1 + map_.linear
        if self.log_det_kind == "estimate":
            value = map_.apply(x, None)[0]
            series = self._estimate(map_, x, one)
        else:
            value, jacobian = map_.apply(x, _eye_like(x))
            series = log_det_near_one(jacobian / one)
        return one * x + value, series + self.input_dim * one.log()

    def _estimate(self, map_: Contraction, x: Tensor, one: Tensor) -> Tensor:
        """One draw of the series, with the gradient of another form of it, of the same mean."""
        more = int(torch.empty((), device="cpu").geometric_(_STOP)) - 1
        with torch.no_grad():
            v = torch.randn_like(x)[..., None]
            term, total, weighted = v, torch.zeros_like(x[..., 0]), v.clone()
            for k in range(1, self.num_exact_terms + more + 1):
                reached = (1 - _STOP) ** max(0, k - self.num_exact_terms)
                term = map_.apply(x, term)[1] / one
                total = total + (-1) ** (k + 1) / (k * reached) * (v * term).sum((-2, -1))
                weighted = weighted + (-1) ** k / reached * term
        # Of the series, d log det = tr((I + J)^-1 dJ) = E sum_k (-1)^k v' dJ J^k v.
        moved = map_.apply(x, weighted)[1] / one
        of_gradient = (v * moved).sum((-2, -1))
        return total + (of_gradient - of_gradient.detach())

    def _solved(self, map_: Contraction, y: Tensor) -> Tensor:
        one = 1 + map_.linear
        if self.log_det_kind == "estimate":

            def product(x: Tensor, v: Tensor) -> Tensor:
                with torch.enable_grad():
                    at = x.detach().requires_grad_()
                    (found,) = torch.autograd.grad(map_.apply(at, None)[0], at, -v / one)
                return found

            return fixed_point(lambda x: (y - map_.apply(x, None)[0]) / one, y.detach() / one.detach(), product=product)

        def value_and_jacobian(x: Tensor) -> tuple[Tensor, Tensor]:
            eye = _eye_like(x)
            value, jacobian = map_.apply(x, eye)
            return one * x + value, one * eye + jacobian

        return damped_newton(value_and_jacobian, y, y.detach(), value=lambda x: one * x + map_.apply(x, None)[0])


def _eye_like(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(*x.shape, -1)
