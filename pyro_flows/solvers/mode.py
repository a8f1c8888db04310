"""Whether Python may look at tensor values now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_for_compiler: ContextVar[bool] = ContextVar("for_compiler", default=False)


@contextmanager
def for_compiler(wanted: bool = True) -> Iterator[None]:
    """Trace arithmetic on single entries, which a compiler fuses, in place of gradients in closed form.

    Example:
        >>> with for_compiler():
        ...     takes_closed_forms()
        False
    """
    token = _for_compiler.set(wanted)
    try:
        yield
    finally:
        _for_compiler.reset(token)


def takes_closed_forms() -> bool:
    """Tell whether gradients may be those of custom functions: not under compilation, ``torch.func`` or forward mode.

    Under a dispatch mode they may, as a tracer sees the operations that they are made of.

    Example:
        >>> takes_closed_forms()
        True
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or _for_compiler.get():
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and torch.autograd.forward_ad._current_level < 0


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
