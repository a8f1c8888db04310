"""Flow matching: training of a continuous flow without solving it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_flows.distributions import FlowDistribution
from pyro_flows.transforms import CNF
from pyro_flows.transforms.supports import is_real

from .innermost import demand_innermost
from .same_noise import same_noise_in_evaluation

#: Rows that are paired at a time: the work grows with the third power of their number.
_PAIRED = 128
ProbabilityPath = Literal["linear", "variance_preserving", "optimal_transport"]


def flow_matching_loss(distribution: FlowDistribution, path: ProbabilityPath = "linear") -> Callable[..., Tensor]:
    r"""The loss of conditional flow matching for a density whose innermost layer is a continuous flow.

    .. math:: L = \mathrm{E}\,\big\lVert v(t, x_t; c) - \dot x_t \big\rVert^2, \quad x_t = a(t)\,x_1 + b(t)\,x_0,

    with :math:`x_0` drawn from the base, :math:`x_1` a point of the data seen through the inverse of the other layers, which are
    not trained, and :math:`t` uniform. No equation is solved. ``"linear"``: :math:`a = t, b = 1 - t`; ``"variance_preserving"``:
    :math:`a = \sin(\pi t/2), b = \cos(\pi t/2)`; ``"optimal_transport"``: linear, with the draws of the base paired with the points
    such that the sum of squared distances is least among 128 at a time, which makes straighter paths. The field that has the least
    loss takes the base to the data, so that the flow draws and scores as any other. On spheres and tori ways are geodesics
    (Riemannian flow matching).

    References:
        Lipman et al. (2023), *Flow matching for generative modeling*, https://arxiv.org/abs/2210.02747;
        Albergo, Vanden-Eijnden (2023), *Building normalizing flows with stochastic interpolants*, https://arxiv.org/abs/2209.15571;
        Tong et al. (2024), *Improving and generalizing flow-based generative models with minibatch optimal transport*,
        https://arxiv.org/abs/2302.00482;
        Chen, Lipman (2024), *Flow matching on general geometries*, https://arxiv.org/abs/2302.03660

    Args:
        distribution: The density.
        path: The path.

    Returns:
        A function of points ``(N, D)`` and, for a conditional flow, contexts ``(N, C)``, that takes one time and one draw of the
        base for each row. In evaluation mode these are always the same.

    Raises:
        ValueError: If the innermost layer is no :class:`~pyro_flows.transforms.CNF`, the path is unknown, or optimal transport is
            asked of a conditional flow, whose contexts it would mix up.

    Example:
        >>> from pyro_flows import flows
        >>> loss = flow_matching_loss(FlowDistribution(flows.get("cnf")(2)))
        >>> loss(torch.randn(8, 2)).shape
        torch.Size([])
    """
    if path not in get_args(ProbabilityPath):
        raise ValueError(f"path must be one of {list(get_args(ProbabilityPath))}, got {path!r}")
    found = demand_innermost(distribution, CNF, "flow matching")
    if path == "optimal_transport" and distribution.transform.context_dim:
        raise ValueError(
            'path="optimal_transport" pairs rows of other contexts, which biases a conditional density; use path="linear"'
        )
    flow, pull, tell = found
    if path == "variance_preserving" and not is_real(flow.domain):
        raise ValueError(f'path="variance_preserving" is for vectors, got a flow of {flow.domain}; use path="linear"')
    span = flow.t1 - flow.t0

    def loss(points: Tensor, context: Tensor | None = None) -> Tensor:
        with same_noise_in_evaluation(distribution), torch.no_grad():
            ends = pull(points, context)
            starts = distribution.base.sample((len(ends),)).to(ends)
            if path == "optimal_transport":
                starts = _paired(starts, ends, flow)
            # One time in each of as many equal parts: the same mean, less noise.
            spread = torch.rand(len(ends), dtype=ends.dtype, device=ends.device)
            times = (torch.randperm(len(ends), device=ends.device) + spread) / len(ends)
            if path == "variance_preserving":
                angle = 0.5 * math.pi * times[:, None]
                between = angle.sin() * ends + angle.cos() * starts
                moved = 0.5 * math.pi * (angle.cos() * ends - angle.sin() * starts)
            else:
                between, moved = flow.geodesic(starts, ends, times)
        velocity = flow.speed(flow.t0 + span * times, between, tell(context) if flow.context_dim else None)
        return (span * velocity - moved).square().sum(-1).mean()

    return loss


def _paired(starts: Tensor, ends: Tensor, flow: CNF) -> Tensor:
    """Draws of the base in the order in which they are nearest to the points, in the sum of squares of their ways."""
    from scipy.optimize import linear_sum_assignment  # takes long to import

    paired = []
    for some, of in zip(starts.split(_PAIRED), ends.split(_PAIRED), strict=True):
        here, there = torch.broadcast_tensors(some[None], of[:, None])
        _, ways = flow.geodesic(here, there, torch.zeros_like(here[..., 0]))
        cost = ways.double().square().sum(-1).cpu().numpy()
        paired.append(some[torch.as_tensor(linear_sum_assignment(cost)[1], device=some.device)])
    return torch.cat(paired)
