"""A conditional flow on what a regression leaves: exact where the posterior is a truncated linear Gaussian."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .affine_tril import AffineTril
from .core import FlowTransform
from .truncated_regression import TruncatedRegression


class RegressionFlow(FlowTransform):
    r"""Truncated regression of the values on the context, with a flow in its residuals.

    :math:`y = r(L\,f(x; c, o(c)) + b; c)` with a conditional flow :math:`f`, an affine map that correlates the residuals, and a
    :class:`~pyro_flows.transforms.TruncatedRegression` :math:`r`. The flow sees the context, and the masses :math:`o(c)` of the
    regression outside each bound, which say in the posterior's own scale how near the edges it lies.

    :meth:`initialize` sets everything but the flow by likelihood. If the flow is at the identity, what starts training is the best
    linear Gaussian, truncated; it is the posterior itself for linear Gaussian models with a normal or a uniform prior.

    Args:
        flow: The flow :math:`f`, whose ``context_dim`` is that of the regression and ``regression.num_outside`` more.
        regression: The map :math:`r`.

    Raises:
        ValueError: If the dimensions do not fit.

    Example:
        >>> from pyro_flows import flows
        >>> regression = TruncatedRegression(torch.zeros(2), torch.ones(2), context_dim=3)
        >>> flow = RegressionFlow(flows.nsf_coupling(2, 3 + regression.num_outside), regression)
        >>> flow.condition(torch.zeros(5, 3)).forward_shape((2,))
        torch.Size([5, 2])
    """

    def __init__(self, flow: FlowTransform, regression: TruncatedRegression) -> None:
        if flow.input_dim != regression.input_dim:
            raise ValueError(f"flow has {flow.input_dim} variables and the regression {regression.input_dim}; they must agree")
        expected = regression.context_dim + regression.num_outside
        if flow.context_dim != expected:
            raise ValueError(
                f"flow has context_dim={flow.context_dim}, expected {expected}: {regression.context_dim} of the regression, and "
                f"{regression.num_outside} for its bounds"
            )
        super().__init__(flow.input_dim, regression.context_dim)
        self.flow, self.correlation, self.regression = flow, AffineTril(flow.input_dim).to(regression.bias), regression
        self.codomain = regression.codomain
        self.inverse_kind, self.cheap_direction, self.accuracy = flow.inverse_kind, flow.cheap_direction, flow.accuracy
        self.log_det_kind, self.log_det_costs = flow.log_det_kind, flow.log_det_costs

    def told(self, context: Tensor | None) -> Tensor | None:
        """What the flow is told of a context ``(*, C)``: that, and the masses outside each bound."""
        if not self.regression.num_outside:
            return context
        outside = self.regression.outside(context)
        return outside if context is None else torch.cat([context, outside], -1)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, first = self.flow.forward_and_log_det(x, self.told(context))
        x, second = self.correlation.forward_and_log_det(x)
        x, third = self.regression.forward_and_log_det(x, context)
        return x, first + second + third

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, outer = self.residuals(y, context)
        y, inner = self.flow.inverse_and_log_det(y, self.told(context))
        return y, inner + outer

    def residuals(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the regression leaves of values ``(*, D)``, the values of the flow, and the log-determinant ``(*)``."""
        y, outer = self.regression.inverse_and_log_det(y, context)
        y, inner = self.correlation.inverse_and_log_det(y)
        return y, inner + outer

    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set the regression, and then the correlation of its residuals, by likelihood; the flow stays as it is.

        Args:
            y: Values, ``(N, D)``.
            context: Their contexts, ``(N, C)``.

        Raises:
            ValueError: If there are too few rows.

        Example:
            >>> from pyro_flows import flows
            >>> regression = TruncatedRegression(torch.full((2,), -torch.inf), torch.full((2,), torch.inf), 1)
            >>> c = torch.randn(200, 1)
            >>> RegressionFlow(flows.nsf_coupling(2, 1), regression).initialize(c + torch.randn(200, 2), c)
        """
        y, context = y.detach(), None if context is None else context.detach()
        self.regression.initialize(y, context)
        with torch.no_grad():
            self.correlation.initialize(self.regression.inverse_and_log_det(y, context)[0])
        single = nn.ModuleList([self.regression, self.correlation])
        single.load_state_dict(_climbed(single, y.double(), None if context is None else context.double()).state_dict())


@torch.enable_grad()
def _climbed(start: nn.ModuleList, y: Tensor, context: Tensor | None) -> nn.ModuleList:
    """Regression and correlation of greatest likelihood together, from a start, in float64."""
    trial = copy.deepcopy(start).double()
    regression, correlation = trial
    optimiser = torch.optim.LBFGS(trial.parameters(), max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        x, first = regression.inverse_and_log_det(y, context)  # type: ignore[operator]
        x, second = correlation.inverse_and_log_det(x)  # type: ignore[operator]
        return (0.5 * x.square().sum(-1) - first - second).mean()

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    before, kept = float(loss().detach()), copy.deepcopy(trial.state_dict())
    optimiser.step(closure)
    if not float(loss().detach()) <= before:  # worse, or NaN
        trial.load_state_dict(kept)
    return trial
