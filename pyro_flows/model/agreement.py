"""Whether two ways of evaluating a log-density agree, and whether its gradient is that of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """A log-density at a few particles.

    Args:
        value: Log-density, ``(N,)``.
        gradient: Its gradient, ``(N, D)``.
        terms: What each site contributes, ``(N,)``.
    """

    value: Tensor
    gradient: Tensor
    terms: Mapping[str, Tensor]

    @property
    def is_finite(self) -> bool:
        """Whether values and gradients are finite."""
        return bool(torch.isfinite(self.value).all() & torch.isfinite(self.gradient).all())


def difference(found: Evaluation, expected: Evaluation) -> str | None:
    """Where two evaluations differ by more than their type's accuracy, in words; None where they agree.

    Compared site by site, so that a small site's error does not hide in a large one's sum.

    Example:
        >>> at_zero = Evaluation(torch.zeros(1), torch.zeros(1, 2), {"x": torch.zeros(1)})
        >>> at_one = Evaluation(torch.ones(1), torch.zeros(1, 2), {"x": torch.ones(1)})
        >>> difference(at_zero, at_zero), difference(at_one, at_zero)
        (None, "differs from single draws at site 'x' by up to 1 nats")
    """
    if set(found.terms) != set(expected.terms):
        return f"reaches the sites {sorted(found.terms)}, single draws {sorted(expected.terms)}"
    for name, term in expected.terms.items():
        if not _close(found.terms[name], term):
            return f"differs from single draws at site {name!r} by up to {_largest(found.terms[name], term)} nats"
    if not _close(found.value, expected.value):
        return f"differs from single draws by up to {_largest(found.value, expected.value)} nats"
    if not _close(found.gradient, expected.gradient):
        return f"has another gradient than single draws, by up to {_largest(found.gradient, expected.gradient)}"
    return None


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    tolerance = 1e3 * torch.finfo(expected.dtype).eps
    finite = expected[torch.isfinite(expected)].abs()
    scale = 1.0 + (float(finite.max()) if len(finite) else 0.0)
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _largest(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"shape ({tuple(found.shape)} and {tuple(expected.shape)})"
    return f"{float((found - expected).abs().max()):.3g}"


def cut_directions(
    value: Callable[[Tensor], Tensor], points: Tensor, gradients: Tensor, directions: Mapping[str, slice]
) -> list[str]:
    """Blocks of coordinates along which values change otherwise than their gradient says.

    Central differences at two step sizes give the slope and its accuracy. A block is named where slope and gradient
    are apart by a tenth and by ten times that accuracy, at two points of three: kinks and noise do not count, a part
    of the computation that autograd does not see (``.item()``, ``torch.tensor([x])``, ``.detach()``) does.

    Args:
        value: Log-density of one point, ``(D,) -> ()``.
        points: Where to look, ``(N, D)``.
        gradients: What autograd says there, ``(N, D)``.
        directions: Blocks of coordinates, by name.

    Example:
        >>> points = torch.tensor([[1.0], [2.0]])
        >>> cut_directions(lambda x: (x.detach() * x).sum(), points, points, {"x": slice(0, 1)})
        ['x']
    """
    everywhere = slice(0, points.shape[-1])
    if not _is_cut(value, points, gradients, everywhere):
        return []
    return [name for name, block in directions.items() if _is_cut(value, points, gradients, block)]


@torch.no_grad()
def _is_cut(value: Callable[[Tensor], Tensor], points: Tensor, gradients: Tensor, block: slice) -> bool:
    eps = torch.finfo(points.dtype).eps
    # Far from the origin a step must be many times the spacing of numbers there.
    step = max(eps ** (1 / 3), 256 * eps * float(points[:, block].abs().max()))
    votes: list[bool] = []
    for point, gradient in zip(points, gradients, strict=True):
        direction = torch.zeros_like(point)
        # With the gradient's signs, the parts of the slope do not cancel.
        direction[block] = torch.where(gradient[block] < 0, -1.0, 1.0).to(point)
        slope = float((gradient * direction).sum())
        ends = [[float(value(point + sign * h * direction)) for sign in (1, -1)] for h in (step, 2 * step)]
        near, far = (_slope(pair, h) for pair, h in zip(ends, (step, 2 * step), strict=True))
        noise = 16 * eps * (1 + max(abs(end) for pair in ends for end in pair)) / step
        gap = abs(near - slope)
        accuracy = abs(near - far) + noise
        votes.append(gap > 10 * accuracy and gap > 0.1 * max(abs(near), abs(slope)))
    return sum(votes) > len(votes) / 2


def _slope(pair: Sequence[float], step: float) -> float:
    return (pair[0] - pair[1]) / (2 * step)
