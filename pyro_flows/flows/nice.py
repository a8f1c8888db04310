"""NICE: additive couplings and one diagonal scaling."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.compose import Compose
from ..transforms.coupling import Coupling
from ..transforms.elementwise import Elementwise
from ..transforms.univariate import Affine, Shift
from .mixing import coupling_stack
from .registry import register


@register("nice", cheap="both", inverse="closed", paper="https://arxiv.org/abs/1410.8516")
def nice(input_dim: int, context_dim: int = 0, *, num_layers: int = 8, hidden_dims: Sequence[int] = (64, 64)) -> Compose:
    """NICE: additive couplings, which keep volume, and one learnable diagonal scaling.

    References:
        Dinh, Krueger, Bengio (2014), *NICE: non-linear independent components estimation*, https://arxiv.org/abs/1410.8516

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of couplings.
        hidden_dims: Hidden layers of each conditioner.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> nice(3)(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """
    layers = coupling_stack(
        input_dim, num_layers, lambda mask: Coupling(input_dim, Shift(), context_dim, hidden_dims=hidden_dims, mask=mask)
    )
    return Compose([*layers, Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim, hidden_dims=hidden_dims)])
