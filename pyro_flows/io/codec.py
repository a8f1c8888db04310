"""Objects as plain data: modules by the arguments they are made with, tensors by the name of their place in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Transform
from torch.distributions.constraints import Constraint

from pyro_flows.nn.recorded import Recorded

from .allocation import Allocation
from .known import CONSTRAINTS, DISTRIBUTIONS, FUNCTIONS, TRANSFORMS, classes

#: How deep a description may be nested.
_DEPTH = 60
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Encoder:
    """Describes objects as JSON data.

    Example:
        >>> from pyro_flows.nn import MLP
        >>> Encoder().encode(MLP(3, 2))
        {'class': 'MLP', 'args': [3, 2]}
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[int, tuple[int, Any]] = {}
        self._shared: dict[int, dict[str, Any]] = {}
        self._classes = classes()

    def encode(self, value: Any, where: str = "it") -> Any:
        """Plain data for a value; an object that comes again is named by its number.

        Args:
            value: Numbers, strings, lists, dictionaries, tensors, modules of ours, distributions of torch.
            where: Its place, for messages.

        Raises:
            ValueError: If it holds something that has no description; the message says where.
        """
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if isinstance(value, tuple | list):
            items = [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, Mapping):
            return {"dict": [[self.encode(key, where), self.encode(item, f"{where}[{key!r}]")] for key, item in value.items()]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": None}  # a file is of no device
        if isinstance(value, Recorded):
            return self._object(value, where)
        found = self._named(value, where)
        if found is None:
            raise ValueError(
                f"{where} holds {type(value).__name__} {value!r}, which a file cannot describe; use a class of this package, or "
                f"register your own by pyro_flows.io.register"
            )
        return found

    def _tensor(self, value: Tensor) -> dict[str, str]:
        name = f"argument.{len(self.tensors)}"
        self.tensors[name] = value.detach()
        return {"tensor": name}

    def _object(self, value: Recorded, where: str) -> dict[str, Any]:
        if id(value) in self._seen:
            number, _ = self._seen[id(value)]
            self._shared[id(value)]["number"] = number
            return {"same": number}
        name = type(value).__name__
        if self._classes.get(name) is not type(value):
            raise ValueError(
                f"{where} is a {name} of {type(value).__module__}, which a file cannot name; register the class by "
                f"pyro_flows.io.register, in the program that loads it too"
            )
        self._seen[id(value)] = len(self._seen), value
        found: dict[str, Any] = {"class": name}
        self._shared[id(value)] = found
        args, kwargs = value.made_with()
        if args:
            found["args"] = [self.encode(item, f"{name}({i})") for i, item in enumerate(args)]
        if kwargs:
            found["options"] = {key: self.encode(item, f"{name}({key}=)") for key, item in kwargs.items()}
        return found

    def _named(self, value: Any, where: str) -> dict[str, Any] | None:
        for name, function in FUNCTIONS.items():
            if value is function:
                return {"function": name}
        if isinstance(value, partial):
            options = {key: self.encode(item, f"{where}({key}=)") for key, item in value.keywords.items()}
            return {"partial": self.encode(value.func, where), "args": self.encode(list(value.args), where), "options": options}
        if isinstance(value, type) and self._classes.get(value.__name__) is value:
            return {"type": value.__name__}
        if isinstance(value, Constraint):
            return next(({"constraint": name} for name, known in CONSTRAINTS.items() if known is value), None)
        if isinstance(value, Transform):
            return {"transform": type(value).__name__} if type(value) in TRANSFORMS.values() else None
        if isinstance(value, Independent):
            base = self.encode(value.base_dist, f"{where}.base_dist")
            return {"distribution": "Independent", "base": base, "dims": value.reinterpreted_batch_ndims}
        for name, (cls, attributes) in DISTRIBUTIONS.items():
            if type(value).__name__ == name and isinstance(value, cls):
                return {"distribution": name, "parameters": {key: self._tensor(getattr(value, key)) for key in attributes}}
        return None


class Decoder:
    """Makes objects from their descriptions. Only classes and functions known by name are called; no name is imported.

    Args:
        tensors: Tensors of the file.
        largest: Numbers that all tensors made on the way may hold together.

    Example:
        >>> Decoder({}).decode({"class": "MLP", "args": [3, 2]})(torch.ones(3)).shape
        torch.Size([2])
    """

    def __init__(self, tensors: Mapping[str, Tensor], largest: int = 10**7) -> None:
        self._tensors, self._largest = tensors, largest
        self._numbered: dict[int, Any] = {}
        self._classes = classes()

    def decode(self, data: Any) -> Any:
        """The object of a description.

        Raises:
            ValueError: If the description is none, names what is not known, or asks for too much memory.
        """
        try:
            with Allocation(self._largest):
                return self._decode(data, 0)
        except (TypeError, KeyError, AttributeError, IndexError, RuntimeError, RecursionError) as error:
            raise ValueError(f"the description cannot be made into an object: {type(error).__name__}: {error}") from error

    def _decode(self, data: Any, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError(f"the description is nested more than {_DEPTH} deep")
        if data is None or isinstance(data, bool | str | int | float):
            return data
        if isinstance(data, list):
            return [self._decode(item, depth + 1) for item in data]
        if not isinstance(data, dict) or not data:
            raise ValueError(f"the description holds {data!r}, which stands for nothing")
        if "class" in data:
            return self._object(data, depth)
        if "partial" in data:
            kept = {key: self._decode(item, depth + 1) for key, item in dict(data["options"]).items()}
            made = self._decode(data["partial"], depth + 1)
            if not isinstance(made, type):
                raise ValueError(f"the description holds arguments of {data['partial']!r}, which is no class")
            return partial(made, *self._decode(_list(data["args"]), depth + 1), **kept)
        if "distribution" in data:
            return self._distribution(data, depth)
        if len(data) != 1:
            raise ValueError(f"the description holds an entry with the keys {sorted(data)}, which stands for nothing")
        ((kind, value),) = data.items()
        return self._entry(kind, value, depth)

    def _entry(self, kind: str, value: Any, depth: int) -> Any:
        if kind == "tuple":
            return tuple(self._decode(item, depth + 1) for item in _list(value))
        if kind == "size":
            return torch.Size(_list(value))
        if kind == "dict":
            return {self._decode(key, depth + 1): self._decode(item, depth + 1) for key, item in _list(value)}
        if kind == "float":
            return _known("number", _SPECIAL, value)
        if kind == "tensor":
            return _known("tensor", self._tensors, value).clone()
        if kind == "same":
            return _known("object", self._numbered, value)
        if kind == "dtype":
            return _known("dtype", {str(d).removeprefix("torch."): d for d in _DTYPES}, value)
        if kind == "device":
            return None
        if kind == "function":
            return _known("function", FUNCTIONS, value)
        if kind == "constraint":
            return _known("constraint", CONSTRAINTS, value)
        if kind == "transform":
            return _known("transform", TRANSFORMS, value)()
        if kind == "type":
            return _known("class", self._classes, value)
        raise ValueError(f"the description holds an entry of kind {kind!r}, which is not known")

    def _object(self, data: Mapping[str, Any], depth: int) -> Any:
        unknown = set(data) - {"class", "args", "options", "number"}
        if unknown:
            raise ValueError(f"the description of an object has the keys {sorted(unknown)}, which are not known")
        cls = _known("class", self._classes, data["class"])
        args = [self._decode(item, depth + 1) for item in _list(data.get("args", []))]
        options = {key: self._decode(item, depth + 1) for key, item in dict(data.get("options", {})).items()}
        made = cls(*args, **options)
        if "number" in data:
            self._numbered[data["number"]] = made
        return made

    def _distribution(self, data: Mapping[str, Any], depth: int) -> Any:
        if data["distribution"] == "Independent":
            return _pyro_distributions().Independent(self._decode(data["base"], depth + 1), int(data["dims"]))
        cls, attributes = _known("distribution", DISTRIBUTIONS, data["distribution"])
        given = {key: self._decode(data["parameters"][key], depth + 1) for key in attributes}
        pyro_class = getattr(_pyro_distributions(), data["distribution"], cls)
        return pyro_class(**given)


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def _pyro_distributions() -> Any:
    import pyro.distributions

    return pyro.distributions


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"the description holds {value!r} where a list is expected")
    return value


def _known(what: str, table: Mapping[Any, Any], name: Any) -> Any:
    if isinstance(name, list | dict) or name not in table:
        raise ValueError(f"the description names the {what} {name!r}, which is not known; a class of your own must be registered")
    return table[name]
