"""A transform that is told a part of a context."""

from __future__ import annotations

from torch import Tensor

from .core import FlowTransform


class LeadingContext(FlowTransform):
    """A transform that is told the first numbers of a longer context, so that it can stand in one composition with others.

    Args:
        transform: The transform; one without a context is told nothing.
        context_dim: Size of the whole context.

    Raises:
        ValueError: If ``context_dim`` is less than the transform wants.

    Example:
        >>> from pyro_flows.transforms import AffineTril
        >>> layer = LeadingContext(AffineTril(2, context_dim=3), 5)
        >>> layer.condition(torch.zeros(5))(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, transform: FlowTransform, context_dim: int) -> None:
        super().__init__(transform.input_dim, context_dim)
        if context_dim < max(transform.context_dim, 1):
            raise ValueError(
                f"context_dim must be at least {max(transform.context_dim, 1)}, what the transform wants, got {context_dim}"
            )
        self.transform = transform
        self.event_shape = transform.event_shape
        self.domain = transform.domain
        self.codomain = transform.codomain
        self.cheap_direction = transform.cheap_direction
        self.inverse_kind = transform.inverse_kind
        self.log_det_kind = transform.log_det_kind

    def _leading(self, context: Tensor | None) -> Tensor | None:
        count = self.transform.context_dim
        return context[..., :count] if count and context is not None else None

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.forward_and_log_det(x, self._leading(context))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse_and_log_det(y, self._leading(context))

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.transform.forward_with_score(x, score, self._leading(context))

    @property
    def sign(self) -> int | Tensor:
        return self.transform.sign
