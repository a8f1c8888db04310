"""Unconstrained monotonic neural network: the integral of a positive network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...nn.arguments import check_positive
from ...nn.mlp import MLP
from .base import Params
from .raw_parameters import LOG_E_MINUS_1, aligned, along, check_bound, check_least_slope, soft_bound
from .solved import SolvedMap


class MonotonicNetwork(SolvedMap):
    r"""Unconstrained monotonic neural network :math:`y = c + \int_0^x g(t; h)\,dt` with a positive network :math:`g`; a line beyond
    :math:`[-B, B]`, with the slope of the network there.

    :math:`g = \epsilon + (1 - \epsilon) \operatorname{softplus}(h \cdot n(t, h) + \log(e - 1))` for a network :math:`n` that is
    shared by all variables, with weights of its own, and an embedding :math:`h` for each point, which the conditioner gives, softly
    bounded by 10; at :math:`h = 0` the map is a shift. The integral is Gauss-Legendre quadrature and the slope is the integrand:
    the two agree as far as the quadrature is right, to about 1e-6 with 32 nodes. The inverse is solved.

    References:
        Wehenkel, Louppe (2019), *Unconstrained monotonic neural networks*, https://arxiv.org/abs/1908.05164

    Args:
        embedding_dim: Size of the embedding :math:`h`.
        hidden_dims: Hidden layers of the network.
        num_nodes: Nodes of the quadrature.
        bound: The bound B. Must be positive.
        min_slope: The least slope :math:`\epsilon`. Between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> u = MonotonicNetwork(2)
        >>> y, _ = u.forward_and_log_det(torch.tensor([1.0, 30.0]), (torch.zeros(2), torch.zeros(2, 2)))
        >>> torch.allclose(y, torch.tensor([1.0, 30.0]))
        True
    """

    def __init__(
        self,
        embedding_dim: int = 8,
        hidden_dims: Sequence[int] = (32, 32),
        num_nodes: int = 32,
        bound: float = 6.0,
        min_slope: float = 1e-3,
    ) -> None:
        super().__init__()
        check_positive(embedding_dim=embedding_dim, num_nodes=num_nodes)
        check_bound(bound)
        check_least_slope(min_slope)
        self.embedding_dim, self.bound, self.min_slope = embedding_dim, bound, min_slope
        self.param_shapes = ((), (embedding_dim,))
        self.network = MLP(1 + embedding_dim, embedding_dim, hidden_dims)
        nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
        # No buffers, which would lose digits when a module changes its dtype.
        self._nodes, self._weights = [*(0.5 + 0.5 * nodes).tolist(), 1.0], (0.5 * weights).tolist()

    def extra_repr(self) -> str:
        return f"embedding_dim={self.embedding_dim}, num_nodes={len(self._weights)}, bound={self.bound}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        shift, embedding = params
        inside = x.clamp(-self.bound, self.bound)
        embedding = soft_bound(aligned(embedding, x)).expand(-1, *x.shape)
        # The nodes of the integral from 0 to each point, and the point itself.
        at = along(x.new_tensor(self._nodes), x[None]) * (inside / self.bound)
        integrand = self._integrand(at, embedding)
        slope = integrand[-1]
        integral = inside * (along(x.new_tensor(self._weights), x[None]) * integrand[:-1]).sum(0)
        return shift + integral + slope * (x - inside), slope.log()

    def _integrand(self, u: Tensor, embedding: Tensor) -> Tensor:
        """Of ``u`` ``(Q, *)`` and embeddings ``(E, *)``: ``(Q, *)``."""
        inputs = torch.cat([u[None], embedding[:, None].expand(-1, *u.shape)]).movedim(0, -1)
        weighted = (self.network(inputs) * inputs[..., 1:]).sum(-1)
        return self.min_slope + (1 - self.min_slope) * F.softplus(weighted + LOG_E_MINUS_1)
