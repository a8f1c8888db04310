"""What to say where tensors of different dtypes meet in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_SIGNS = ("dtype", "can't be cast", "expected scalar type", "same type")


def dtype_hint(error: BaseException, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Advice to be put behind the words of an error, if it comes from dtypes; else nothing.

    Args:
        error: What the model raised.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> dtype_hint(RuntimeError("result type Float can't be cast to Long"), [torch.zeros(2), torch.arange(2)], {})
        '; the arguments of the model are float32, int64: give data and priors one floating dtype, as by y.float()'
        >>> dtype_hint(RuntimeError("shape mismatch"), [], {})
        ''
    """
    if not isinstance(error, RuntimeError | TypeError) or not any(sign in str(error) for sign in _SIGNS):
        return ""
    dtypes = [str(value.dtype).removeprefix("torch.") for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    which = f"the arguments of the model are {', '.join(dtypes)}" if dtypes else "tensors of different dtypes meet in the model"
    return f"; {which}: give data and priors one floating dtype, as by y.float()"
