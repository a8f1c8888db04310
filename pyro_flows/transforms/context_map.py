"""A transform that is told a function of a context."""

from __future__ import annotations

from torch import Tensor, nn

from .core import FlowTransform


class ContextMap(FlowTransform):
    """A transform whose context is a function of another one: an encoder, a standardisation, a part of it.

    Args:
        transform: The transform; one without a context is told nothing.
        network: Maps a context ``(*, context_dim)`` to the one that the transform takes.
        context_dim: Size of the context that comes in.

    Raises:
        ValueError: If ``context_dim`` is not positive; when called, if what the network returns does not fit the transform.

    Example:
        >>> from pyro_flows.nn import MLP
        >>> from pyro_flows.transforms import AffineTril
        >>> layer = ContextMap(AffineTril(2, context_dim=3), MLP(5, 3), 5)
        >>> layer.condition(torch.zeros(5))(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, transform: FlowTransform, network: nn.Module, context_dim: int) -> None:
        super().__init__(transform.input_dim, context_dim)
        if context_dim < 1:
            raise ValueError(f"context_dim must be a positive integer, the size of the context that comes in, got {context_dim}")
        self.transform = transform
        self.network = network
        self._take_after(transform)

    def told(self, context: Tensor | None) -> Tensor | None:
        """What the transform is told of a context ``(*, context_dim)``."""
        return self.network(context) if self.transform.context_dim and context is not None else None

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.forward_and_log_det(x, self.told(context))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse_and_log_det(y, self.told(context))

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.transform.forward_with_score(x, score, self.told(context))

    @property
    def sign(self) -> int | Tensor:
        return self.transform.sign
