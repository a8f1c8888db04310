"""A plain Python simulator with a prior, as a Pyro model that can be drawn from but has no density."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from tqdm import tqdm

from .parallel import WorkerDiedError, in_processes
from .sites import is_subsample

Simulator = Callable[[dict[str, Tensor]], Any]
Run = tuple[Tensor | None, str | None]


class SimulatorModel:
    """A Pyro model made of a prior and a simulator: any Python function of the latents that returns data.

    Give it to :class:`~pyro_flows.AmortizedFlow`, or to :func:`simulate`, which runs the simulator in parallel processes. Each run
    begins with its own seed in ``random``, ``numpy.random`` and ``torch``, so that results do not depend on the number of
    processes.

    Args:
        prior: A Pyro model without arguments, whose sites are the latents.
        simulator: ``{site: value} -> data``, a number, an array or a tensor of one fixed shape. It may raise, or return NaN.
        site: Name of the observed site.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> def prior():
        ...     pyro.sample("rate", dist.Gamma(2.0, 1.0))
        >>> model = SimulatorModel(prior, lambda latents: float(latents["rate"]) + 1.0)
        >>> model().shape
        torch.Size([])
    """

    def __init__(self, prior: Callable[[], Any], simulator: Simulator, site: str = "x") -> None:
        if not callable(prior):
            raise ValueError(f"prior must be a Pyro model without arguments, got {type(prior).__name__}")
        if not callable(simulator):
            raise ValueError(f"simulator must be callable as simulator(latents), got {type(simulator).__name__}")
        if not isinstance(site, str) or not site:
            raise ValueError(f"site must be the name of the observed site, got {site!r}")
        self.prior, self.simulator, self.site = prior, simulator, site

    def __call__(self, data: Tensor | None = None) -> Tensor:
        """Draw the latents and, unless given, the data."""
        with poutine.trace() as tracer:
            self.prior()
        nodes = {name: node for name, node in tracer.trace.nodes.items() if node["type"] == "sample" and not is_subsample(node)}
        latents = {name: node["value"] for name, node in nodes.items()}
        return pyro.sample(self.site, _Simulated(self.simulator, latents, None if data is None else data.shape), obs=data)


class _Simulated(TorchDistribution):  # type: ignore[misc]
    """What a simulator returns at given latents; it can be drawn and has no density."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, simulator: Simulator, latents: Mapping[str, Tensor], shape: torch.Size | None) -> None:
        self.simulator, self.latents, self.drawn = simulator, dict(latents), None
        if shape is None:
            self.drawn = as_tensor(simulator(self.latents), self.latents)
            shape = self.drawn.shape
        super().__init__((), shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _Simulated:
        if tuple(batch_shape) != ():
            raise ValueError(f"a simulator runs once per draw and has no batch shape; got {tuple(batch_shape)}")
        return self

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if tuple(sample_shape) != ():
            raise ValueError(f"a simulator runs once per draw and has no sample shape; got {tuple(sample_shape)}")
        drawn, self.drawn = self.drawn, None
        return as_tensor(self.simulator(self.latents), self.latents) if drawn is None else drawn

    def log_prob(self, value: Tensor) -> Tensor:
        raise ValueError("a simulator has no density, so that the ELBO is not known; train the guide with fit_amortized")


def as_tensor(data: Any, latents: Mapping[str, Tensor]) -> Tensor:
    """What a simulator returned, in the dtype and on the device of the latents.

    Example:
        >>> as_tensor([1, 2], {"x": torch.zeros(())})
        tensor([1., 2.])
    """
    like = next(iter(latents.values()))
    return torch.as_tensor(data).detach().to(dtype=like.dtype, device=like.device)


def run_simulator(
    simulator: Simulator, latents: Mapping[str, Tensor], seed: int, *, num_workers: int = 1, progress: bool = False
) -> list[Run]:
    """Run a simulator at every draw of the latents, in parallel processes by joblib, with a seed of its own for each.

    Args:
        simulator: ``{site: value} -> data``.
        latents: Values ``(S, site shape)`` by site.
        seed: With the number of the draw it makes that draw's seed.
        num_workers: Processes, 1 for none beside this one, -1 for one per core.
        progress: Show a progress bar.

    Returns:
        For each draw its data and None, or None and the message of what it raised, or that it took its process down. Fewer than S
        after Ctrl-C.

    Example:
        >>> [data.item() for data, _ in run_simulator(lambda v: 2 * v["x"], {"x": torch.arange(3.0)}, 0)]
        [0.0, 2.0, 4.0]
    """
    count = len(next(iter(latents.values())))
    size = max(1, min(256, count // 40))
    chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    rows = {name: value.detach().cpu() for name, value in latents.items()}

    def call(draws: range) -> tuple[Any, ...]:
        return simulator, {name: value[draws.start : draws.stop] for name, value in rows.items()}, seed, draws

    runs: dict[int, Run] = {}
    bar = tqdm(total=count, desc="simulating", disable=not progress)
    try:
        for number, part in in_processes(_run, [call(chunk) for chunk in chunks], num_workers):
            chunk = chunks[number]
            if isinstance(part, WorkerDiedError):
                part = _one_by_one([call(range(draw, draw + 1)) for draw in chunk], num_workers)
            runs.update(zip(chunk, part, strict=True))
            bar.update(len(chunk))
    except KeyboardInterrupt:
        kept = next((draw for draw in range(count) if draw not in runs), count)
        bar.write(f"interrupted; the first {kept} of {count} simulations are kept")
        runs = {draw: runs[draw] for draw in range(kept)}
    finally:
        bar.close()
    like = next(iter(latents.values()))
    found = [runs[draw] for draw in sorted(runs)]
    return [(None if data is None else data.to(like.device), message) for data, message in found]


def _one_by_one(calls: Sequence[tuple[Any, ...]], num_workers: int) -> list[Run]:
    """Draws of which one at least takes its process down."""
    found: dict[int, Run] = {}
    for number, part in in_processes(_run, calls, num_workers):
        found[number] = (None, "WorkerDiedError: the process that ran it died") if isinstance(part, WorkerDiedError) else part[0]
    return [found[number] for number in range(len(calls))]


def _run(simulator: Simulator, latents: Mapping[str, Tensor], seed: int, numbers: range) -> list[Run]:
    """A few draws, each with its seed; the generators of this process are put back."""
    found: list[Run] = []
    with generators_kept():
        for i, number in enumerate(numbers):
            own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            random.seed(own)
            np.random.seed(own)
            torch.manual_seed(own)
            values = {name: value[i] for name, value in latents.items()}
            try:
                found.append((as_tensor(simulator(values), values), None))
            except Exception as error:
                found.append((None, f"{type(error).__name__}: {error}"))
    return found


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the generators of ``random``, ``numpy.random`` and ``torch`` back at the end of a block.

    Example:
        >>> with generators_kept():
        ...     noise = random.random()
        >>> noise == random.random()
        True
    """
    state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
