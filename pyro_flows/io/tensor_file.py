"""One file of plain data and tensors: written whole or not at all, and read without trust."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
#: End of the name of a file that is being written.
PARTIAL = ".partial"


def write_tensor_file(path: Path, description: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with plain data in its header: the file is there whole in the end, or as it was before.

    Args:
        path: The file; one that is there is replaced.
        description: JSON data.
        tensors: Tensors by name.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensor_file(Path(folder) / "x.safetensors", {"a": 1}, {"b": torch.zeros(1)})
        ...     read_tensor_file(Path(folder) / "x.safetensors")
        ({'a': 1}, {'b': tensor([0.])})
    """
    text = json.dumps(description, allow_nan=False)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    os.close(handle)
    partial = Path(name)
    try:
        own = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
        try:
            save_file(own, partial, metadata={"description": text})
        except SafetensorError as error:  # its own name for a full disk
            raise OSError(f"{path}: {error}") from error
        synchronise(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    synchronise(path.parent)


def read_tensor_file(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The plain data and tensors of a file.

    Raises:
        ValueError: If the file is damaged, a link, or of another kind; the message names it.

    Example:
        See :func:`write_tensor_file`.
    """
    metadata, tensors = _read(path, with_tensors=True)
    return _description(path, metadata), tensors


def read_description(path: Path) -> Any:
    """The plain data of a file alone.

    Raises:
        ValueError: If the file is damaged, a link, or of another kind; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensor_file(Path(folder) / "x.safetensors", {"a": 1}, {"b": torch.zeros(1)})
        ...     read_description(Path(folder) / "x.safetensors")
        {'a': 1}
    """
    return _description(path, _read(path, with_tensors=False)[0])


def _description(path: Path, metadata: Mapping[str, str]) -> Any:
    try:
        return json.loads(metadata["description"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its description cannot be read ({type(error).__name__}: {error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: If the file is damaged, a link, or of another kind; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"b": torch.zeros(1)}, Path(folder) / "x.safetensors")
        ...     read_tensors(Path(folder) / "x.safetensors")
        {'b': tensor([0.])}
    """
    return _read(path, with_tensors=True)[1]


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is not there, or no plain file")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or no file of this kind: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{path} holds {name!r} of {tensor.dtype}, which no object here has")
    return metadata, tensors


def synchronise(path: Path) -> None:
    """Wait until the disk has a file or the entries of a folder.

    Example:
        >>> synchronise(Path("."))
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
