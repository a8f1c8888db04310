"""Ordinary differential equations, by torchdiffeq where steps adapt, and on a fixed grid that compilers and vmap can follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .mode import is_eager

#: Solvers whose steps adapt to a tolerance.
Adaptive = Literal["dopri5", "dopri8", "bosh3"]
#: Solvers on a grid of equal steps.
Fixed = Literal["rk4", "midpoint", "euler"]
Solver = Adaptive | Fixed

_ADAPTIVE, _FIXED = get_args(Adaptive), get_args(Fixed)
#: Steps of a solver that adapts after which it gives up.
_MOST_STEPS = 1000


def check_solver(solver: str, tolerance: float, num_steps: int | None) -> None:
    """Refuse options of :func:`solve_ode` that do not fit.

    Raises:
        ValueError: If one does not; the message names it.

    Example:
        >>> check_solver("dopri5", 1e-5, None)
    """
    if solver not in (*_ADAPTIVE, *_FIXED):
        raise ValueError(f"solver must be one of {[*_ADAPTIVE, *_FIXED]}, got {solver!r}")
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance!r}")
    if (num_steps is None) != (solver in _ADAPTIVE):
        need = "num_steps, the number of its equal steps" if solver in _FIXED else "no num_steps: its steps adapt to tolerance"
        raise ValueError(f"solver={solver!r} takes {need}; got num_steps={num_steps!r}")
    if num_steps is not None and (not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1):
        raise ValueError(f"num_steps must be a positive integer, got {num_steps!r}")


def solve_ode(
    slope: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    start: float,
    end: float,
    *,
    solver: Solver = "dopri5",
    tolerance: float = 1e-5,
    num_steps: int | None = None,
    adjoint: Sequence[Tensor] | None = None,
    watched: int | None = None,
) -> Tensor:
    r"""Solve :math:`\dot s = f(t, s)` from one time to another.

    Solvers that adapt are those of torchdiffeq. The estimated error of every step is kept below ``tolerance``, times the mean of 1
    and the size of what is solved for, in every number of every row; one step size serves all rows. They look at values,
    which compilation and ``vmap`` do not allow: there a solver on a fixed grid is needed. Gradients go through the steps, or with
    ``adjoint`` are those of the adjoint equation, solved backwards at the same tolerance with memory that does not grow with the
    number of steps.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), *Neural ordinary differential equations*, https://arxiv.org/abs/1806.07366

    Args:
        slope: The function f of time ``()`` and state ``(*, K)``.
        state: At the start, rows ``(*, K)``.
        start: First time.
        end: Last time, before or after the first one.
        solver: ``"dopri5"``, ``"dopri8"`` or ``"bosh3"``, which adapt; ``"rk4"``, ``"midpoint"`` or ``"euler"``, on a fixed grid.
        tolerance: Of solvers that adapt.
        num_steps: Number of equal steps of the others.
        adjoint: Tensors beside the state to which the adjoint equation has gradients; None for gradients through the steps.
        watched: Numbers at the beginning of each row whose error counts; all if None.

    Returns:
        The state at the end, ``(*, K)``.

    Raises:
        ValueError: If an option does not fit, or the tolerance is below what the dtype resolves.
        ArithmeticError: If steps become too small or too many: the equation is stiff, or the slope not finite.

    Example:
        >>> solve_ode(lambda t, s: -s, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0, tolerance=1e-9).item()  # doctest: +ELLIPSIS
        0.36787944...
    """
    check_solver(solver, tolerance, num_steps)
    if start == end:
        raise ValueError(f"start and end must differ, got {start} for both")
    if num_steps is not None:
        return _on_grid(slope, state, start, end, solver, num_steps)
    if not is_eager():
        raise ValueError(
            f"solver={solver!r} adapts its steps to values, which torch.compile, torch.func and tracers do not show; use "
            f'solver="rk4" with num_steps there'
        )
    least = 10 * torch.finfo(state.dtype).eps
    if tolerance < least:
        raise ValueError(
            f"tolerance must be at least {least:.1e} for {state.dtype}, whose rounding is larger than {tolerance:.1e}; use "
            f"float64 or a larger tolerance"
        )
    if not state.numel():
        return state
    return _adapting(slope, state, start, end, solver, tolerance, adjoint, watched)


def _on_grid(
    slope: Callable[[Tensor, Tensor], Tensor], state: Tensor, start: float, end: float, solver: str, num_steps: int
) -> Tensor:
    h = (end - start) / num_steps

    def at(step: float) -> Tensor:
        return state.new_full((), start + step * h)

    for i in range(num_steps):
        first = slope(at(i), state)
        if solver == "euler":
            state = state + h * first
            continue
        middle = slope(at(i + 0.5), state + 0.5 * h * first)
        if solver == "midpoint":
            state = state + h * middle
            continue
        again = slope(at(i + 0.5), state + 0.5 * h * middle)
        last = slope(at(i + 1), state + h * again)
        state = state + (h / 6) * (first + 2 * (middle + again) + last)
    return state


def _adapting(
    slope: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    start: float,
    end: float,
    solver: str,
    tolerance: float,
    adjoint: Sequence[Tensor] | None,
    watched: int | None,
) -> Tensor:
    with torch.device("cpu"):  # where its tables are made, once; they are moved when used
        from torchdiffeq import odeint, odeint_adjoint  # takes long to import

    rows = state.reshape(-1, state.shape[-1])

    def of_rows(t: Tensor, s: Tensor) -> Tensor:
        return slope(t, s.reshape(state.shape)).reshape(rows.shape)

    # A step ends exactly at the end: what torchdiffeq interpolates otherwise is less exact than its steps.
    times = torch.tensor([start, end], dtype=torch.float64, device=state.device)
    options = {"norm": lambda error: error[..., :watched].abs().amax(), "max_num_steps": _MOST_STEPS, "step_t": times[1:]}
    common = {"rtol": 0.5 * tolerance, "atol": 0.5 * tolerance, "method": solver, "options": options}
    try:
        if adjoint is None:
            found = odeint(of_rows, rows, times, **common)
        else:
            backwards = {"max_num_steps": _MOST_STEPS}
            found = odeint_adjoint(of_rows, rows, times, adjoint_params=tuple(adjoint), adjoint_options=backwards, **common)
    except AssertionError as error:
        with torch.no_grad():
            finite = bool(torch.isfinite(of_rows(times[0].to(state.dtype), rows)).all())
        why = "the equation is too stiff for it" if finite else "the slope is not finite at the start"
        raise ArithmeticError(
            f"solver {solver!r} did not reach time {end:g} from {start:g} at tolerance {tolerance:g}: {why} ({error}); raise "
            f"tolerance, or keep the field smooth by regularisers, a lower learning rate or a narrower network"
        ) from error
    return found[-1].reshape(state.shape)
