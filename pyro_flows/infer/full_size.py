"""The full size of plates of which a call, or a process, holds only a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from . import processes


class FullSize(Messenger):  # type: ignore[misc]
    r"""Scales the sites of plates to the full size of the data, of which this call holds some rows and other processes others.

    A model that says ``pyro.plate("data", len(x))`` takes ``x`` for all the data there are. Where it is a shard of them, or a
    minibatch, the prior counts too much: two processes with half of the data each, whose gradients are averaged, give posterior
    standard deviations that are :math:`\sqrt 2` too large. Inside this context every site in the plate, latent or observed, in
    model and guide, has its log-density multiplied by

    .. math:: \frac{N R}{\sum_r n_r}

    with :math:`N` the full size, :math:`R` the number of processes and :math:`n_r` the size that the plate has in process
    :math:`r`. The mean of the losses over the processes, and so of their gradients, is then that of one process which holds all
    rows, whether the processes hold equal numbers of rows or not. A plate that has its full size already, as
    ``pyro.plate("data", N, subsample=rows)``, stays as it is.

    Where there are several processes, all must run the same model: each run sums the sizes over them once per plate.

    Args:
        sizes: Full size of every plate that is sharded, by its name. Other plates stay as they are.

    Raises:
        ValueError: If a size is not a positive integer; on leaving the context, if a plate was not met; in the model, if a plate
            is larger than its full size, or changes its size within a run, or a parameter has a row for each element of a part of
            the data, or the run is traced by ``torch.jit``, which would freeze the sizes.

    Example:
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
        >>> y = torch.zeros(10)
        >>> with FullSize({"data": 40}):
        ...     part = pyro.poutine.trace(model).get_trace(y)
        >>> whole = pyro.poutine.trace(model).get_trace(y.repeat(4))
        >>> bool(part.log_prob_sum() == whole.log_prob_sum())
        True
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        if not isinstance(sizes, Mapping):
            raise ValueError(f"sizes must be a dictionary of plate names and full sizes, got {sizes!r}")
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"sizes: the full size of plate {name!r} must be a positive integer, got {size!r}")
        super().__init__()
        self.sizes = dict(sizes)
        self._found: dict[str, tuple[int, float]] = {}
        self._met: set[str] = set()

    def __enter__(self) -> FullSize:
        self._found = {}
        self._met = set()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Any:
        result = super().__exit__(exc_type, exc_value, traceback)
        missing = self.sizes.keys() - self._found.keys()
        if exc_type is None and missing:
            met = f"it has {sorted(self._met)}" if self._met else "it has no plate"
            raise ValueError(f"sizes: no site of the model is in plate {min(missing)!r}; {met}")
        return result

    def _pyro_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            self._met.add(frame.name)
            if frame.name in self.sizes:
                msg["scale"] = msg["scale"] * self._factor(frame)

    def _pyro_post_param(self, msg: Any) -> None:
        event_dim = msg["kwargs"].get("event_dim")
        for frame in msg["cond_indep_stack"]:
            if frame.name not in self.sizes or frame.dim is None or event_dim is None:
                continue
            rows = frame.dim - event_dim
            shape = msg["value"].shape
            if len(shape) >= -rows and shape[rows] != 1:
                check_not_local(f"parameter {msg['name']!r}", frame.name, frame.full_size, self.sizes[frame.name])

    def _factor(self, frame: Any) -> float:
        size = int(frame.full_size)
        if frame.name not in self._found:
            if torch._C._get_tracing_state() is not None:
                raise ValueError(f"the full size of plate {frame.name!r} cannot be kept in a JIT ELBO; use the one without Jit")
            full = self.sizes[frame.name]
            mean = processes.mean(size)
            if size > full or mean > full:
                raise ValueError(f"sizes: plate {frame.name!r} has {size} elements, more than its full size {full}")
            self._found[frame.name] = size, full / mean
        first, factor = self._found[frame.name]
        if first != size:
            raise ValueError(f"plate {frame.name!r} has {first} elements at one site and {size} at another; it must have one size")
        return factor


def check_not_local(what: str, plate: str, size: int, full_size: int) -> None:
    """Refuse what has a row for each element of a plate that holds only a part of the data.

    Args:
        what: What has the rows, for the message.
        plate: Name of the plate.
        size: Number of elements that the plate has in this call.
        full_size: Number of elements over all calls and processes.

    Raises:
        ValueError: If the plate is smaller than its full size.
    """
    if size < full_size:
        raise ValueError(
            f"{what} has a row for each of the {size} elements of plate {plate!r} that this call holds, of {full_size}, so that "
            f"other calls and processes would train the same rows for other elements; let an encoder give the latents of an "
            f'element, or hold rows for all and say pyro.plate("{plate}", {full_size}, subsample=rows)'
        )
