"""Stack of radial maps."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.radial import Radial
from .mixing import check_num_layers
from .registry import register


@register("radial", cheap="both", inverse="closed", paper="https://arxiv.org/abs/1505.05770", smoothness="once")
def radial(input_dim: int, context_dim: int = 0, *, num_layers: int = 8, hidden_dims: Sequence[int] = (64,)) -> FlowTransform:
    """A radial flow: ``num_layers`` maps of :class:`~pyro_flows.transforms.Radial` one after the other.

    References:
        Rezende, Mohamed (2015), *Variational inference with normalizing flows*, https://arxiv.org/abs/1505.05770

    Args:
        input_dim: Number of variables.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of maps.
        hidden_dims: Hidden layers of the networks from the context to the parameters; unused without a context.

    Raises:
        ValueError: If ``num_layers`` is not positive.

    Example:
        >>> radial(3, num_layers=2)(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """
    check_num_layers(num_layers)
    return Compose([Radial(input_dim, context_dim, hidden_dims=hidden_dims) for _ in range(num_layers)])
