"""What solves of continuous flows cost, collected while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_recorder: ContextVar[SolveCosts | None] = ContextVar("recorder", default=None)


class SolveCosts:
    r"""Costs of all solves within :func:`record_costs`.

    Args:
        regularisers: Whether kinetic energy and Jacobian norm are computed.

    Attributes:
        evaluations: Evaluations of velocity fields.

    Example:
        See :func:`record_costs`.
    """

    def __init__(self, regularisers: bool) -> None:
        self.regularisers = regularisers
        self.evaluations = 0
        self._kinetic: list[Tensor] = []
        self._jacobian: list[Tensor] = []

    def add(self, kinetic: Tensor, jacobian: Tensor) -> None:
        """Take the integrals of one solve, a number per row each."""
        if kinetic.numel():
            self._kinetic.append(kinetic.mean())
            self._jacobian.append(jacobian.mean())

    @property
    def kinetic_energy(self) -> Tensor:
        r""":math:`\int \lVert v \rVert^2 dt`, the mean over rows, summed over solves; with gradient."""
        return self._total(self._kinetic)

    @property
    def jacobian_norm(self) -> Tensor:
        r""":math:`\int \lVert e^\top \partial v/\partial x \rVert^2 dt` for random e, an estimate without bias of that of
        :math:`\lVert \partial v/\partial x \rVert_F^2`; the mean over rows, summed over solves; with gradient.
        """
        return self._total(self._jacobian)

    def _total(self, parts: list[Tensor]) -> Tensor:
        if not self.regularisers:
            raise ValueError("regularisers were not computed; use record_costs(regularisers=True)")
        if not parts:
            raise ValueError("no continuous flow was solved within record_costs; compute the loss inside of it")
        return torch.stack(parts).sum()


@contextmanager
def record_costs(*, regularisers: bool = True) -> Iterator[SolveCosts]:
    r"""Collect what solves of continuous flows cost, in any training loop.

    Kinetic energy and Jacobian norm are integrated in the same solve as the log-density; a loss that has a little of them,
    0.03 of each say, gives fields that need far fewer evaluations (RNODE). They are usually trained on a fixed grid, see
    :func:`~pyro_flows.transforms.on_grid`, which the regularisers keep exact enough. A recorder within another has what is solved
    there, and the outer one has not.

    References:
        Finlay et al. (2020), *How to train your neural ODE*, https://arxiv.org/abs/2002.02798

    Args:
        regularisers: Whether to compute kinetic energy and Jacobian norm, or only to count evaluations.

    Example:
        >>> from pyro_flows import FlowDistribution, flows
        >>> q = FlowDistribution(flows.get("cnf")(2))
        >>> with record_costs() as costs:
        ...     loss = -q.log_prob(torch.randn(8, 2)).mean()
        >>> (loss + 0.01 * costs.kinetic_energy + 0.01 * costs.jacobian_norm).backward()
        >>> costs.evaluations > 0
        True
    """
    costs = SolveCosts(regularisers)
    token = _recorder.set(costs)
    try:
        yield costs
    finally:
        _recorder.reset(token)


def recorder() -> SolveCosts | None:
    """The costs that are being recorded, if any; none in compiled code.

    Example:
        >>> recorder() is None
        True
    """
    return None if torch.compiler.is_compiling() else _recorder.get()
