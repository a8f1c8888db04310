"""Angles among other variables: what networks see of them, and wrapping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.transforms.univariate.circle_maps import turns

#: One period of an angle.
ANGLE = constraints.interval(-math.pi, math.pi)


def check_circles(input_dim: int, circles: Sequence[bool] | None) -> tuple[bool, ...]:
    """Which variables are angles; all if None.

    Raises:
        ValueError: If it does not hold a truth value for every variable.

    Example:
        >>> check_circles(2, None)
        (True, True)
    """
    if circles is None:
        return (True,) * input_dim
    if not isinstance(circles, Sequence):
        raise ValueError(f"circles must be a sequence of {input_dim} booleans, True for an angle; got {circles!r}")
    found = tuple(circles)
    if len(found) != input_dim or not all(isinstance(entry, bool) for entry in found):
        raise ValueError(f"circles must hold {input_dim} booleans, True for an angle; got {circles!r}")
    return found


class ProductOfCircles(constraints.Constraint):
    r"""Vectors of angles on :math:`[-\pi, \pi)` and of other numbers.

    Args:
        circles: Which of the variables are angles.

    Example:
        >>> ProductOfCircles((True, False)).check(torch.tensor([[3.0, 4.0], [4.0, 3.0]]))
        tensor([ True, False])
    """

    event_dim = 1

    def __init__(self, circles: tuple[bool, ...]) -> None:
        self.circles = circles

    def __repr__(self) -> str:
        kinds = ", ".join("angle in [-pi, pi)" if circle else "number" for circle in self.circles)
        return f"vectors of ({kinds})"

    def check(self, value: Tensor) -> Tensor:
        """Whether angles lie on one period, ``(*)``."""
        is_circle = torch.tensor(self.circles, device=value.device)
        return (~is_circle | ANGLE.check(value)).all(-1)


def support(circles: Sequence[bool]) -> constraints.Constraint:
    """That of such variables.

    Example:
        >>> support((False, False)) is constraints.real_vector
        True
    """
    return ProductOfCircles(tuple(circles)) if any(circles) else constraints.real_vector


def circles_of(support: constraints.Constraint) -> tuple[bool, ...] | None:
    """Which variables are angles under a support of :func:`support`; None if there are none.

    Example:
        >>> circles_of(ProductOfCircles((True, False)))
        (True, False)
    """
    return support.circles if isinstance(support, ProductOfCircles) else None


def wrap(angle: Tensor) -> Tensor:
    r"""An angle on :math:`[-\pi, \pi)`.

    Example:
        >>> round(wrap(torch.tensor(4.0)).item(), 4)
        -2.2832
    """
    return (angle - turns(angle)).clamp(-math.pi, math.pi)


def wrapped(value: Tensor, is_circle: Tensor) -> Tensor:
    r"""Angles brought to :math:`[-\pi, \pi)`, other variables as they are; ``(*, D)``.

    Example:
        >>> wrapped(torch.tensor([4.0, 4.0]), torch.tensor([True, False]))
        tensor([-2.2832,  4.0000])
    """
    return torch.where(is_circle, wrap(value), value)


def features(value: Tensor, is_circle: Sequence[bool]) -> Tensor:
    """Cosine and sine of angles, and other variables as they are, ``(*, D)`` to ``(*, F)``.

    Example:
        >>> features(torch.tensor([0.0, 4.0]), (True, False))
        tensor([1., 0., 4.])
    """
    parts = []
    for i, circle in enumerate(is_circle):
        column = value[..., i : i + 1]
        parts += [column.cos(), column.sin()] if circle else [column]
    return torch.cat(parts, -1) if parts else value[..., :0]
