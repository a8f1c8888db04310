"""What transforms of spheres have in common."""

from __future__ import annotations

from torch import Tensor

from pyro_flows.transforms.core import FlowTransform

from .geometry import SPHERE, check_ambient_dim, check_on_sphere


class SphereTransform(FlowTransform):
    r"""A bijection of the sphere :math:`S^{n-1}`; the log-determinant is the logarithm of its differential volume ratio.

    A subclass writes :meth:`on_sphere`, and gets points that are checked. Densities are with regard to area, and the base of a
    :class:`~pyro_flows.distributions.FlowDistribution` is uniform unless another is given.

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.

    Raises:
        ValueError: If ``input_dim`` is below 2, or points are no unit vectors.

    Example:
        >>> from pyro_flows.manifolds import Moebius
        >>> import torch
        >>> Moebius(3)(torch.tensor([0.0, 0.6, 0.8])).detach()
        tensor([0.0000, 0.6000, 0.8000])
    """

    domain = SPHERE
    codomain = SPHERE

    def __init__(self, input_dim: int, context_dim: int = 0) -> None:
        check_ambient_dim(input_dim)
        super().__init__(input_dim, context_dim)

    def on_sphere(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Either direction at unit vectors ``(*, n)``."""
        raise TypeError(f"{type(self).__name__} does not define on_sphere(at, context, inverse)")

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.on_sphere(check_on_sphere(x, "x"), context, False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.on_sphere(check_on_sphere(y, "y"), context, True)
