"""Free-form flow of angles, and of numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.transforms.free_form import FreeForm

from .angles import check_circles, features, support, wrapped


class TorusFreeForm(FreeForm):
    r"""Free-form flow on a torus, or on a product of circles and lines: :math:`g(x) = x + u(E(x))`, angles modulo :math:`2 \pi`.

    Networks see angles by cosine and sine, E, so that there is no seam. The inverse is found for the map of the line that winds
    around the circle.

    References:
        Sorrenson, Draxler, Rousselot, Hummerich, Köthe (2024), *Learning distributions on manifolds with free-form flows*,
        https://arxiv.org/abs/2312.09852

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        circles: Which of the variables are angles, ``(D,)``; all if None.
        hidden_dims: Hidden layers of both networks; one at least.

    Raises:
        ValueError: If an argument is not as described.
        ArithmeticError: In the inverse, in eager mode, if it is not found. Elsewhere it is NaN.

    Example:
        >>> TorusFreeForm(2, circles=(True, False)).domain
        vectors of (angle in [-pi, pi), number)
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        circles: Sequence[bool] | None = None,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        self.circles = check_circles(input_dim, circles)
        super().__init__(input_dim, context_dim, hidden_dims=hidden_dims)
        self.domain = self.codomain = support(self.circles)

    @property
    def _num_seen(self) -> int:
        return sum(2 if circle else 1 for circle in self.circles)

    def _seen(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        z, parts, k = features(x, self.circles), [], 0
        for i, circle in enumerate(self.circles):
            column = v[..., i : i + 1]
            along = [-z[..., None, k + 1 : k + 2] * column, z[..., None, k : k + 1] * column]
            parts += along if circle else [column]
            k += 2 if circle else 1
        return z, torch.cat(parts, -1)

    def gap(self, a: Tensor, b: Tensor) -> Tensor:
        """Difference ``(*, D)`` of points, of angles the shorter way round."""
        return self.arrived(a - b)

    def arrived(self, x: Tensor) -> Tensor:
        return wrapped(x, torch.tensor(self.circles, device=x.device))
