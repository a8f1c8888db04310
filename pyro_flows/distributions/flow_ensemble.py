"""Several flows as one distribution: their mixture with equal weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .flow_distribution import FlowDistribution
from .module_distribution import ModuleDistribution


class FlowEnsemble(ModuleDistribution):
    r"""Mixture :math:`q(y) = \frac{1}{M} \sum_m q_m(y)` of flows with equal weights, which averages the errors of each.

    A draw comes from one of them at random, with gradient to that one; the weights are constant, so that the gradient of an
    expectation is right.

    References:
        Hermans, Delaunoy, Rozet, Wehenkel, Begy, Louppe (2022), *A trust crisis in simulation-based inference? Your posterior
        approximations can be unfaithful*, https://arxiv.org/abs/2110.06581

    Args:
        members: Distributions of one batch and event shape.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If there are none, or their shapes differ.

    Example:
        >>> from pyro_flows import flows
        >>> ensemble = FlowEnsemble([FlowDistribution(flows.affine(2)) for _ in range(3)])
        >>> ensemble.log_prob(ensemble.sample((5,))).shape
        torch.Size([5])
    """

    has_rsample = True

    def __init__(self, members: Sequence[FlowDistribution], *, validate_args: bool | None = None) -> None:
        members = list(members)
        if not members or not all(isinstance(member, FlowDistribution) for member in members):
            raise ValueError(f"members must be FlowDistributions, got {[type(member).__name__ for member in members]}")
        shapes = {(tuple(member.batch_shape), tuple(member.event_shape)) for member in members}
        if len(shapes) > 1:
            raise ValueError(f"members must have one batch and event shape, got {sorted(shapes)}")
        super().__init__(members[0].batch_shape, members[0].event_shape, validate_args=validate_args)
        self.members = nn.ModuleList(members)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the members."""
        return self.members[0].support  # type: ignore[return-value]

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowEnsemble:
        """The same distribution, with the same parameters, and another batch shape.

        Raises:
            ValueError: If this one's batch shape does not expand to it.
        """
        return FlowEnsemble([member.expand(batch_shape) for member in self.members])  # type: ignore[operator]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)`` with gradient."""
        draws = torch.stack([member.rsample(sample_shape) for member in self.members])  # type: ignore[operator]
        shape = draws.shape[1 : draws.dim() - len(self.event_shape)]
        which = torch.randint(len(self.members), shape, device=draws.device)
        index = which.reshape(1, *shape, *(1,) * len(self.event_shape)).expand(1, *draws.shape[1:])
        return draws.gather(0, index)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` of ``value``, ``(*, *event_shape)``."""
        terms = torch.stack([member.log_prob(value) for member in self.members])  # type: ignore[operator]
        return terms.logsumexp(0) - math.log(len(self.members))
