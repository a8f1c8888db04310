"""Whether Python may look at tensor values now."""

from __future__ import annotations

import torch


def is_eager() -> bool:
    """Tell whether plain eager mode is on: no compilation, ``torch.func`` level, tracing, forward-mode level or dispatch mode.

    Only then may a loop stop early, or raise, on what a tensor holds. Elsewhere a solver runs a fixed
    number of iterations.

    Example:
        >>> is_eager()
        True
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    return torch._C._len_torch_dispatch_stack() == 0  # make_fx, fake tensors
