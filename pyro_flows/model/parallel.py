"""Calls in parallel processes, of which one may die."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError


class WorkerDiedError(RuntimeError):
    """The process that ran a call was killed, mostly for want of memory, or fell over in compiled code.

    Example:
        >>> raise WorkerDiedError("call 3: its process died")
        Traceback (most recent call last):
        ...
        pyro_flows.model.parallel.WorkerDiedError: call 3: its process died
    """


def in_processes(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], num_workers: int) -> Iterator[tuple[int, Any]]:
    """Results of calls as they come, by joblib.

    When a process dies, all calls that were under way are made again, each alone, in processes that are new; what dies then is to
    blame, and its result is a :class:`WorkerDiedError`. The other calls go on.

    Args:
        function: The function, which runs in other processes unless ``num_workers`` is 1.
        calls: Its arguments, for each call.
        num_workers: Number of processes, 1 for none beside this one, -1 for one per core.

    Returns:
        The number of each call with what the function returned, in any order.

    Raises:
        ValueError: If ``num_workers`` is no such number.

    Example:
        >>> sorted(in_processes(pow, [(2, 3), (3, 2)], 1))
        [(0, 8), (1, 9)]
    """
    if not isinstance(num_workers, int) or isinstance(num_workers, bool) or num_workers < -1 or num_workers == 0:
        raise ValueError(f"num_workers must be a number of processes, or -1 for one per core, got {num_workers!r}")
    left = list(range(len(calls)))
    while left:
        jobs = (delayed(_numbered)(function, number, calls[number]) for number in list(left))
        try:
            for number, result in Parallel(n_jobs=num_workers, batch_size=1, return_as="generator_unordered")(jobs):
                left.remove(number)
                yield number, result
        except TerminatedWorkerError:
            under_way = 2 * (cpu_count() if num_workers == -1 else num_workers)  # joblib gives out twice as many as run
            for number in left[:under_way]:
                yield number, _alone(function, number, calls[number])
            del left[:under_way]


def _numbered(function: Callable[..., Any], number: int, arguments: tuple[Any, ...]) -> tuple[int, Any]:
    return number, function(*arguments)


def _alone(function: Callable[..., Any], number: int, arguments: tuple[Any, ...]) -> Any:
    try:
        return Parallel(n_jobs=2)([delayed(function)(*arguments)])[0]  # one job would run in this very process
    except TerminatedWorkerError:
        return WorkerDiedError(f"call {number}: its process died, killed for want of memory or fallen over in compiled code")
