"""Radial flow: a pull towards, or a push from, one point, with its inverse in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .context_parameters import ContextParameters
from .core import FlowTransform


class Radial(FlowTransform):
    r"""Radial map :math:`y = x + \frac{\beta}{\alpha + r} (x - x_0)` with :math:`r = |x - x_0|`.

    With :math:`\rho = r / \alpha` and the slope :math:`e = 1 + \beta / \alpha` at the centre,
    :math:`\log|\det dy/dx| = (D - 1) \log\left(1 + \frac{e - 1}{1 + \rho}\right) +
    \log\left(1 + \frac{e - 1}{(1 + \rho)^2}\right)`. It is invertible for :math:`\alpha > 0` and :math:`e > 0`; here
    :math:`\alpha = e^{a}` and :math:`e = e^{\operatorname{arsinh}(b/2)}` for free :math:`a, b`; :math:`b = 0` is the
    identity.

    The inverse is closed: the scaled radius of :math:`y`, :math:`P = \rho (e + \rho) / (1 + \rho)`, makes a quadratic
    equation of :math:`\rho`.

    References:
        Rezende, Mohamed (2015), *Variational inference with normalizing flows*, https://arxiv.org/abs/1505.05770

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        hidden_dims: Hidden layers of the network from the context to the offsets of :math:`x_0, a, b`.

    Raises:
        ValueError: If ``input_dim`` or ``context_dim`` is out of range.

    Example:
        >>> radial = Radial(2)
        >>> radial(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    def __init__(self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(input_dim, context_dim)
        self.params = ContextParameters(
            {
                "center": torch.randn(input_dim) / input_dim**0.5,
                "log_alpha": torch.zeros(1),
                "beta": torch.zeros(1),
            },
            context_dim,
            hidden_dims,
        )

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        center, log_alpha, excess = self._constrained(context)
        offset = x - center
        rho = torch.linalg.vector_norm(offset, dim=-1, keepdim=True) * (-log_alpha).exp()
        y = x + excess / (1.0 + rho) * offset
        return y, self._log_det(rho, excess)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        center, log_alpha, excess = self._constrained(context)
        offset = y - center
        size = torch.linalg.vector_norm(offset, dim=-1, keepdim=True) * (-log_alpha).exp()
        slope = 1.0 + excess
        # rho^2 + (slope - size) rho - size = 0; of its two forms the one that does not cancel.
        gap = size - slope
        total = gap.abs() + torch.sqrt(gap * gap + 4.0 * size)
        rho = torch.where(gap > 0, 0.5 * total, 2.0 * size / total)
        x = y - excess / (slope + rho) * offset
        return x, -self._log_det(rho, excess)

    def _log_det(self, rho: Tensor, excess: Tensor) -> Tensor:
        ratio = excess / (1.0 + rho)
        log_det = (self.input_dim - 1) * torch.log1p(ratio) + torch.log1p(ratio / (1.0 + rho))
        return log_det.squeeze(-1)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        center, log_alpha, beta = self.params(context)
        return center, log_alpha, torch.expm1(torch.asinh(0.5 * beta))
