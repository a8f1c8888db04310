"""Univariate maps whose inverse is found by a solver."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.solvers import bracketed_newton, is_eager

from .base import Params, UnivariateMap

#: Log of e - 1, of which the softplus is 1.
LOG_E_MINUS_1 = 0.541324854612918


class SolvedMap(UnivariateMap):
    r"""A map whose inverse is the root of :math:`u(x; p) = y`, by bracketed Newton steps and with implicit gradients.

    A subclass writes ``forward_and_log_det``, which must increase and reach every number.

    Example:
        >>> from pyro_flows.transforms.univariate import DeepSigmoid
        >>> DeepSigmoid().inverse_kind
        'solved'
    """

    inverse_kind = "solved"

    def inverse_and_log_det(self, y: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = self.forward_and_log_det(x, params)
            return value, log_slope.exp()

        x = bracketed_newton(
            value_and_slope, y, y.detach(), residual_tolerance=torch.finfo(y.dtype).eps, max_iterations=most_iterations()
        )
        return x, -self.forward_and_log_det(x, params)[1]


def most_iterations() -> int:
    """Iterations of a solver: outside of eager mode all of them are made and unrolled, and some twelve are enough nearly always.

    Example:
        >>> most_iterations()
        100
    """
    return 100 if is_eager() else 30


def gains(count: int) -> Tensor:
    """Factors of alternating signs and different sizes, by which units that start alike become different.

    Example:
        >>> gains(3)
        tensor([ 0.5000, -1.0000,  1.5000])
    """
    return torch.linspace(0.5, 1.5, count) * (1 - 2 * (torch.arange(count) % 2))


def aligned(parameter: Tensor, x: Tensor) -> Tensor:
    """Parameters ``(K, *)`` with dimensions of size one behind the first, so that their ``*`` broadcasts against points.

    Example:
        >>> aligned(torch.zeros(2, 4), torch.zeros(3, 5, 4)).shape
        torch.Size([2, 1, 1, 4])
    """
    missing = x.dim() + 1 - parameter.dim()
    return parameter.reshape(parameter.shape[0], *(1,) * missing, *parameter.shape[1:]) if missing > 0 else parameter


def along(values: Tensor, like: Tensor) -> Tensor:
    """A vector ``(K,)`` as a factor of parameters ``(K, *)``.

    Example:
        >>> along(torch.ones(2), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    return values.reshape(-1, *(1,) * (like.dim() - 1))
