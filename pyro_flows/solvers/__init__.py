"""Solvers with gradients through the solution, not through the iterations."""

from __future__ import annotations

from .bracketed_newton import bracketed_newton, most_iterations
from .damped_newton import damped_newton
from .fixed_point import fixed_point
from .implicit import attach_gradient
from .log_det import log_abs_det, log_det_near_one
from .mode import is_eager
from .ode import solve_ode
from .tanh_root import sech_squared, tanh_root

__all__ = [
    "attach_gradient",
    "bracketed_newton",
    "damped_newton",
    "fixed_point",
    "is_eager",
    "log_abs_det",
    "log_det_near_one",
    "most_iterations",
    "sech_squared",
    "solve_ode",
    "tanh_root",
]
