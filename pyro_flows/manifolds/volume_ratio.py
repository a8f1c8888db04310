"""The oracle: by how much any map between embedded manifolds stretches volume."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def log_volume_ratio(function: Map, x: Tensor, projection: Map, dim: int, *, vectorise: bool = True) -> tuple[Tensor, Tensor]:
    r"""A map on a manifold of dimension m embedded in :math:`R^n`, and the logarithm of its differential volume ratio.

    With an orthonormal basis :math:`T_x` of the tangent space at x and the ambient Jacobian :math:`F_x`,

    .. math:: \log R_f(x) = \tfrac12 \log\det (F_x T_x)^\top (F_x T_x), \qquad p_Y(f(x)) = p_X(x) / R_f(x).

    :math:`T_x` are the left singular vectors of the Jacobian of an idempotent projection onto the manifold, such as
    :math:`x \mapsto x / |x|` for a sphere. It needs nothing but the map, costs :math:`O(n^3)` and n passes per point, and verifies
    every closed form here; it is differentiable in x and in the parameters of the map.

    Args:
        function: The map, from points ``(n,)`` near the manifold to points ``(k,)``; one point at a time, by ``torch.func``.
        x: Points on the manifold, ``(*, n)``.
        projection: Map of the ambient space onto the manifold, with the points of the manifold as fixed points.
        dim: Dimension m of the manifold.
        vectorise: Whether ``torch.func`` may run the map, for all points at once; else autograd runs it for one after another, such
            as a map that looks at values.

    Returns:
        The values ``(*, k)`` and the log-ratios ``(*)``.

    Raises:
        ValueError: If ``dim`` is not between 1 and n, or a point is no fixed point of the projection.

    Example:
        >>> x = torch.tensor([0.6, 0.8], dtype=torch.float64)
        >>> value, log_ratio = log_volume_ratio(lambda x: 3 * x, x, lambda x: x / x.norm(dim=-1, keepdim=True), 1)
        >>> round(log_ratio.exp().item(), 6)
        3.0
    """
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= x.shape[-1]:
        raise ValueError(f"dim must be an integer from 1 to {x.shape[-1]}, the size of the ambient space, got {dim!r}")
    error = (projection(x) - x).abs().max().item() if x.numel() else 0.0
    if not error <= 100 * torch.finfo(x.dtype).eps * (1 + float(x.detach().abs().max()) if x.numel() else 1.0):
        raise ValueError(f"x must lie on the manifold, the fixed points of projection, and is off by {error:.3g}; project it first")

    def one(point: Tensor) -> tuple[Tensor, Tensor]:
        value = function(point)
        return value, value

    rows = x.reshape(-1, x.shape[-1])
    if not len(rows):
        return x.new_zeros(x.shape), x.new_zeros(x.shape[:-1])
    if vectorise:
        jacobian, values = torch.func.vmap(torch.func.jacrev(one, has_aux=True))(rows)
    else:
        values = torch.stack([function(row) for row in rows])
        jacobian = torch.stack([torch.autograd.functional.jacobian(function, row, create_graph=True) for row in rows])
    if values.shape[-1] < dim:
        raise ValueError(f"function must give values of {dim} dimensions at least, the dim of the manifold, got {values.shape[-1]}")
    projector = torch.func.vmap(torch.func.jacrev(projection))(rows)
    with torch.no_grad():
        basis = torch.linalg.svd(projector)[0][..., :dim]
    # The basis is constant; what it becomes under the projection's Jacobian turns with x, and gradients are right.
    tangents = projector @ basis
    pushed = jacobian @ tangents
    log_ratio = _log_volume(pushed) - _log_volume(tangents)
    return values.reshape(*x.shape[:-1], -1), log_ratio.reshape(x.shape[:-1])


def _log_volume(edges: Tensor) -> Tensor:
    """Of the parallelepiped of columns ``(*, k, m)``; by QR, which keeps the digits that a Gram matrix loses."""
    return torch.linalg.qr(edges)[1].diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
