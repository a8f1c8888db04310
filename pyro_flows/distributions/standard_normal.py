"""Standard normal base whose dtype and device are given by the one who asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from .module_distribution import ModuleDistribution


class StandardNormal(ModuleDistribution):
    r"""Standard normal :math:`q_0(\epsilon) = (2\pi)^{-D/2} \exp(-|\epsilon|^2/2)` over events of any shape.

    Its one buffer, a zero, carries dtype and device through ``.to()``.

    Args:
        event_shape: Shape of one event, such as ``(D,)``.
        batch_shape: Shape of the batch.
        dtype: Type of the draws; torch's default if None.
        device: Device of the draws; torch's default if None.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If a shape holds what is not a non-negative integer.

    Example:
        >>> StandardNormal((3,)).log_prob(torch.zeros(3))
        tensor(-2.7568)
    """

    has_rsample = True
    zero: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        for name, shape in (("event_shape", event_shape), ("batch_shape", batch_shape)):
            if not isinstance(shape, tuple | list) or any(not isinstance(size, int) or size < 0 for size in shape):
                raise ValueError(f"{name} must be a tuple of non-negative integers such as (3,), got {shape!r}")
        super().__init__(batch_shape, event_shape, validate_args=validate_args)
        self.register_buffer("zero", torch.zeros((), dtype=dtype, device=device), persistent=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Real vectors, or arrays."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, batch_shape={tuple(self.batch_shape)}"

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.zero.dtype, device=self.zero.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(*)``, of ``value``, ``(*, *event_shape)``."""
        self._check_value(value)
        dims = len(self.event_shape)
        squares = value.square()
        total = squares.sum(tuple(range(-dims, 0))) if dims else squares
        result = total.mul(-0.5).sub(0.5 * math.log(2 * math.pi) * self.event_shape.numel())
        return result.expand(torch.broadcast_shapes(self.batch_shape, result.shape)) if self.batch_shape else result
