"""Gradients that can be differentiated again, for functions whose gradient is in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    gradients: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of the inputs that need one, which can be differentiated again.

    Args:
        function: From the inputs to the results.
        inputs: The inputs; None for one that is missing.
        needed: Which gradients are wanted.
        gradients: Those of the results.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> differentiable(lambda x, y: (x * y,), (x, 2 * x), (True, False), (torch.ones(1),))[0]
        tensor([2.], grad_fn=<MulBackward0>)
    """
    # Views of them: an input may have been computed from another, and a gradient would go on through that.
    views = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    kept = [(r, g) for r, g in zip(function(*views), gradients, strict=True) if r.requires_grad]
    wanted = [view for view, one in zip(views, needed, strict=True) if one]
    found = iter(torch.autograd.grad([r for r, _ in kept], wanted, [g for _, g in kept], create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return [next(found) if one else None for one in needed]
