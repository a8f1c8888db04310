"""Stacks of residual layers: residual flows and proximal residual flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..nn.contractive import ContractiveNetwork, LipschitzNetwork, ProximalNetwork
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.elementwise import Elementwise
from ..transforms.residual import Residual
from ..transforms.univariate import Affine
from .mixing import check_num_layers
from .registry import register


def _stack(
    network: type[LipschitzNetwork] | type[ProximalNetwork],
    input_dim: int,
    context_dim: int,
    num_layers: int,
    hidden_dims: Sequence[int],
    lipschitz: float,
    log_det: Literal["auto", "exact", "estimate"],
) -> FlowTransform:
    """Residual layers with an elementwise affine map after each, from data to noise; the inverse of that."""
    check_num_layers(num_layers)
    layers: list[FlowTransform] = []
    for _ in range(num_layers):
        layer: ContractiveNetwork = network(input_dim, context_dim, hidden_dims, lipschitz=lipschitz)
        layers += [Residual(layer, log_det=log_det), Elementwise(input_dim, Affine(log_scale_bound=10.0), context_dim)]
    return Compose(layers).inv


@register("residual", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/1906.02735")
def residual(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    lipschitz: float = 0.97,
    log_det: Literal["auto", "exact", "estimate"] = "auto",
) -> FlowTransform:
    """Residual flow, scoring data in one pass; ``.inv`` draws in one pass.

    References:
        Chen, Behrmann, Duvenaud, Jacobsen (2019), *Residual flows for invertible generative modeling*,
        https://arxiv.org/abs/1906.02735

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of residual layers.
        hidden_dims: Hidden layers of each network.
        lipschitz: Lipschitz constant of each layer, between 0 and 1.
        log_det: ``"exact"``, ``"estimate"``, or ``"auto"``: exact for up to 64 variables.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> residual(3).cheap_direction
        'inverse'
    """
    return _stack(LipschitzNetwork, input_dim, context_dim, num_layers, hidden_dims, lipschitz, log_det)


@register("proximal_residual", cheap="inverse", inverse="solved", paper="https://arxiv.org/abs/2211.17158")
def proximal_residual(
    input_dim: int,
    context_dim: int = 0,
    *,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    lipschitz: float = 0.97,
    log_det: Literal["auto", "exact", "estimate"] = "auto",
) -> FlowTransform:
    """Proximal residual flow, scoring data in one pass; ``.inv`` draws in one pass.

    References:
        Hertrich (2023), *Proximal residual flows for Bayesian inverse problems*, https://arxiv.org/abs/2211.17158

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        num_layers: Number of residual layers.
        hidden_dims: Number of rows of each proximal operator of a layer.
        lipschitz: Contraction factor of the inverse, between 0 and 1.
        log_det: ``"exact"``, ``"estimate"``, or ``"auto"``: exact for up to 64 variables.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> proximal_residual(3).inverse_kind
        'solved'
    """
    return _stack(ProximalNetwork, input_dim, context_dim, num_layers, hidden_dims, lipschitz, log_det)
