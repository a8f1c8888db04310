"""Checkpoints of a training run, from which it goes on as if it had not been interrupted."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from . import processes
from .generators import generator_states, set_generator_states


class Checkpoint:
    """One file with the states of modules and optimisers, the step, and the random number generators of every process.

    The file is written by the first process, and replaces the one before at once: a run that is killed while it writes leaves the
    one before. It is read by the first process, which sends it to the others, so that only its machine needs the file. It holds
    tensors and plain numbers and is read with ``weights_only``: a file from elsewhere cannot run code.

    Every process calls :meth:`load` and :meth:`save`, at the same steps. Kept are the generators of torch (of the CPU, and of the
    current CUDA device once it is in use), of NumPy and of Python; a generator object of one's own is not.

    Args:
        path: The file.
        states: What has a ``state_dict`` and a ``load_state_dict``: the loss module, the optimiser, a scheduler of the step size.
            A module in ``DistributedDataParallel`` is stored without it, so that its parameters can be read by one process.

    Raises:
        ValueError: If there is nothing to store, or something has no ``state_dict``.

    Example:
        >>> import tempfile
        >>> module = torch.nn.Linear(1, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint = Checkpoint(folder + "/run.pt", module=module)
        ...     start = checkpoint.load()
        ...     checkpoint.save(10)
        ...     start, checkpoint.load()
        (0, 10)
    """

    def __init__(self, path: str | Path, **states: Any) -> None:
        if not states:
            raise ValueError("states is empty; name what to store, as in Checkpoint(path, loss=loss, optimizer=optimizer)")
        for name, state in states.items():
            if not (hasattr(state, "state_dict") and hasattr(state, "load_state_dict")):
                raise ValueError(f"{name} must have state_dict and load_state_dict, got {type(state).__name__}")
        self.path = Path(path)
        self.states = {
            name: state.module if isinstance(state, DistributedDataParallel) else state for name, state in states.items()
        }

    def save(self, step: int) -> None:
        """Write the file.

        Args:
            step: Number of steps done.
        """
        generators = processes.gather(generator_states())
        if generators is None:
            return
        content = {
            "step": step,
            "states": {name: state.state_dict() for name, state in self.states.items()},
            "generators": generators,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def load(self, *, new_noise: bool = False) -> int:
        """Read the file, if there is one, into everything it was made of.

        Args:
            new_noise: Leave the random number generators as they are. A run with another number of processes needs it; it is
                then valid but does not end in the same place.

        Returns:
            Number of steps done; 0 if there is no file.

        Raises:
            ValueError: If the file is not a checkpoint, or one of other modules, or, without ``new_noise``, of another number of
                processes.
        """
        data = processes.broadcast(self.path.read_bytes() if processes.rank() == 0 and self.path.exists() else None)
        if data is None:
            return 0
        try:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            step, states, generators = int(content["step"]), content["states"], content["generators"]
        except Exception as error:  # what the unpickler of torch meets in a file of another kind is no one class of errors
            raise ValueError(f"{self.path} is no checkpoint, or a damaged one; remove it to start anew ({error})") from error
        if states.keys() != self.states.keys():
            raise ValueError(f"{self.path} holds the states of {sorted(states)}, and those of {sorted(self.states)} are wanted")
        if not new_noise and len(generators) != processes.world_size():
            raise ValueError(
                f"{self.path} was written by {len(generators)} processes and is read by {processes.world_size()}; start as many, "
                f"or call load(new_noise=True) to go on with other noise"
            )
        for name, state in self.states.items():
            try:
                state.load_state_dict(states[name])
            except (RuntimeError, KeyError, ValueError) as error:
                raise ValueError(f"{self.path} holds another {name} than the one it is read into: {error}") from error
        if not new_noise:
            set_generator_states(generators[processes.rank()])
        return step
