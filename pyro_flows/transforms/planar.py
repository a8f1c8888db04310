"""Planar flow: one hidden unit, with an inverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..solvers import sech_squared, tanh_root
from .context_parameters import ContextParameters
from .core import FlowTransform


class Planar(FlowTransform):
    r"""Planar map :math:`y = x + u' \tanh(w^\top x + b)`.

    :math:`\log|\det dy/dx| = \log(1 + c \, \mathrm{sech}^2(w^\top x + b))` with :math:`c = w^\top u'`. It is invertible
    for :math:`c > -1`, which :math:`u' = u \, \sigma(\operatorname{arsinh}(a/2))` with :math:`a = w^\top u` ensures:
    then :math:`1 + c = e^{\operatorname{arsinh}(a/2)}` for every :math:`u` and :math:`w`. Compared with the published
    correction along :math:`w / |w|^2`, nothing is singular at :math:`w = 0`, :math:`u = 0` is exactly the identity, and
    :math:`1 + c` falls off as :math:`1/|a|`, not exponentially, which keeps the inverse well conditioned.

    The inverse solves one scalar equation, :math:`v + c \tanh v = w^\top y + b`, by safeguarded Newton; then
    :math:`x = y - u' \tanh v`. Its gradients go through the solution.

    References:
        Rezende, Mohamed (2015), *Variational inference with normalizing flows*, https://arxiv.org/abs/1505.05770

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        hidden_dims: Hidden layers of the network from the context to the offsets of :math:`u, w, b`.

    Raises:
        ValueError: If ``input_dim`` or ``context_dim`` is out of range.

    Example:
        >>> planar = Planar(2)
        >>> planar(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    cheap_direction = "forward"
    inverse_kind = "solved"

    def __init__(self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(input_dim, context_dim)
        self.params = ContextParameters(
            {
                "u": torch.zeros(input_dim),
                "w": torch.randn(input_dim) / input_dim**0.5,
                "b": torch.zeros(1),
            },
            context_dim,
            hidden_dims,
        )

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        u, w, b, c = self._constrained(context)
        v = (w * x).sum(-1, keepdim=True) + b
        return x + u * torch.tanh(v), torch.log1p(c * sech_squared(v)).squeeze(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        u, w, b, c = self._constrained(context)
        v = tanh_root(c, (w * y).sum(-1, keepdim=True) + b)
        return y - u * torch.tanh(v), -torch.log1p(c * sech_squared(v)).squeeze(-1)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, w, b = self.params(context)
        log_slope = torch.asinh(0.5 * (w * u).sum(-1, keepdim=True))
        return u * torch.sigmoid(log_slope), w, b, torch.expm1(log_slope)
