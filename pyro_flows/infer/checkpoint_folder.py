"""What a run has done, in a folder, from which it goes on after it was killed and ends as if it had not been."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pyro_flows.io.codec import Decoder, Encoder
from pyro_flows.io.tensor_file import PARTIAL, read_description, read_tensor_file, write_tensor_file

from .generators import generator_states, set_generator_states

#: Version of the format.
_FORMAT = 1
_RUNNING, _SUFFIX = "running", ".safetensors"


class CheckpointFolder:
    """A folder of checkpoints of one run of :func:`~pyro_flows.fit`, :func:`~pyro_flows.fit_density` or
    :func:`~pyro_flows.fit_amortized`.

    A run is a sequence of steps that follow from its arguments and random numbers. What was trained is noted when it is done, and
    every so many seconds while it is; a run with the same arguments goes through the same sequence, takes what it finds noted, and
    trains on from there. On one thread of a CPU and without a limit on time the end is bit by bit that of a run that was never
    interrupted. The folder of a run that has ended gives the same result again.

    Files hold tensors and plain data, without pickle, and are replaced as a whole: a process that is killed while it writes leaves
    the one before. If a file cannot be written, as on a full disk, that is said in a warning, and training goes on.

    Args:
        path: The folder; made where it is missing.
        every: Seconds between checkpoints of what is being trained.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> import tempfile
        >>> def model():
        ...     pyro.sample("x", dist.Normal(1.0, 2.0))
        >>> options = {"guide": "affine", "max_steps": 60, "seed": 0, "progress": False}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = pf.fit(model, checkpoint=pf.infer.CheckpointFolder(folder, every=10.0), **options)
        ...     again = pf.fit(model, checkpoint=folder, **options)
        >>> first.losses == again.losses
        True
    """

    def __init__(self, path: str | Path, *, every: float = 30.0) -> None:
        if not isinstance(path, str | Path) or not str(path):
            raise ValueError(f"checkpoint must be the path of a folder or a CheckpointFolder, got {path!r}")
        if not isinstance(every, int | float) or isinstance(every, bool) or not 0 <= every < math.inf:
            raise ValueError(f"every must be a number of seconds that is not negative, got {every!r}")
        self.path, self.every = Path(path), float(every)
        self.resumed: list[str] = []
        self.seconds_before = 0.0
        self._number, self._began, self._written = 0, -math.inf, -math.inf
        self._lock: FileLock | None = None

    def __enter__(self) -> CheckpointFolder:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"checkpoint must be a folder, and {self.path} is a file")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"checkpoint {self.path} is in use by a run that has not ended; give another folder") from None
        for leftover in self.path.glob(f".*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        self._number, self._began, self._written, self.resumed = 0, time.monotonic(), time.monotonic(), []
        self.seconds_before = max([_seconds(path) for path in self.path.glob(f"*{_SUFFIX}")], default=0.0)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._lock is not None:
            self._lock.release()

    def entry(self, what: str, identity: Mapping[str, str]) -> Entry:
        """The next thing that the run does, and what is noted of it.

        Args:
            what: Its name.
            identity: Parts of what it follows from, by name.

        Raises:
            ValueError: If something else is noted in its place, or the file is damaged.
        """
        number, self._number = self._number, self._number + 1
        entry = Entry(self, number, what, dict(identity))
        done = self.path / f"{number}{_SUFFIX}"
        running = self.path / f"{_RUNNING}{_SUFFIX}"
        if done.exists():
            entry.finished = entry.read(done)
        elif running.exists():
            entry.running = entry.read(running)
        if entry.finished is None and entry.running is None and (self.path / f"{number + 1}{_SUFFIX}").exists():
            raise ValueError(f"{done} is missing, and what came after it is there; give another folder, or remove {self.path}")
        return entry


class Entry:
    """One thing that a run does.

    Args:
        folder: Where it is noted.
        number: Its place.
        what: Its name.
        identity: What it follows from.

    Attributes:
        finished: What was noted when it was done; None if it was not.
        running: What was noted while it was done; None if nothing was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     with CheckpointFolder(path) as folder:
        ...         folder.entry("sum", {"of": "numbers"}).finish({"sum": 3})
        ...     with CheckpointFolder(path) as folder:
        ...         folder.entry("sum", {"of": "numbers"}).finished["sum"]
        3
    """

    def __init__(self, folder: CheckpointFolder, number: int, what: str, identity: dict[str, str]) -> None:
        self.folder, self.number, self.what, self.identity = folder, number, what, identity
        self.finished: dict[str, Any] | None = None
        self.running: dict[str, Any] | None = None

    def due(self) -> bool:
        """Whether it is time to note what is being done."""
        return time.monotonic() - self.folder._written >= self.folder.every

    def note(self, content: Mapping[str, Any]) -> None:
        """Note where it stands, and the random number generators."""
        self._write(_RUNNING, content)

    def finish(self, content: Mapping[str, Any]) -> None:
        """Note that it is done, and what came of it."""
        if self._write(str(self.number), content):
            (self.folder.path / f"{_RUNNING}{_SUFFIX}").unlink(missing_ok=True)

    def resume(self) -> None:
        """Put the random number generators to where they were, and say where the run goes on."""
        content = self.finished if self.finished is not None else self.running
        if content is not None:
            set_generator_states(content["generators"])
            if self.finished is None:
                self.folder.resumed.append(f"{self.what} {self.number}")

    def _write(self, name: str, content: Mapping[str, Any]) -> bool:
        encoder = Encoder()
        plain = encoder.encode({**content, "generators": generator_states()}, self.what)
        description = {
            "format": _FORMAT, "number": self.number, "what": self.what, "identity": self.identity, "content": plain,
            "seconds": self.folder.seconds_before + time.monotonic() - self.folder._began,
        }  # fmt: skip
        written = False
        try:
            write_tensor_file(self.folder.path / f"{name}{_SUFFIX}", description, encoder.tensors)
            written = True
        except OSError as error:
            warnings.warn(
                f"a checkpoint could not be written to {self.folder.path} ({error}); training goes on, and a run that is killed "
                f"now starts again from the last one",
                stacklevel=2,
            )
        self.folder._written = time.monotonic()
        return written

    def read(self, path: Path) -> dict[str, Any] | None:
        """What a file says of this, None if it is of another."""
        description, tensors = read_tensor_file(path)
        wanted = {"format", "number", "what", "identity", "content", "seconds"}
        if not isinstance(description, dict) or set(description) != wanted or description["format"] != _FORMAT:
            raise ValueError(f"{path} is no checkpoint of this version; give another folder, or remove {self.folder.path}")
        if description["number"] != self.number and path.stem == _RUNNING:
            return None  # it was done after that
        before = description["identity"]
        same_kind = (description["number"], description["what"]) == (self.number, self.what) and isinstance(before, dict)
        differ = sorted(key for key in {*before, *self.identity} if before.get(key) != self.identity.get(key)) if same_kind else []
        if not same_kind or differ:
            words = (
                f"its {', '.join(differ)} differ" if differ else f"it has a {description['what']!r} where this has a {self.what!r}"
            )
            raise ValueError(
                f"{path} is of another run: {words}; a run goes on with the arguments, data and seed it began with. Give another "
                f"folder, or remove {self.folder.path} to start anew"
            )
        try:
            content = Decoder(tensors).decode(description["content"])
            content["generators"]["torch"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}; remove {self.folder.path} to start anew") from error
        found: dict[str, Any] = content
        return found


def _seconds(path: Path) -> float:
    """Seconds that a run had taken when it wrote a file."""
    try:
        found = read_description(path)["seconds"]
    except (ValueError, KeyError, TypeError):
        return 0.0  # this is said where the file is read
    return float(found) if isinstance(found, int | float) else 0.0
