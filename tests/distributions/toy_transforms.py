"""Small transforms whose laws are plain, and that count their passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_flows.transforms.core import FlowTransform


class Triangular(FlowTransform):
    """y = A x + b with lower triangular A of positive diagonal; given a context c, b + M c instead of b."""

    def __init__(self, input_dim: int, context_dim: int = 0, *, seed: int = 1) -> None:
        super().__init__(input_dim, context_dim)
        generator = torch.Generator().manual_seed(seed)
        self.shift = nn.Parameter(torch.randn(input_dim, generator=generator))
        self.lower = nn.Parameter(torch.randn(input_dim, input_dim, generator=generator))
        self.weight = nn.Parameter(torch.randn(input_dim, context_dim, generator=generator))
        self.passes = {"forward": 0, "inverse": 0}

    @property
    def matrix(self) -> Tensor:
        return self.lower.tril(-1) + torch.diag_embed(self.lower.diagonal().exp())

    def location(self, context: Tensor | None) -> Tensor:
        return self.shift if context is None else self.shift + context @ self.weight.mT

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.passes["forward"] += 1
        log_det = self.lower.diagonal().sum().expand(x.shape[:-1])
        return x @ self.matrix.mT + self.location(context), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.passes["inverse"] += 1
        log_det = -self.lower.diagonal().sum().expand(y.shape[:-1])
        difference = (y - self.location(context)).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.matrix, difference, upper=False).squeeze(-1), log_det


class Cubic(FlowTransform):
    """x = y + y³ in every variable, whose density has no name: the inverse is plain, the forward way solves a cubic."""

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = 2 / 3**0.5 * torch.sinh(torch.asinh(1.5 * 3**0.5 * x) / 3)
        return y, -(1 + 3 * y.square()).log().sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y + y**3, (1 + 3 * y.square()).log().sum(-1)


class Exp(FlowTransform):
    """y = exp(x), onto the positive numbers."""

    codomain = torch.distributions.constraints.independent(torch.distributions.constraints.positive, 1)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.exp(), x.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.log(), -y.log().sum(-1)
