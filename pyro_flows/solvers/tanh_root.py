"""Root of ``v + c tanh v``, to which the inverses of planar and Sylvester flows reduce."""

from __future__ import annotations

import torch
from torch import Tensor

from .implicit import attach_gradient
from .mode import is_eager

# Of 3 million problems in float32 and float64, c from -1 + 1e-6 to 1e9, the hardest took 17; beyond, it is log(4 c).
_MAX_ITERATIONS = 20
_MAX_EAGER_ITERATIONS = 100


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

    Newton's iteration needs no bracket here: for :math:`t > 0` the function is concave (:math:`c > 0`) or convex
    (:math:`c < 0`) where the root lies, so that after one step all others approach it from one side. The start is the
    tightest of simple bounds, :math:`t - c` and :math:`t / (1 + c)`, and for :math:`c < 0` also
    :math:`(5 t / |c|)^{1/3}`, which holds where the function is nearly cubic. Gradients go through the solution.

    Args:
        coefficient: :math:`c`, greater than -1; broadcasts with ``target``.
        target: :math:`t`, shape ``(*)``.

    Returns:
        :math:`v`, shape ``(*)``. NaN where an argument is not finite or ``c`` is below -1 and, outside eager mode,
        where an element has not converged.

    Raises:
        ArithmeticError: In eager mode, if an element has not converged (only for ``c`` beyond all measure).

    Example:
        >>> v = tanh_root(torch.tensor(3.0), torch.tensor([0.0, 5.0]))
        >>> v + 3 * torch.tanh(v)
        tensor([0., 5.])
    """
    coefficient, target = torch.broadcast_tensors(coefficient, target)
    with torch.no_grad():
        root = _newton(coefficient, target)
    return attach_gradient(lambda v: (v + coefficient * torch.tanh(v), 1.0 + coefficient * sech_squared(v)), target, root)


def _newton(c: Tensor, target: Tensor) -> Tensor:
    eps = torch.finfo(target.dtype).eps
    eager = is_eager()
    t = target.abs()
    slope = (1.0 + c).clamp_min(eps)
    cubic = (5.0 * t / c.abs().clamp_min(eps)) ** (1.0 / 3.0)
    bound = torch.minimum(t - c, t / slope)
    v = torch.where(c > 0, torch.maximum(t - c, t / slope), torch.minimum(bound, cubic))
    # What rounding leaves of the residual: both terms are at most this large, and cancel for c < 0.
    noise = 4 * eps * torch.maximum(t, v)
    usable = torch.isfinite(c) & torch.isfinite(target) & (c >= -1)  # -1 is where rounding may take it
    converged = ~usable
    for _ in range(_MAX_EAGER_ITERATIONS if eager else _MAX_ITERATIONS):
        h = torch.tanh(v)
        residual = v + c * h - t
        step = residual / (1.0 + c * (1.0 - h * h)).clamp_min(eps)
        v = torch.where(converged, v, v - step)
        converged = converged | (step.abs() <= 4 * eps * v.abs()) | (residual.abs() <= noise)
        if eager and bool(converged.all()):
            break
    if eager and not bool(converged.all()):
        raise ArithmeticError(
            f"tanh_root: {int((~converged).sum())} of {t.numel()} elements have not converged in "
            f"{_MAX_EAGER_ITERATIONS} iterations; the largest of their coefficients, {float(c[~converged].max()):.6g}, "
            "should be far smaller"
        )
    return torch.copysign(v, target).masked_fill(~(converged & usable), torch.nan)
