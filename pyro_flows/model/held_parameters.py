"""A model with the parameters that it had at a moment, whatever becomes of Pyro's parameter store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor


class HeldParameters:
    """Runs a model with values for its ``pyro.param`` sites, taken from the store when this is made.

    Args:
        model: The model.
        names: Names of its parameters.

    Attributes:
        values: The values by name.
        unconstrained: The same as the store keeps them.

    Example:
        >>> model = lambda: pyro.param("a", torch.tensor(1.0))
        >>> _ = model()
        >>> held = HeldParameters(model, ["a"])
        >>> pyro.get_param_store()["a"] = torch.tensor(2.0)
        >>> held().item(), model().item()
        (1.0, 2.0)
    """

    def __init__(self, model: Callable[..., Any], names: Iterable[str]) -> None:
        store = pyro.get_param_store()
        self.model = model
        self.values: dict[str, Tensor] = {name: store[name].detach().clone() for name in names}
        self.unconstrained: dict[str, Tensor] = {name: store._params[name].detach().clone() for name in self.values}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Hold(self.values):
            return self.model(*args, **kwargs)


def with_plain_parameters(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model, with parameters without gradients and links to the store, so that what it makes of them can be pickled.

    Example:
        >>> with_plain_parameters(lambda: pyro.param("a", torch.tensor(1.0)))().requires_grad
        False
    """

    def plain(*args: Any, **kwargs: Any) -> Any:
        with _Plain():
            return model(*args, **kwargs)

    return plain


class _Plain(Messenger):  # type: ignore[misc]
    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        msg["value"] = msg["value"].detach()


@contextmanager
def training_parameters(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """A block that trains parameters of a model; says at its end if the store holds others by then.

    Args:
        parameters: Those that are trained, by name.

    Raises:
        ValueError: If the store holds others now; the message names one.

    Example:
        >>> with training_parameters({}):
        ...     pyro.clear_param_store()
    """
    try:
        yield
    finally:  # whatever the block raised followed from it
        store = pyro.get_param_store()
        for name, parameter in parameters.items():
            if store._params.get(name) is not parameter:
                raise ValueError(
                    f"the parameter {name!r} of the model was removed from Pyro's parameter store, or set anew, while it was "
                    f"trained, so that what was trained is not what the model used; do not call pyro.clear_param_store() meanwhile"
                )


class _Hold(Messenger):  # type: ignore[misc]
    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]
