"""Autoregressive conditioner: every variable is mapped as those before it decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..nn.masked import MaskedMLP
from ..solvers.mode import is_eager
from .core import FlowTransform
from .elementwise import check_univariate
from .univariate.base import Params, UnivariateMap


class Autoregressive(FlowTransform):
    r"""Autoregressive layer :math:`y_i = u(x_i; g_i(x_{<i}, c))` with a masked perceptron :math:`g` that starts at zero.

    :math:`\log|\det \partial y/\partial x| = \sum_i \log|du/dx_i|`. The forward direction is one pass. The inverse is found in parallel
    sweeps :math:`x \leftarrow u^{-1}(y; g(x, c))`: each fixes at least one more variable, so D suffice, and fewer usually do. Its
    gradient is implicit, :math:`dx = J^{-1}(dy - \partial_\theta y\,d\theta)`, without a graph of the sweeps; it is of first order.

    References:
        Papamakarios, Pavlakou, Murray (2017), *Masked autoregressive flow for density estimation*, https://arxiv.org/abs/1705.07057;
        Kingma et al. (2016), *Improving variational inference with inverse autoregressive flow*, https://arxiv.org/abs/1606.04934;
        Song, Meng, Ermon (2021), *Accelerating feedforward computation via parallel nonlinear equation solving*,
        https://arxiv.org/abs/2002.03629

    Args:
        input_dim: Number of variables D.
        univariate: The map :math:`u`.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the perceptron.
        order: Place of each variable in the order, a permutation of 0 … D-1, ``(D,)``.

    Raises:
        ValueError: If an argument is not as described.
        ArithmeticError: In the inverse, in eager mode, if the sweeps end in a number that is not finite for a finite input.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> layer = Autoregressive(3, Affine())
        >>> layer.inv(layer(torch.ones(3))).tolist()
        [1.0, 1.0, 1.0]
    """

    cheap_direction = "forward"
    inverse_kind = "solved"

    def __init__(
        self,
        input_dim: int,
        univariate: UnivariateMap,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        order: Tensor | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.univariate = check_univariate(univariate)
        self.conditioner = MaskedMLP(input_dim, univariate.param_count, context_dim, hidden_dims, order)

    def _params(self, x: Tensor, context: Tensor | None) -> Params:
        return self.univariate.split(self.conditioner(x, context))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = self.univariate.forward_and_log_det(x, self._params(x, context))
        return y, log_det.expand(y.shape).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not is_eager():  # no early stop and no custom gradient here: plain sweeps, differentiated as they are
            x = torch.zeros_like(y)
            for _ in range(self.input_dim):
                x, log_det = self.univariate.inverse_and_log_det(y, self._params(x, context))
            return x, log_det.expand(x.shape).sum(-1)
        x = self._sweep(y.detach(), context)
        if torch.is_grad_enabled():
            x = self._attach(x, y, context)
        log_det = self.univariate.forward_and_log_det(x, self._params(x, context))[1]
        return x, -log_det.expand(x.shape).sum(-1)

    @torch.no_grad()
    def _sweep(self, y: Tensor, context: Tensor | None) -> Tensor:
        x = torch.zeros_like(y)
        tolerance = 4 * torch.finfo(y.dtype).eps
        for _ in range(self.input_dim):
            previous, x = x, self.univariate.inverse_and_log_det(y, self._params(x, context))[0]
            if bool(((x - previous).abs() <= tolerance * (1 + x.abs())).all()):
                break
        if not bool((torch.isfinite(x) | ~torch.isfinite(y)).all()):
            raise ArithmeticError(
                f"{type(self).__name__}: the inverse of a finite input is not finite; its layers scale too strongly for "
                f"{y.dtype}: use float64, or fewer or less bounded layers"
            )
        return x

    def _attach(self, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        """Give the solution ``x`` the gradient that the implicit function theorem says it has."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            linear = self.univariate.forward_and_log_det(at, self._params(at, context))
        slopes = linear[1].detach().expand(x.shape).exp()

        def transposed(v: Tensor) -> Tensor:
            return torch.autograd.grad(linear[0], at, v, retain_graph=True)[0]

        def solve(gradient: Tensor) -> Tensor:
            # Jᵀ v = gradient, J triangular: sweeps with its diagonal, exact after D of them.
            v = gradient / slopes
            tolerance = 4 * torch.finfo(v.dtype).eps
            for _ in range(self.input_dim - 1):
                step = (gradient - transposed(v)) / slopes
                v = v + step
                if bool((step.abs() <= tolerance * v.abs()).all()):
                    break
            return v

        residual = self.univariate.forward_and_log_det(x, self._params(x, context))[0] - y
        return x + _ImplicitStep.apply(residual, solve)  # type: ignore[no-untyped-call]


class _ImplicitStep(torch.autograd.Function):
    r"""Zero in value, :math:`-J^{-1}` of the residual in gradient."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.solve(gradient), None
