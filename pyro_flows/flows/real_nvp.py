"""RealNVP: affine couplings."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.compose import Compose
from ..transforms.coupling import Coupling
from ..transforms.elementwise import Elementwise
from ..transforms.univariate import Affine
from .mixing import coupling_stack
from .registry import register


@register("real_nvp", cheap="both", inverse="closed", paper="https://arxiv.org/abs/1605.08803")
def real_nvp(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    log_scale_bound: float = 3.0,
) -> Compose:
    """RealNVP: affine couplings with a bounded log-scale, then one elementwise affine map.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), *Density estimation using Real NVP*, https://arxiv.org/abs/1605.08803

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of couplings.
        hidden_dims: Hidden layers of each conditioner.
        log_scale_bound: Bound on the absolute log-scale of each coupling. A wide one follows narrow funnels, and costs
            digits of the round trip far out.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> real_nvp(3)(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """
    layers = coupling_stack(
        input_dim,
        num_layers,
        lambda mask: Coupling(input_dim, Affine(log_scale_bound), context_dim, hidden_dims=hidden_dims, mask=mask),
    )
    return Compose([*layers, Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim, hidden_dims=hidden_dims)])
