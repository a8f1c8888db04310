"""Standard normal base whose dtype and device are given by the one who asks."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints


class StandardNormal(TorchDistribution, nn.Module):  # type: ignore[misc]
    r"""Standard normal :math:`q_0(\epsilon) = (2\pi)^{-D/2} \exp(-|\epsilon|^2/2)` over events of any shape.

    Its one buffer, a zero, carries dtype and device through ``.to()``.

    Args:
        event_shape: Shape of one event, such as ``(D,)``.
        batch_shape: Shape of the batch.
        dtype: Type of the draws; torch's default if None.
        device: Device of the draws; torch's default if None.

    Example:
        >>> StandardNormal((3,)).log_prob(torch.zeros(3))
        tensor(-2.7568)
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True
    zero: Tensor
    __repr__ = nn.Module.__repr__

    def __init__(
        self,
        event_shape: tuple[int, ...],
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        nn.Module.__init__(self)
        TorchDistribution.__init__(self, torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)
        self.register_buffer("zero", torch.zeros((), dtype=dtype, device=device), persistent=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Real vectors, or arrays."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> StandardNormal:
        """The same distribution with another batch shape."""
        new = StandardNormal(tuple(self.event_shape), tuple(batch_shape), dtype=self.zero.dtype, device=self.zero.device)
        return new

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.zero.dtype, device=self.zero.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(*)``, of ``value``, ``(*, *event_shape)``."""
        event = len(self.event_shape)
        total = value.square().flatten(value.dim() - event).sum(-1)
        result = -0.5 * total - 0.5 * math.log(2 * math.pi) * self.event_shape.numel()
        return result.expand(torch.broadcast_shapes(self.batch_shape, result.shape))
