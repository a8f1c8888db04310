"""Neural spline flows, coupling and autoregressive."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.coupling import Coupling
from ..transforms.elementwise import Elementwise
from ..transforms.univariate import Affine, RationalQuadraticSpline
from .autoregressive_stack import autoregressive_stack
from .mixing import coupling_stack
from .registry import register

_PAPER = "https://arxiv.org/abs/1906.04032"


@register("nsf_coupling", cheap="both", inverse="closed", paper=_PAPER, smoothness="once")
def nsf_coupling(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
    bound: float = 5.0,
) -> Compose:
    """Neural spline flow of couplings, then one elementwise affine map.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), *Neural spline flows*, https://arxiv.org/abs/1906.04032

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of couplings.
        hidden_dims: Hidden layers of each conditioner.
        num_bins: Number of bins of each spline.
        bound: The splines act on ``[-bound, bound]``; outside they are the identity.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> nsf_coupling(3).cheap_direction
        'both'
    """
    spline = RationalQuadraticSpline(num_bins, bound)
    layers = coupling_stack(
        input_dim, num_layers, lambda mask: Coupling(input_dim, spline, context_dim, hidden_dims=hidden_dims, mask=mask)
    )
    return Compose([*layers, Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim, hidden_dims=hidden_dims)])


@register("nsf_autoregressive", cheap="inverse", inverse="solved", paper=_PAPER, smoothness="once")
def nsf_autoregressive(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
    bound: float = 5.0,
) -> FlowTransform:
    """Neural spline flow of autoregressive layers: scores data in one pass; ``.inv`` draws in one pass.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), *Neural spline flows*, https://arxiv.org/abs/1906.04032

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of layers, of alternating order.
        hidden_dims: Hidden layers of each conditioner.
        num_bins: Number of bins of each spline.
        bound: The splines act on ``[-bound, bound]``; outside they are the identity.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> nsf_autoregressive(3).cheap_direction
        'inverse'
    """
    return autoregressive_stack(input_dim, context_dim, lambda: RationalQuadraticSpline(num_bins, bound), num_layers, hidden_dims)
