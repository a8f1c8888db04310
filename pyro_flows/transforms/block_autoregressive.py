"""Block neural autoregressive flow: a masked network whose output increases in its own variable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.arguments import check_positive
from ..nn.masked import check_order
from ..solvers import bracketed_newton, most_iterations, sech_squared
from .core import FlowTransform


class BlockAutoregressive(FlowTransform):
    r"""Block neural autoregressive layer :math:`y = x + e^{g} f(x)`, where :math:`f_i` is a network of :math:`x_1, \dots, x_i` that
    increases in :math:`x_i`.

    The network has ``hidden_factor`` units per variable in each hidden layer. Its matrices are lower triangular in blocks of a
    variable each, and the blocks on the diagonal are positive, :math:`e^W`; rows are normalised, :math:`e^{s}\, w / |w|`. The
    activation :math:`\alpha t + (1 - \alpha) \tanh t` increases and has no bound, so that the image is all of :math:`R^D`, which
    that of a bare tanh is not. :math:`\log|\det \partial y/\partial x| = \sum_i \log \partial y_i / \partial x_i`, a product of
    diagonal blocks that is computed from logarithms. The inverse is solved variable by variable, by bracketed Newton steps with
    implicit gradients.

    References:
        De Cao, Titov, Aziz (2019), *Block neural autoregressive flow*, https://arxiv.org/abs/1904.04676

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context, which enters the first layer; 0 for none.
        hidden_factor: Units per variable in each hidden layer.
        num_hidden: Number of hidden layers.
        leak: Least slope :math:`\alpha` of the activation. Between 0 and 1.
        order: Place of each variable in the order, a permutation of 0 … D-1; by default their own.

    Raises:
        ValueError: If an argument is not as described.
        ArithmeticError: In the inverse, in eager mode, if it is not found. Elsewhere it is NaN.

    Example:
        >>> layer = BlockAutoregressive(2)
        >>> x = torch.tensor([1.0, -2.0])
        >>> torch.allclose(layer.inv(layer(x)), x, atol=1e-5)
        True
    """

    cheap_direction = "forward"
    inverse_kind = "solved"

    order: Tensor
    place: Tensor

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        hidden_factor: int = 8,
        num_hidden: int = 1,
        leak: float = 0.1,
        order: Tensor | Sequence[int] | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim)
        check_positive(hidden_factor=hidden_factor, num_hidden=num_hidden)
        if not 0 < leak < 1:
            raise ValueError(f"leak must be between 0 and 1, got {leak}")
        places = check_order(input_dim, order)
        self.leak = leak
        self.register_buffer("place", torch.tensor(places))
        self.register_buffer("order", torch.tensor(sorted(range(input_dim), key=places.__getitem__)))
        sizes = [1, *[hidden_factor] * num_hidden, 1]
        self.blocks = nn.ModuleList(_BlockLinear(input_dim, inner, outer) for inner, outer in zip(sizes, sizes[1:], strict=False))
        self.of_context = nn.Linear(context_dim, input_dim * hidden_factor, bias=False) if context_dim else None
        self.log_gate = nn.Parameter(torch.full((input_dim,), -6.0))

    def extra_repr(self) -> str:
        return f"hidden_layers={len(self.blocks) - 1}, leak={self.leak}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slopes = self._map(x[..., self.order], self._shift(context))
        return y[..., self.place], log_slopes.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, target = self._shift(context), y[..., self.order]
        found: list[Tensor] = []
        for i in range(self.input_dim):
            rest = [torch.zeros_like(target[..., 0])] * (self.input_dim - i - 1)

            def value_and_slope(t: Tensor, i: int = i, rest: list[Tensor] = rest) -> tuple[Tensor, Tensor]:
                value, log_slope = self._map(torch.stack([*found, t, *rest], -1), shift)
                return value[..., i], log_slope[..., i].exp()

            at = target[..., i]
            found.append(
                bracketed_newton(value_and_slope, at, at.detach(), residual_tolerance=_noise(y), max_iterations=most_iterations())
            )
        x = torch.stack(found, -1)
        return x[..., self.place], -self._map(x, shift)[1].sum(-1)

    def _shift(self, context: Tensor | None) -> Tensor | None:
        return None if self.of_context is None or context is None else self.of_context(context)

    def _map(self, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values and log-slopes ``(*, D)`` of variables in their order."""
        h, log_slope = x, torch.zeros_like(x).unsqueeze(-1)
        for i, block in enumerate(self.blocks):
            if i:
                log_slope = log_slope + self._log_slope_of_activation(h).unflatten(-1, (self.input_dim, -1))
                h = self.leak * h + (1 - self.leak) * h.tanh()
            h, log_slope = block(h, log_slope)
            if i == 0 and shift is not None:
                h = h + shift
        # The slope of the sum, 1 + e^gate f'.
        return x + self.log_gate.exp() * h, F.softplus(self.log_gate + log_slope.squeeze(-1))

    def _log_slope_of_activation(self, t: Tensor) -> Tensor:
        return (self.leak + (1 - self.leak) * sech_squared(t)).log()


def _noise(y: Tensor) -> float:
    return 4 * torch.finfo(y.dtype).eps


class _BlockLinear(nn.Module):
    """Linear map of D blocks, lower triangular in blocks, with positive blocks on the diagonal and normalised rows."""

    on: Tensor
    below: Tensor

    def __init__(self, dim: int, inner: int, outer: int) -> None:
        super().__init__()
        self.dim, self.inner, self.outer = dim, inner, outer
        rows, columns = torch.arange(dim).repeat_interleave(outer)[:, None], torch.arange(dim).repeat_interleave(inner)[None, :]
        self.register_buffer("on", rows == columns)
        self.register_buffer("below", rows > columns)
        weight = torch.randn(dim * outer, dim * inner) / (dim * inner) ** 0.5
        self.weight = nn.Parameter(torch.where(self.on, 0.5 * torch.randn_like(weight) - math.log(inner) / 2, weight))
        self.log_norm = nn.Parameter(torch.zeros(dim * outer))
        self.bias = nn.Parameter(torch.linspace(-1.0, 1.0, outer).repeat(dim) if outer > 1 else torch.zeros(dim))

    def forward(self, h: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``h`` ``(*, D inner)`` and log-slopes ``(*, D, inner)`` by the own variable: the same of what comes out."""
        entries = torch.where(self.on, self.weight.exp(), self.weight * self.below)
        log_norm = self.log_norm - entries.square().sum(1).log() / 2
        out = h @ (entries * log_norm.exp()[:, None]).mT + self.bias
        blocks = (self.weight + log_norm[:, None]).unflatten(0, (self.dim, self.outer)).unflatten(2, (self.dim, self.inner))
        own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (D, outer, inner)
        return out, torch.logsumexp(own + log_slope.unsqueeze(-2), -1)
