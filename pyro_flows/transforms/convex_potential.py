"""Gradient of a convex potential."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..nn.convex import ConvexNetwork, GradientAndHessian
from ..solvers import damped_newton, log_det_near_one
from .core import FlowTransform


class ConvexPotential(FlowTransform):
    r"""Gradient map :math:`y = \nabla \varphi(x; c)` of a strongly convex potential (a Brenier map).

    :math:`\log|\det \partial y/\partial x| = \log\det \nabla^2 \varphi`, of a Hessian in closed form, in :math:`O(D^3)`. Between
    two densities there is one such map, the optimal transport of squared distances. The inverse minimises
    :math:`\varphi(x) - x^\top y` by damped Newton steps, with implicit gradients, and raises where it does not converge.

    References:
        Huang, Chen, Tsirigotis, Courville (2021), *Convex potential flows*, https://arxiv.org/abs/2012.05942;
        Finlay, Gerolin, Oberman, Pooladian (2020), *Learning normalizing flows from entropy-Kantorovich potentials*,
        https://arxiv.org/abs/2006.06033

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Widths of the hidden layers of the potential, at least one.
        min_convexity: Least curvature of the quadratic term. Between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> flow = ConvexPotential(2)
        >>> torch.allclose(flow.inv(flow(torch.ones(2))), torch.ones(2), atol=1e-5)
        True
    """

    inverse_kind = "solved"
    cheap_direction = "forward"

    def __init__(
        self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64), min_convexity: float = 1e-3
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.potential = ConvexNetwork(input_dim, context_dim, hidden_dims, min_convexity=min_convexity)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        return self._mapped(self.potential.at(context), x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        map_ = self.potential.at(context)
        x = damped_newton(lambda x: map_(x, True), y, y.detach(), value=lambda x: map_(x, False)[0])  # type: ignore[arg-type, return-value]
        return x, -self._mapped(map_, x)[1]

    def _mapped(self, map_: GradientAndHessian, x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, hessian = map_(x, True)
        eye = torch.eye(self.input_dim, dtype=x.dtype, device=x.device)
        return gradient, log_det_near_one(hessian - eye)  # type: ignore[operator]
