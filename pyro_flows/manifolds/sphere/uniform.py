"""Uniform distribution on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .geometry import SPHERE, check_ambient_dim, log_area, project_to_sphere


class UniformSphere(TorchDistribution):  # type: ignore[misc]
    r"""Uniform distribution on :math:`S^{n-1}`: density one over the area, :math:`\Gamma(n/2) / (2 \pi^{n/2})`.

    Args:
        ambient_dim: Number n of coordinates, at least 2.
        batch_shape: Shape of the batch.
        dtype: Of the draws; torch's default if None.
        device: Of the draws; torch's default if None.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If ``ambient_dim`` is below 2.

    Example:
        >>> uniform = UniformSphere(3)
        >>> round(uniform.log_prob(uniform.sample()).exp().item() * 4 * torch.pi, 5)
        1.0
    """

    arg_constraints: dict[str, Any] = {}
    support = SPHERE
    has_rsample = True

    def __init__(
        self,
        ambient_dim: int,
        batch_shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_ambient_dim(ambient_dim, "ambient_dim")
        self.zero = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size((ambient_dim,)), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UniformSphere:
        """The same with another batch shape."""
        n, zero = self.event_shape[0], self.zero
        return UniformSphere(n, batch_shape, dtype=zero.dtype, device=zero.device, validate_args=self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, n)``."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return project_to_sphere(torch.randn(shape, dtype=self.zero.dtype, device=self.zero.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` at unit vectors ``(*, n)``."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(batch, -log_area(self.event_shape[0])) + 0 * value[..., 0]
