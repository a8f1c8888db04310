"""Continuous flows on a fixed grid for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..solvers.ode import check_solver
from .cnf import CNF


def adaptive_flows(module: nn.Module) -> list[CNF]:
    """The continuous flows in a module whose solver adapts its steps.

    Example:
        >>> from pyro_flows import flows
        >>> len(adaptive_flows(flows.get("cnf")(2))), len(adaptive_flows(flows.get("cnf")(2, solver="rk4", num_steps=4)))
        (1, 0)
    """
    return [part for part in module.modules() if isinstance(part, CNF) and part.num_steps is None]


@contextmanager
def on_grid(module: nn.Module, num_steps: int) -> Iterator[None]:
    """Solve the continuous flows in a module by Runge and Kutta's fourth-order steps of equal size within the block.

    Only flows whose solver adapts its steps; others stay as they are. A grid costs what it is told to, and can be traced and
    compiled, but nobody controls its error: train on it, and judge by the solver that adapts. A copy made within the block stays on
    the grid.

    Args:
        module: A flow, a distribution, a guide.
        num_steps: Number of steps, of four evaluations each.

    Raises:
        ValueError: If ``num_steps`` is no positive integer.

    Example:
        >>> import torch
        >>> from pyro_flows import flows
        >>> from pyro_flows.transforms import record_costs
        >>> flow = flows.get("cnf")(2)
        >>> with on_grid(flow, 3), record_costs(regularisers=False) as costs:
        ...     _ = flow.forward_and_log_det(torch.zeros(2))
        >>> costs.evaluations
        12
    """
    check_solver("rk4", 0.5, num_steps)
    found = adaptive_flows(module)
    before = [(flow.solver, flow.gradient) for flow in found]
    try:
        for flow in found:
            flow.solver, flow.num_steps, flow.gradient = "rk4", num_steps, "steps"
        yield
    finally:
        for flow, (solver, gradient) in zip(found, before, strict=True):
            flow.solver, flow.num_steps, flow.gradient = solver, None, gradient
