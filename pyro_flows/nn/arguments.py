"""Arguments that many networks and transforms take: sizes, widths, bounds."""

from __future__ import annotations

from collections.abc import Sequence


def check_hidden_dims(hidden_dims: Sequence[int]) -> tuple[int, ...]:
    """Widths of hidden layers as a tuple.

    Raises:
        ValueError: If it is no sequence, or one width is not a positive integer.

    Example:
        >>> check_hidden_dims([64, 64])
        (64, 64)
    """
    if not isinstance(hidden_dims, Sequence) or isinstance(hidden_dims, str):
        raise ValueError(f"hidden_dims must be a sequence of widths such as (64, 64), got {hidden_dims!r}")
    widths = tuple(hidden_dims)
    if not all(isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in widths):
        raise ValueError(f"hidden_dims must be positive integers, got {hidden_dims!r}")
    return widths


def check_positive(**sizes: int) -> None:
    """Refuse sizes that are no positive integers.

    Raises:
        ValueError: If one is not; the message names it.

    Example:
        >>> check_positive(width=3)
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")


def is_between(value: object, low: float, high: float) -> bool:
    """Whether something is a number between two others, neither of them.

    Example:
        >>> is_between(0.5, 0, 1), is_between("a", 0, 1), is_between(True, 0, 2)
        (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high
