"""Network that is convex in its input, with gradient and Hessian in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .arguments import check_hidden_dims, check_positive
from .mlp import MLP
from .recorded import Recorded

_GAIN = 15.0

#: Gradient ``(*, D)`` of a potential, and its Hessian ``(*, D, D)`` or None.
GradientAndHessian = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]


class ConvexNetwork(Recorded, nn.Module):
    r"""Input-convex network, strongly convex by a quadratic term.

    .. math:: \varphi(x; c) = u^\top z_L + t^\top x + \tfrac{\alpha}{2} |x|^2,\quad
        z_l = s(a_l),\quad a_{l+1} = U_l z_l + W_{l+1} x + b_{l+1}(c)

    with the softplus s, entries of U and u that are not negative, and :math:`\alpha > 0`. It starts close to :math:`|x|^2 / 2`.

    References:
        Amos, Xu, Kolter (2017), *Input convex neural networks*, https://arxiv.org/abs/1609.07152

    Args:
        dim: Number of variables D.
        context_dim: Size of the context, which adds to the biases and to t; 0 for none.
        hidden_dims: Widths of the hidden layers, at least one.
        min_convexity: Least α. Between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> gradient, hessian = ConvexNetwork(3).at(None)(torch.zeros(5, 3), True)
        >>> hessian.shape
        torch.Size([5, 3, 3])
    """

    def __init__(
        self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64), *, min_convexity: float = 1e-3
    ) -> None:
        super().__init__()
        check_positive(input_dim=dim)
        hidden = check_hidden_dims(hidden_dims)
        if not hidden:
            raise ValueError("hidden_dims must hold one width at least, got none")
        if not 0 < min_convexity < 1:
            raise ValueError(f"min_convexity must be between 0 and 1, got {min_convexity}")
        self.dim, self.context_dim, self.min_convexity = dim, context_dim, min_convexity
        self.of_input = nn.ParameterList(nn.Parameter(torch.randn(width, dim) / math.sqrt(dim)) for width in hidden)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(width).uniform_(-2.0, 2.0)) for width in hidden)
        self.raw_between = nn.ParameterList(
            nn.Parameter(torch.randn(b, a) / _GAIN) for a, b in zip(hidden, hidden[1:], strict=False)
        )
        self.raw_last = nn.Parameter(torch.zeros(hidden[-1]))
        self.linear = nn.Parameter(torch.zeros(dim))
        self.raw_convexity = nn.Parameter(torch.zeros(()))
        self.sizes = [*hidden, dim]
        self.of_context = MLP(context_dim, sum(self.sizes), (64,), zero_init=True) if context_dim else None

    def extra_repr(self) -> str:
        return f"{self.dim}, context_dim={self.context_dim}, hidden_dims={tuple(self.sizes[:-1])}"

    def at(self, context: Tensor | None) -> GradientAndHessian:
        """Gradient and Hessian at a context ``(*, context_dim)``; the Hessian on request."""
        softplus = nn.functional.softplus
        between = [softplus(_GAIN * raw - 1.0) / raw.shape[1] for raw in self.raw_between]
        # Raw parameters have gains, so that training at ordinary step sizes moves them by orders of magnitude.
        last = softplus(_GAIN * self.raw_last - 4.0) / math.sqrt(len(self.raw_last))
        # 1 at the start, and above the least.
        alpha = self.min_convexity + (1 - self.min_convexity) * softplus(self.raw_convexity, beta=math.log(2))
        told: list[Tensor] = [*self.biases, self.linear]
        if self.of_context is not None:
            told = [own + more for own, more in zip(told, self.of_context(context).split(self.sizes, -1), strict=True)]

        def gradient_and_hessian(x: Tensor, with_hessian: bool) -> tuple[Tensor, Tensor | None]:
            slopes: list[Tensor] = []
            tangents: list[Tensor] = []
            z = x
            for i, (weight, bias) in enumerate(zip(self.of_input, told[:-1], strict=True)):
                a = x @ weight.mT + bias
                if i:
                    a = a + z @ between[i - 1].mT
                if with_hessian:
                    of_x = weight.expand(*x.shape[:-1], -1, -1)
                    tangents.append(of_x if not i else of_x + between[i - 1] @ (slopes[-1][..., None] * tangents[-1]))
                slopes.append(a.sigmoid())
                z = softplus(a)
            of_unit = last.expand(slopes[-1].shape)
            gradient = told[-1] + alpha * x
            hessian = alpha * torch.eye(self.dim, dtype=x.dtype, device=x.device) if with_hessian else None
            for i in range(len(slopes) - 1, -1, -1):
                of_sum = of_unit * slopes[i]
                gradient = gradient + of_sum @ self.of_input[i]
                if hessian is not None:
                    curved = (of_sum * (1 - slopes[i]))[..., None] * tangents[i]
                    hessian = hessian + tangents[i].mT @ curved
                if i:
                    of_unit = of_sum @ between[i - 1]
            return gradient, hessian

        return gradient_and_hessian
