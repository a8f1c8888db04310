"""Root of a map of vectors by Newton steps that are shortened where they do not pay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .mode import is_eager

#: Maps ``x`` ``(*, D)`` to the value ``(*, D)`` and the Jacobian ``(*, D, D)`` of a map at ``x``.
ValueAndJacobian = Callable[[Tensor], tuple[Tensor, Tensor]]


def damped_newton(
    function: ValueAndJacobian,
    target: Tensor,
    start: Tensor,
    *,
    value: Callable[[Tensor], Tensor] | None = None,
    max_iterations: int = 100,
) -> Tensor:
    r"""Solve :math:`f(x) = t` for a map of vectors whose Jacobian is nowhere singular, each row by itself.

    Newton steps on the norm of the residual, halved until it falls (Armijo's rule); a row has converged when its step or its
    residual is at rounding level, and is frozen then. The gradient of a strongly convex function, and the identity plus a
    contraction, are such maps. Gradients with respect to ``target`` and to what ``function`` closes over go through the solution;
    first and second derivatives are right.

    References:
        Nocedal, Wright (2006), *Numerical optimization*, section 11.2

    Args:
        function: Value and Jacobian.
        target: The values t, ``(*, D)``.
        start: First guess, ``(*, D)``.
        value: The value alone, where that is cheaper.
        max_iterations: Bound on evaluations of ``function``. All of them are made under ``torch.compile``, ``torch.func`` and
            tracing.

    Returns:
        The roots, ``(*, D)``; NaN in rows whose target is not finite and, outside of eager mode, that have not converged.

    Raises:
        ArithmeticError: In eager mode, if a row has not converged.

    Example:
        >>> def cube(x):
        ...     return x**3 + x, torch.diag_embed(3 * x**2 + 1)
        >>> [round(value, 4) for value in damped_newton(cube, torch.tensor([2.0, 10.0]), torch.zeros(2)).tolist()]
        [1.0, 2.0]
    """
    with torch.no_grad():
        root, converged, jacobian = _search(function, target.detach(), start.detach().expand(target.shape), max_iterations)
        root, jacobian = root.detach(), jacobian.detach()  # no_grad does not keep tangents of forward mode off
        if is_eager() and not bool(converged.all()):
            residual = (function(root)[0] - target).abs().amax(-1)[~converged]
            raise ArithmeticError(
                f"damped_newton: {residual.numel()} of {converged.numel()} rows have not converged in {max_iterations} iterations "
                f"(largest residual {float(residual.max()):.3g}); check that inputs are of ordinary size, or use float64"
            )
        root = root.masked_fill(~converged[..., None], torch.nan)
        # A product, for torch's solve is wrong under vmap of forward mode; only gradients see it.
        inverse = torch.linalg.inv_ex(jacobian)[0]
    # Two steps with the Jacobian held fixed: the first makes first derivatives right, the second second ones.
    for _ in range(2):
        found = function(root)[0] if value is None else value(root)
        step = (inverse @ (found - target)[..., None])[..., 0]
        root = root - (step - step.detach())
    return root


def _search(function: ValueAndJacobian, target: Tensor, start: Tensor, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Roots, where they have converged, and the Jacobian there."""
    eps, eager = torch.finfo(target.dtype).eps, is_eager()
    usable = torch.isfinite(target).all(-1)
    target = target.masked_fill(~usable[..., None], 0.0)
    best = candidate = start.masked_fill(~torch.isfinite(start), 0.0)
    least = torch.full_like(target[..., 0], torch.inf)
    length = torch.ones_like(least)
    converged = ~usable
    step = torch.zeros_like(best)
    eye = torch.eye(target.shape[-1], dtype=target.dtype, device=target.device)
    jacobian = eye.expand(*target.shape, -1)
    for _ in range(max_iterations):
        value, slopes = function(candidate)
        residual = value - target
        norm = residual.norm(dim=-1)
        first = torch.isinf(least)
        take = torch.isfinite(norm) & ((norm <= (1 - 1e-4 * length) * least) | first) & ~converged
        best = torch.where(take[..., None], candidate, best)
        least = torch.where(take, norm, least)
        jacobian = torch.where((take | converged)[..., None, None] & usable[..., None, None], slopes, jacobian)
        newton, singular = torch.linalg.solve_ex(torch.where(take[..., None, None], slopes, eye), residual[..., None])
        newton = newton[..., 0].masked_fill((singular != 0)[..., None], torch.inf)
        step = torch.where(take[..., None], newton, step)
        length = torch.where(take, torch.ones_like(length), 0.5 * length)
        size = 1 + best.abs().amax(-1)
        noise = 8 * eps * (1 + target.abs().amax(-1) + value.abs().amax(-1))
        solved = take & ((residual.abs().amax(-1) <= noise) | (step.abs().amax(-1) <= 4 * eps * size))
        # Where no shorter step helps any more, rounding is all that is left, if the step was small to begin with.
        stuck = ~take & ~first & (length * step.abs().amax(-1) <= 4 * eps * size) & (step.abs().amax(-1) <= 1e4 * eps * size)
        converged = converged | solved | stuck
        shorter = best - length[..., None] * step
        # A start at which the map is not finite comes nearer to zero until it is.
        shorter = torch.where((first & ~take)[..., None], 0.5 * candidate, shorter)
        candidate = torch.where(converged[..., None], best, shorter)
        if eager and bool(converged.all()):
            break
    return best.masked_fill(~usable[..., None], torch.nan), converged, jacobian
