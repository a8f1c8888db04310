"""Gradients of a root, without a graph of how it was found."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

#: Maps ``x`` to the value and the slope of an increasing function at ``x``, all of the same shape.
ValueAndSlope = Callable[[Tensor], tuple[Tensor, Tensor]]


def attach_gradient(function: ValueAndSlope, target: Tensor, root: Tensor) -> Tensor:
    r"""Return ``root`` as a differentiable function of ``target`` and of whatever ``function`` closes over.

    Two Newton steps :math:`x - (f(x) - t) / f'(x)` are recorded at the root, of which only the gradient is kept, not
    the value: the first makes first derivatives right (the implicit function theorem), the second second ones too.

    Args:
        function: Maps ``x`` to ``(f(x), f'(x))``.
        target: The values :math:`t`, shape ``(*)``.
        root: Where :math:`f(x) = t`, shape ``(*)``; its own graph is dropped.

    Returns:
        The values of ``root``, shape ``(*)``.

    Example:
        >>> t = torch.tensor(8.0, requires_grad=True)
        >>> x = attach_gradient(lambda x: (x**3, 3 * x**2), t, torch.tensor(2.0))
        >>> round(torch.autograd.grad(x, t)[0].item(), 4)
        0.0833
    """
    root = root.detach()
    for _ in range(2):
        value, slope = function(root)
        step = (value - target) / slope
        root = root - (step - step.detach())
    return root
