"""The loss of free-form flows: likelihood with a surrogate of the volume's gradient, and two networks that undo each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows.distributions import FlowDistribution
from pyro_flows.nn import TangentMLP
from pyro_flows.solvers import log_abs_det
from pyro_flows.transforms import FreeForm

from .innermost import demand_innermost
from .same_noise import same_noise_in_evaluation

#: Customary weight of reconstruction.
WEIGHT = 10.0


def free_form_loss(distribution: FlowDistribution, weight: float = WEIGHT) -> Callable[..., Tensor]:
    r"""The loss of a density whose innermost layer is a free-form flow of a decoder g and an encoder f.

    .. math:: L = \mathrm{E}\Big[-\log p_Z(f(x)) - \log\Big|\det \frac{\partial f}{\partial x}\Big|
        + \beta\, \lVert g(f(x)) - x \rVert^2 + \beta\, \lVert f(g(z)) - z \rVert^2\Big],

    with z drawn from the base, so that decoder and encoder are each other's inverse where draws go as well. As
    :math:`\nabla_\theta \log|\det f'| = \mathrm{tr}((\nabla_\theta f')\, f'^{-1})` and the decoder's Jacobian stands for the
    inverse one, the volume term has the gradient of :math:`\mathrm{E}_v\, v^\top f'(x)\, \mathrm{sg}[g'(f(x))\, v]`: a product with
    each Jacobian, whatever the number of variables. On spheres v are tangents. In evaluation mode the loss has the determinant
    itself, so that it can be compared, and the base's draws are always the same.

    References:
        Draxler, Sorrenson, Zimmermann, Rousselot, Köthe (2024), *Free-form flows: Make any architecture a normalizing flow*,
        https://arxiv.org/abs/2310.16624;
        Sorrenson, Draxler, Rousselot, Hummerich, Köthe (2024), *Learning distributions on manifolds with free-form flows*,
        https://arxiv.org/abs/2312.09852

    Args:
        distribution: The density.
        weight: The weight :math:`\beta`, of squared distances in the units of the layer. Positive.

    Returns:
        A function of points ``(N, D)`` and, for a conditional flow, contexts ``(N, C)``.

    Raises:
        ValueError: If the innermost layer is no :class:`~pyro_flows.transforms.FreeForm`, or the weight not positive.

    Example:
        >>> from pyro_flows.transforms import FreeForm
        >>> loss = free_form_loss(FlowDistribution(FreeForm(2)))
        >>> loss(torch.randn(8, 2)).shape
        torch.Size([])
    """
    if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ValueError(f"weight must be a positive number, got {weight!r}")
    flow, pull, tell = demand_innermost(distribution, FreeForm, "the loss of free-form flows")

    def loss(points: Tensor, context: Tensor | None = None) -> Tensor:
        with same_noise_in_evaluation(distribution):
            with torch.no_grad():
                ends = flow.arrived(pull(points, context))
                draws = distribution.base.sample((len(ends),)).to(ends)
            told = tell(context) if flow.context_dim else None

            def mapped(network: TangentMLP, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
                found, pushed = flow.pushed(network, x, x[:, None, :][:, :0] if v is None else v[:, None, :], told)
                return flow.arrived(found), pushed

            if distribution.training:
                with torch.no_grad():
                    z = mapped(flow.encoder, ends)[0]
                    v = flow.tangents(z)
                    back = mapped(flow.decoder, z, v)[1][:, 0]
                z, pushed = mapped(flow.encoder, ends, back)
                volume = (v * pushed[:, 0]).sum(-1)
            else:
                found, jacobian = flow.lifted(flow.encoder, told)(ends)
                z, volume = flow.arrived(found), log_abs_det(jacobian)
            again = flow.gap(mapped(flow.decoder, z)[0], ends)
            home = flow.gap(mapped(flow.encoder, mapped(flow.decoder, draws)[0])[0], draws)
        nll = -distribution.base.log_prob(z) - volume
        return (nll + weight * (again.square().sum(-1) + home.square().sum(-1))).mean()

    return loss
