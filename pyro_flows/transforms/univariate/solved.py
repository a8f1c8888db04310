"""Univariate maps whose inverse is found by a solver."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.solvers import bracketed_newton, most_iterations

from .base import Params, UnivariateMap


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
