"""Möbius transformation of a sphere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.transforms.context_parameters import ContextParameters

from .base import SphereTransform


class Moebius(SphereTransform):
    r"""Möbius transformation :math:`y = \frac{1 - |\omega|^2}{|x - \omega|^2} (x - \omega) - \omega` with :math:`|\omega| < 1`.

    It is conformal: :math:`\log R = (n - 1) \log \frac{1 - |\omega|^2}{|x - \omega|^2}`. The inverse is that of :math:`-\omega`.
    :math:`\omega = r / \sqrt{1 + |r|^2}` for a raw r; starts at the identity. Mass moves away from ω.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428, section 2.3.1;
        Kato, McCullagh (2020), *Some properties of a Cauchy family on the sphere derived from the Möbius transformations*,
        https://arxiv.org/abs/1510.07679

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the network of the context.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> flow = Moebius(3)
        >>> with torch.no_grad():
        ...     _ = flow.params.raw_centre.copy_(torch.tensor([0.0, 0.0, 0.75]))
        >>> flow(torch.tensor([1.0, 0.0, 0.0])).detach()
        tensor([ 0.4706,  0.0000, -0.8824])
    """

    def __init__(self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(input_dim, context_dim)
        self.params = ContextParameters({"raw_centre": torch.zeros(input_dim)}, context_dim, hidden_dims)

    def on_sphere(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        (raw,) = self.params(context)
        squared = raw.square().sum(-1, keepdim=True)
        omega = raw * torch.rsqrt(1 + squared)
        omega = -omega if inverse else omega
        apart = at - omega
        # 1 - |omega|^2 = 1 / (1 + |r|^2), without cancellation.
        factor = 1 / ((1 + squared) * apart.square().sum(-1, keepdim=True))
        y = factor * apart - omega
        return y / y.norm(dim=-1, keepdim=True), (self.input_dim - 1) * factor[..., 0].log()
