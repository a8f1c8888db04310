"""Base of flows on tori and on products of circles and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .angles import check_circles, support


class UniformTorus(TorchDistribution):  # type: ignore[misc]
    r"""Uniform angles on :math:`[-\pi, \pi)`, and standard normal variables where ``circles`` says that one is no angle.

    Args:
        dim: Number of variables D.
        circles: Which are angles, ``(D,)``; all if None.
        batch_shape: Shape of the batch.
        dtype: Of the draws; torch's default if None.
        device: Of the draws; torch's default if None.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If ``circles`` is not as described.

    Example:
        >>> round(UniformTorus(2).log_prob(torch.zeros(2)).exp().item() * (2 * torch.pi) ** 2, 5)
        1.0
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(
        self,
        dim: int,
        circles: Sequence[bool] | None = None,
        batch_shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.circles = check_circles(dim, circles)
        self.zero = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size((dim,)), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Angles on one period, and numbers."""
        return support(self.circles)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UniformTorus:
        """The same with another batch shape."""
        zero = self.zero
        return UniformTorus(
            len(self.circles), self.circles, batch_shape, dtype=zero.dtype, device=zero.device, validate_args=self._validate_args
        )

    def _is_circle(self, like: Tensor) -> Tensor:
        return torch.tensor(self.circles, device=like.device)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, D)``."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        uniform = math.pi * (2 * torch.rand(shape, dtype=self.zero.dtype, device=self.zero.device) - 1)
        if all(self.circles):
            return uniform
        normal = torch.randn(shape, dtype=self.zero.dtype, device=self.zero.device)
        return torch.where(self._is_circle(uniform), uniform, normal)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` of ``value``, ``(*, D)``."""
        if self._validate_args:
            self._validate_sample(value)
        normal = -0.5 * value.square() - 0.5 * math.log(2 * math.pi)
        uniform = torch.full_like(value, -math.log(2 * math.pi)) + 0 * value
        each = torch.where(self._is_circle(value), uniform, normal)
        return each.sum(-1).expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))
