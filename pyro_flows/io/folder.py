"""A folder with plain data and tensors: written whole or not at all, and read without trust."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .tensor_file import read_tensors, synchronise

#: Version of the format, and bytes that a description may have.
FORMAT = 1
_LARGEST_CONFIG = 64 * 2**20
CONFIG, WEIGHTS, DRAWS = "config.json", "weights.safetensors", "draws.nc"


def write_folder(
    path: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool = False,
    extra: Callable[[Path], Any] | None = None,
) -> Path:
    """Write a folder: all of it is there in the end, or nothing has changed.

    Args:
        path: The folder.
        config: Plain data.
        tensors: Tensors by name.
        overwrite: Whether a folder of this kind that is there may be replaced.
        extra: Called with the folder that is being made, to write more into it.

    Returns:
        The path.

    Raises:
        ValueError: If there is something at the path already, or its parent is no folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(p.name for p in write_folder(folder + "/x", {"kind": "test"}, {"a": torch.zeros(1)}).iterdir())
        ['config.json', 'weights.safetensors']
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"path must be a folder to make in one that exists, got {path}; make {path.parent} first")
    if os.path.lexists(path):
        if not overwrite:
            raise ValueError(f"path {path} is there already; give another name, or overwrite=True")
        if path.is_symlink() or not path.is_dir() or not {item.name for item in path.iterdir()} <= {CONFIG, WEIGHTS, DRAWS}:
            raise ValueError(f"path {path} is no folder that this package wrote, and is not replaced; give another name")
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS)
        text = json.dumps({"format": FORMAT, **config}, indent=1, allow_nan=False)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        if extra is not None:
            extra(partial)
        for item in partial.iterdir():
            synchronise(item)
        os.chmod(partial, 0o755)
        if os.path.lexists(path):
            before = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.before."))
            os.rename(path, before / path.name)
            os.rename(partial, path)
            shutil.rmtree(before)
        else:
            os.rename(partial, path)
        synchronise(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return path


def read_folder(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plain data and tensors of a folder.

    Raises:
        ValueError: If a file is missing, damaged, a link, of another format or too large; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_folder(folder + "/x", {"kind": "test"}, {"a": torch.zeros(1)})
        ...     read_folder(path)
        ({'format': 1, 'kind': 'test'}, {'a': tensor([0.])})
    """
    path = Path(path)
    for name in (CONFIG, WEIGHTS):
        if (path / name).is_symlink() or not (path / name).is_file():
            raise ValueError(f"{path / name} is not there, or no plain file; {path} is no folder that this package wrote")
    if (size := (path / CONFIG).stat().st_size) > _LARGEST_CONFIG:
        raise ValueError(f"{path / CONFIG} has {size:,} bytes, more than any description has")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path / CONFIG} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ValueError(f"{path / CONFIG} has format {found!r}, this version reads {FORMAT}; use the version that wrote it")
    return config, read_tensors(path / WEIGHTS)
