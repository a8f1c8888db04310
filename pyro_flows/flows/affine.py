"""A Gaussian with full covariance, as a flow."""

from __future__ import annotations

from collections.abc import Sequence

from ..transforms.affine_tril import AffineTril
from ..transforms.core import FlowTransform
from .registry import register


@register("affine", cheap="both", inverse="closed", paper="https://arxiv.org/abs/1603.00788")
def affine(input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> FlowTransform:
    """One affine map: over a standard normal base, the Gaussian with full covariance.

    With a context, mean and covariance are functions of it. The baseline against which a flow has to show its worth.

    References:
        Kucukelbir et al. (2017), *Automatic differentiation variational inference*, https://arxiv.org/abs/1603.00788

    Args:
        input_dim: Number of variables.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the network from the context to the parameters; unused without a context.

    Raises:
        ValueError: If ``input_dim`` or ``context_dim`` is out of range.

    Example:
        >>> affine(3)(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """
    return AffineTril(input_dim, context_dim, hidden_dims=hidden_dims)
