"""Root of ``v + c tanh v``, to which the inverses of planar and Sylvester flows reduce."""

from __future__ import annotations

import torch
from torch import Tensor

from .bracketed_newton import bracketed_newton


def sech_squared(v: Tensor) -> Tensor:
    r"""Derivative of the hyperbolic tangent, :math:`1 - \tanh^2 v`, without cancellation in the tails.

    Args:
        v: Any shape.

    Example:
        >>> sech_squared(torch.zeros(2))
        tensor([1., 1.])
    """
    return 4.0 * torch.sigmoid(2.0 * v) * torch.sigmoid(-2.0 * v)


def tanh_root(coefficient: Tensor, target: Tensor) -> Tensor:
    r"""Solve :math:`v + c \tanh v = t` for :math:`c > -1`, element by element.

    The start lies on the side of the root from which Newton steps go straight to it (the function is concave or convex
    on each half line), at the tighter of the two bounds :math:`|v| = |t| - c` and :math:`|v| = |t| / (1 + c)`.

    Args:
        coefficient: :math:`c`, greater than -1; broadcasts with ``target``.
        target: :math:`t`, shape ``(*)``.

    Returns:
        :math:`v`, shape ``(*)``, with gradients through the solution.

    Raises:
        RuntimeError: In eager mode, if an element has not converged (only for ``c`` at -1 up to rounding).

    Example:
        >>> v = tanh_root(torch.tensor(3.0), torch.tensor([0.0, 5.0]))
        >>> v + 3 * torch.tanh(v)
        tensor([0., 5.])
    """
    coefficient, target = torch.broadcast_tensors(coefficient, target)
    eps = torch.finfo(target.dtype).eps

    def function(v: Tensor) -> tuple[Tensor, Tensor]:
        return v + coefficient * torch.tanh(v), 1.0 + coefficient * sech_squared(v)

    with torch.no_grad():
        size = target.abs()
        far, near = size - coefficient, size / (1.0 + coefficient).clamp_min(eps)
        bound = torch.where(coefficient > 0, torch.maximum(far, near), torch.minimum(far, near))
        start = torch.copysign(bound, target)
    return bracketed_newton(
        function, target, start, stride=0.5 * bound + 1e-3, residual_tolerance=2 * eps * bound, max_iterations=40
    )
