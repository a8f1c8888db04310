"""Results that notebooks show as they print."""

from __future__ import annotations

from typing import Any


class Printed:
    """A result whose table or sentence, that of ``print``, is also what Jupyter and IPython show.

    Example:
        >>> class Answer(Printed):
        ...     def __str__(self):
        ...         return "forty-two"
        >>> class Screen:
        ...     def text(self, words):
        ...         print(words)
        >>> Answer()._repr_pretty_(Screen(), False)
        forty-two
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._repr_pretty_ = Printed._repr_pretty_  # type: ignore[method-assign]  # IPython prefers what is in the class itself

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))
