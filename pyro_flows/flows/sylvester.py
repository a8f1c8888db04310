"""Stack of Sylvester maps."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.sylvester import Sylvester
from .mixing import check_num_layers
from .registry import register


@register("sylvester", cheap="forward", inverse="solved", paper="https://arxiv.org/abs/1803.05649")
def sylvester(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 4,
    num_units: int | None = None,
    hidden_dims: Sequence[int] = (64,),
) -> FlowTransform:
    """A Sylvester flow: ``num_layers`` maps of :class:`~pyro_flows.transforms.Sylvester` one after the other.

    References:
        van den Berg, Hasenclever, Tomczak, Welling (2018), *Sylvester normalizing flows for variational inference*,
        https://arxiv.org/abs/1803.05649

    Args:
        input_dim: Number of variables.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of maps.
        num_units: Hidden units of each map, at most ``input_dim``; default: ``input_dim``.
        hidden_dims: Hidden layers of the networks from the context to the parameters; unused without a context.

    Raises:
        ValueError: If ``num_layers`` or ``num_units`` is out of range.

    Example:
        >>> sylvester(3, num_layers=2)(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """
    check_num_layers(num_layers)
    return Compose([Sylvester(input_dim, context_dim, num_units=num_units, hidden_dims=hidden_dims) for _ in range(num_layers)])
