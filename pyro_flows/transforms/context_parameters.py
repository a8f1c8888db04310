"""Parameters to which a context may add an offset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..nn.mlp import MLP


class ContextParameters(nn.Module):
    r"""Named parameters :math:`\theta + g(c)`, with a network :math:`g` that starts at zero.

    Without a context the module holds :math:`\theta` alone. It is how one class of transform serves the conditional and
    the unconditional case: at the start a conditional transform is the unconditional one, whatever the context.

    Args:
        values: Start value of each parameter, by name; their order is the order of the result.
        context_dim: Size ``C`` of the context; 0 for none.
        hidden_dims: Hidden layers of the network.

    Example:
        >>> parameters = ContextParameters({"shift": torch.zeros(3), "matrix": torch.zeros(3, 3)}, context_dim=2)
        >>> shift, matrix = parameters(torch.ones(5, 2))
        >>> matrix.shape
        torch.Size([5, 3, 3])
    """

    def __init__(self, values: Mapping[str, Tensor], context_dim: int = 0, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.names = tuple(values)
        self.shapes = tuple(tuple(value.shape) for value in values.values())
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.clone()))
        sizes = [math.prod(shape) for shape in self.shapes]
        self.sizes = tuple(sizes)
        self.network = MLP(context_dim, sum(sizes), hidden_dims, zero_init=True) if context_dim > 0 else None

    def forward(self, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the parameters in their order.

        Args:
            context: Shape ``(*, C)``, or None where ``context_dim`` is 0.

        Returns:
            One tensor a parameter, each of its own shape, with the batch shape of the context in front.
        """
        values = tuple(getattr(self, name) for name in self.names)
        if self.network is None or context is None:
            return values
        offsets = torch.split(self.network(context), list(self.sizes), dim=-1)
        batch = context.shape[:-1]
        return tuple(
            value + offset.reshape(batch + shape) for value, offset, shape in zip(values, offsets, self.shapes, strict=True)
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={shape}" for name, shape in zip(self.names, self.shapes, strict=True))
