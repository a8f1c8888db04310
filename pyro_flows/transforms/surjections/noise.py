"""What a surjection has to draw: variables given a context."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core import FlowTransform
from ..elementwise import Elementwise
from ..univariate.affine import Affine


class FlowNoise(nn.Module):
    """Variables that are drawn by a flow, given a context; normal ones with moments by a network unless told otherwise.

    Args:
        name: Name of the argument that the flow comes from, for messages.
        dim: Number of variables.
        context_dim: Size of what they are drawn given.
        transform: The flow from standard normal noise; None for a normal distribution.

    Raises:
        ValueError: If ``transform`` has other sizes.

    Example:
        >>> noise = FlowNoise("rest", 2, 3)
        >>> value, log_prob = noise.draw(torch.zeros(5, 3))
        >>> torch.allclose(log_prob, noise.log_prob(value, torch.zeros(5, 3)))
        True
    """

    def __init__(self, name: str, dim: int, context_dim: int, transform: FlowTransform | None = None) -> None:
        super().__init__()
        if transform is None:
            transform = Elementwise(dim, Affine(log_scale_bound=10.0), context_dim)
        if not isinstance(transform, FlowTransform) or (transform.input_dim, transform.context_dim) != (dim, context_dim):
            what = (
                f"one of {transform.input_dim} variables with context_dim={transform.context_dim}"
                if isinstance(transform, FlowTransform)
                else type(transform).__name__
            )
            raise ValueError(f"{name} must be a transform of {dim} variables with context_dim={context_dim}, got {what}")
        if not transform.bijective or transform.event_shape != transform.output_shape:
            raise ValueError(f"{name} must be a bijection that keeps the shape of events, got {type(transform).__name__}")
        self.transform = transform

    def draw(self, context: Tensor | None, batch: torch.Size | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws and their log-density.

        Args:
            context: What they are drawn given, ``(*, C)``.
            batch: Batch shape of the draws, where there is no context.
            like: A tensor of the dtype and on the device of the draws, where there is no context.
        """
        given = context if context is not None else like
        batch = context.shape[:-1] if context is not None else batch
        noise = torch.randn(batch + self.transform.event_shape, dtype=given.dtype, device=given.device)  # type: ignore[union-attr, operator]
        value, log_det = self.transform.forward_and_log_det(noise, context)
        return value, self._log_normal(noise) - log_det

    def log_prob(self, value: Tensor, context: Tensor | None) -> Tensor:
        """Log-density of ``value``."""
        noise, log_det = self.transform.inverse_and_log_det(value, context)
        return self._log_normal(noise) + log_det

    def _log_normal(self, noise: Tensor) -> Tensor:
        squares = noise.square().flatten(noise.dim() - len(self.transform.event_shape)).sum(-1)
        return -0.5 * squares - 0.5 * math.log(2 * math.pi) * self.transform.input_dim


def joined(*parts: Tensor | None) -> Tensor | None:
    """Parts of a context side by side, with their common batch shape; None if there are none.

    Example:
        >>> joined(torch.zeros(4, 2), None, torch.zeros(3)).shape
        torch.Size([4, 5])
    """
    given = [part for part in parts if part is not None]
    if not given:
        return None
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in given))
    return torch.cat([part.expand(*batch, -1) for part in given], -1)
