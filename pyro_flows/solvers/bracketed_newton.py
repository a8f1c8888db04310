"""Root of an increasing function, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from .implicit import ValueAndSlope, attach_gradient
from .mode import is_eager

_GROWTH = 8.0  # of the stride, for each step taken before the root is enclosed


def most_iterations() -> int:
    """Iterations of a solver of steep or flat functions: outside of eager mode all of them are made, and unrolled by a compiler.

    Example:
        >>> most_iterations()
        100
    """
    return 100 if is_eager() else 60


def bracketed_newton(
    function: ValueAndSlope,
    target: Tensor,
    start: Tensor,
    *,
    stride: Tensor | float = 1.0,
    residual_tolerance: Tensor | float = 0.0,
    max_iterations: int = 100,
) -> Tensor:
    r"""Solve :math:`f(x) = t` for a strictly increasing :math:`f`, each element by itself.

    Newton steps, replaced by a bisection wherever they leave the bracket or do not halve the previous step. The
    bracket holds evaluated points only: where the root is not yet enclosed it is sought outwards with strides that grow
    eightfold, however far it is, so that nothing is ever clipped to a fixed interval. An element has converged when its
    step, its bracket or its residual is down at rounding level; from then on it is frozen.

    Gradients with respect to ``target`` and to whatever ``function`` closes over go through the solution, not through
    the iterations (:func:`attach_gradient`); first and second derivatives are right.

    References:
        Press et al. (2007), *Numerical Recipes*, section 9.4 (safeguarded Newton, the bracketed form)

    Args:
        function: Maps ``x`` of the common shape to ``(f(x), f'(x))`` of the same shape; defined on the whole line.
        target: The values :math:`t`, shape ``(*)``.
        start: First guess, broadcasts with ``target``.
        stride: Longest first step while the root is not enclosed. Positive; broadcasts with ``target``.
        residual_tolerance: Absolute residual that is rounding noise of ``function``, in addition to four units in the
            last place of :math:`t` and :math:`f(x)`.
        max_iterations: Bound on the number of evaluations. All of them are made under ``torch.compile``, ``torch.func``
            and tracing; in eager mode the loop ends with the last element.

    Returns:
        The roots, shape ``(*)``. NaN where ``target`` is not finite or ``function`` returns NaN, and, outside eager
        mode, where an element has not converged.

    Raises:
        ArithmeticError: In eager mode, if an element has not converged after ``max_iterations``.
        ValueError: If ``max_iterations`` is not positive.

    Example:
        >>> bracketed_newton(lambda x: (x**3 + x, 3 * x**2 + 1), torch.tensor([2.0, 10.0, 1010.0]), torch.zeros(()))
        tensor([ 1.,  2., 10.])
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    target, start = torch.broadcast_tensors(target, start)
    with torch.no_grad():
        root, converged = _search(function, target, start, stride, residual_tolerance, max_iterations)
        if is_eager() and not bool(converged.all()):
            residual = (function(root)[0] - target).abs()[~converged]
            raise ArithmeticError(
                f"bracketed_newton: {residual.numel()} of {target.numel()} elements have not converged in "
                f"{max_iterations} iterations (largest residual {float(residual.max()):.3g}); check that the function "
                "increases strictly and reaches the target, or raise max_iterations"
            )
        root = root.masked_fill(~converged, torch.nan)
    return attach_gradient(function, target, root)


def _search(
    function: ValueAndSlope,
    target: Tensor,
    start: Tensor,
    stride: Tensor | float,
    residual_tolerance: Tensor | float,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    """Return the roots and where they have converged; NaN roots of NaN problems count as converged."""
    eps = torch.finfo(target.dtype).eps
    eager = is_eager()
    usable = torch.isfinite(target) & torch.isfinite(start)
    x = start.masked_fill(~usable, torch.nan)
    lower = torch.full_like(x, -torch.inf)
    upper = torch.full_like(x, torch.inf)
    stride = torch.zeros_like(x) + stride
    previous_step = torch.full_like(x, torch.inf)
    converged = ~usable
    for _ in range(max_iterations):
        value, slope = function(x)
        residual = value - target
        above = residual > 0
        lower = torch.where(above, lower, torch.maximum(lower, x))
        upper = torch.where(above, torch.minimum(upper, x), upper)
        enclosed = torch.isfinite(lower) & torch.isfinite(upper)

        newton = x - residual / slope
        step = (newton - x).abs()
        reach = torch.where(enclosed, 0.5 * previous_step, torch.minimum(0.5 * previous_step, stride))
        trusted = (newton >= lower) & (newton <= upper) & (step <= reach)  # False where newton is NaN
        outward = torch.where(above, x - stride, x + stride)
        safe = torch.where(enclosed, 0.5 * lower + 0.5 * upper, outward)
        proposal = torch.where(trusted, newton, safe)
        stride = torch.where(enclosed | trusted, stride, _GROWTH * stride)

        noise = 4 * eps * torch.maximum(value.abs(), target.abs()) + residual_tolerance
        solved = residual.abs() <= noise
        narrow = (upper - lower) <= 4 * eps * x.abs()
        still = trusted & (step <= 4 * eps * x.abs() + eps)
        undefined = torch.isnan(value)
        finishes = solved | narrow | still | undefined
        # The last Newton step is taken too: it turns an error at the tolerance into one at rounding level.
        last = torch.where(trusted, newton, x).masked_fill(undefined, torch.nan)
        new_x = torch.where(finishes, last, proposal)
        previous_step = torch.where(converged, previous_step, (new_x - x).abs())
        x = torch.where(converged, x, new_x)
        converged = converged | finishes
        if eager and bool(converged.all()):
            break
    return x, converged
