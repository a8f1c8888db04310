"""The run that is under way, and what it finds noted in its folder of checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .checkpoint_folder import CheckpointFolder, Entry
from .digest import digest

_current: ContextVar[CheckpointFolder | None] = ContextVar("checkpoint_folder", default=None)


@contextlib.contextmanager
def checkpoints(
    checkpoint: str | Path | CheckpointFolder | None, identity: Callable[[], Mapping[str, str]]
) -> Iterator[CheckpointFolder | None]:
    """A block in which runs are noted in a folder, or in none; its first entry is what the run follows from.

    Args:
        checkpoint: The folder; None for none.
        identity: Makes parts of what the run follows from, by name; called where there is a folder.

    Raises:
        ValueError: If the folder holds another run, or is in use.

    Example:
        >>> with checkpoints(None, dict):
        ...     print(current_folder())
        None
    """
    if checkpoint is None:
        token = _current.set(None)
        try:
            yield None
        finally:
            _current.reset(token)
        return
    with checkpoint if isinstance(checkpoint, CheckpointFolder) else CheckpointFolder(checkpoint) as folder:
        token = _current.set(folder)
        try:
            start = folder.entry("start", identity())
            if start.finished is None:
                start.finish({})
            start.resume()
            yield folder
        finally:
            _current.reset(token)


def current_folder() -> CheckpointFolder | None:
    """The folder of the run that is under way, if it has one.

    Example:
        >>> current_folder() is None
        True
    """
    return _current.get()


def remembered(what: str, compute: Callable[[], Any], device: torch.device) -> Any:
    """A value that depends on the clock, or takes long: the one that was noted, where there is one.

    Args:
        what: Its name.
        compute: Makes it: numbers, strings, tensors, or lists and dictionaries of them.
        device: Of its tensors; a file is of no device.

    Example:
        >>> remembered("sum", lambda: 1 + 2, torch.device("cpu"))
        3
    """
    folder = current_folder()
    if folder is None:
        return compute()
    entry = folder.entry(what, {})
    if entry.finished is not None:
        entry.resume()
        return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, entry.finished["value"])
    value = compute()
    entry.finish({"value": value})
    return value


def done_once(what: str, module: nn.Module, change: Callable[[], Any]) -> None:
    """Change a module in a way that takes long, or give it the state that this left it in.

    Args:
        what: A name of the change.
        module: The module.
        change: Makes the change, in place.

    Example:
        >>> done_once("zeros", layer := torch.nn.Linear(1, 1), lambda: torch.nn.init.zeros_(layer.weight))
        >>> layer.weight.item()
        0.0
    """
    folder = current_folder()
    entry = None if folder is None else folder.entry(what, {})
    if entry is None or entry.finished is None:
        change()
        if entry is not None:
            entry.finish({"module": dict(module.state_dict())})
    else:
        module.load_state_dict(entry.finished["module"])
        entry.resume()


def seconds_before(folder: CheckpointFolder | None) -> float:
    """Seconds that a run took before it was killed.

    Example:
        >>> seconds_before(None)
        0.0
    """
    return 0.0 if folder is None else folder.seconds_before


def note_resumption(record: dict[str, Any], folder: CheckpointFolder | None) -> None:
    """Say in a record what was under way when the run was killed, if it was.

    Example:
        >>> record = {}
        >>> note_resumption(record, None)
        >>> record
        {}
    """
    if folder is not None and folder.seconds_before:
        record["resumed"] = folder.resumed or ["after all training"]


def start_from(what: str, module: nn.Module, identity: Mapping[str, str] | None = None) -> None:
    """Note the state that a module of the user's starts from, or put it back to that.

    Args:
        what: Its name.
        module: The module.
        identity: What else must be the same.

    Raises:
        ValueError: If another module is noted.

    Example:
        >>> start_from("flow", torch.nn.Linear(1, 1))
    """
    folder = current_folder()
    if folder is None:
        return
    state = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    shapes = {f"shape of {key}": str(tuple(value.shape)) for key, value in state.items()}
    entry = folder.entry(what, {**shapes, **(identity or {})})
    if entry.finished is None:
        entry.finish({"module": state})
    else:
        module.load_state_dict(entry.finished["module"], strict=False)
        entry.resume()


def training_entry(modules: nn.Module, options: Any, *, limited: bool) -> Entry | None:
    """What is noted of a training, where the run has a folder.

    Args:
        modules: What is trained.
        options: What else it follows from.
        limited: Whether there is a limit on time, with which what came before may have ended elsewhere; then sizes count alone.

    Raises:
        ValueError: If another training is noted.

    Example:
        >>> training_entry(torch.nn.Linear(1, 1), [], limited=False) is None
        True
    """
    folder = current_folder()
    if folder is None:
        return None
    state = modules.state_dict()
    identity: dict[str, Any] = {"sizes": [[name, list(value.shape)] for name, value in state.items() if isinstance(value, Tensor)]}
    if not limited:
        identity |= {"weights": dict(state), "random numbers": torch.get_rng_state(), "options": options}
    return folder.entry("training", {name: digest(value) for name, value in identity.items()})
