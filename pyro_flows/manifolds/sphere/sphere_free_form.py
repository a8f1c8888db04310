"""Free-form flow on a sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.nn.tangent_mlp import TangentMLP
from pyro_flows.transforms.free_form import FreeForm

from .geometry import SPHERE, check_ambient_dim, check_on_sphere, project_to_sphere


class SphereFreeForm(FreeForm):
    r"""Free-form flow on :math:`S^{n-1}`: :math:`g(x) = (x + u(x)) / |x + u(x)|`, and the same for the encoder.

    Maps are extended to the ambient space by :math:`G(x) = |x|\, g(x / |x|)`, whose Jacobian at unit vectors has the determinant of
    that of g between tangent spaces.

    References:
        Sorrenson, Draxler, Rousselot, Hummerich, Köthe (2024), *Learning distributions on manifolds with free-form flows*,
        https://arxiv.org/abs/2312.09852

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of both networks; one at least.

    Raises:
        ValueError: If an argument is not as described, or points are no unit vectors.
        ArithmeticError: In the inverse, in eager mode, if it is not found. Elsewhere it is NaN.

    Example:
        >>> SphereFreeForm(3)(torch.tensor([0.0, 0.6, 0.8])).detach()
        tensor([0.0000, 0.6000, 0.8000])
    """

    domain = SPHERE
    codomain = SPHERE

    def __init__(self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64)) -> None:
        super().__init__(check_ambient_dim(input_dim), context_dim, hidden_dims=hidden_dims)

    def pushed(self, network: TangentMLP, x: Tensor, v: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        length = x.norm(dim=-1, keepdim=True)
        at = x / length
        radial = v @ at[..., None]
        across = v - radial * at[..., None, :]
        moved, pushed = network.pushed(at, across, context)
        moved, pushed = at + moved, across + pushed
        size = moved.norm(dim=-1, keepdim=True)
        y = moved / size
        tangent = (pushed - (pushed @ y[..., None]) * y[..., None, :]) / size[..., None]
        return length * y, tangent + radial * y[..., None, :]

    def tangents(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        noise = noise - (noise * x).sum(-1, keepdim=True) * x
        return noise * (math.sqrt(x.shape[-1] - 1) / noise.norm(dim=-1, keepdim=True))

    def arrived(self, x: Tensor) -> Tensor:
        return project_to_sphere(x)

    def _taken(self, x: Tensor, name: str) -> Tensor:
        return check_on_sphere(x, name)
