"""Modules that remember the arguments they were made with, so that they can be written down and made again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any


class Recorded:
    """Notes the arguments of the constructor, for :mod:`pyro_flows.io`.

    A subclass whose attributes are set anew later says in :meth:`made_with` what would make it as it is.

    Example:
        >>> from pyro_flows.nn import MLP
        >>> MLP(3, 2, hidden_dims=(16,)).made_with()
        ((3, 2), {'hidden_dims': (16,)})
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init = cls.__dict__.get("__init__")
        if init is None:
            return

        @functools.wraps(init)
        def recorded(self: Recorded, *args: Any, **kwargs: Any) -> None:
            if "_made_with" not in self.__dict__:  # else this is the constructor of a parent
                args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
                kwargs = {name: list(value) if isinstance(value, Iterator) else value for name, value in kwargs.items()}
                # Not by setattr: a module among the arguments is no child.
                self.__dict__["_made_with"] = (args, kwargs)
            init(self, *args, **kwargs)

        cls.__init__ = recorded  # type: ignore[assignment, method-assign]

    def made_with(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments that make another such object, but for its parameters and buffers."""
        return self.__dict__.get("_made_with", ((), {}))  # type: ignore[no-any-return]
