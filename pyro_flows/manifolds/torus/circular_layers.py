"""Coupling and autoregressive layers of angles, and of angles among other variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_flows.nn.mlp import MLP
from pyro_flows.transforms.core import FlowTransform
from pyro_flows.transforms.elementwise import check_univariate
from pyro_flows.transforms.univariate import CircularSpline, RationalQuadraticSpline, UnivariateMap

from .angles import check_circles, features, support, wrapped


class _CircularLayer(FlowTransform):
    """Which variables are angles, and the maps of either kind."""

    is_circle: Tensor

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        circles: Sequence[bool] | None,
        circle_map: Callable[[], UnivariateMap],
        line_map: Callable[[], UnivariateMap],
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.circles = check_circles(input_dim, circles)
        self.circle_map = check_univariate(circle_map(), with_parameters=True)
        self.line_map = None if all(self.circles) else check_univariate(line_map(), with_parameters=True)
        kinds = {map_.inverse_kind for map_ in (self.circle_map if any(self.circles) else None, self.line_map) if map_ is not None}
        self.inverse_kind = "solved" if "solved" in kinds else "closed"
        self.register_buffer("is_circle", torch.tensor(self.circles))
        self.domain = self.codomain = support(self.circles)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, circles={self.circles}"

    def _map_of(self, i: int) -> UnivariateMap:
        return self.circle_map if self.circles[i] or self.line_map is None else self.line_map

    def _mapped(self, at: Tensor, raws: Sequence[Tensor], which: Sequence[int], inverse: bool) -> tuple[Tensor, Tensor]:
        """Some of the variables ``(*, len(which))``, each by raw parameters ``(*, param_count)`` of its own."""
        values, log_det = [], torch.zeros_like(at[..., 0])
        for k, (i, raw) in enumerate(zip(which, raws, strict=True)):
            map_ = self._map_of(i)
            direction = map_.inverse_and_log_det if inverse else map_.forward_and_log_det
            value, log_slope = direction(at[..., k], map_.split(raw.movedim(-1, 0)))
            values.append(value)
            log_det = log_det + log_slope
        return torch.stack(values, -1), log_det

    def _features_dim(self, which: Sequence[int]) -> int:
        return sum(2 if self.circles[i] else 1 for i in which)


class CircularCoupling(_CircularLayer):
    r"""Coupling layer on a torus, or on a product of circles and lines: angles by circular maps, other variables by splines.

    :math:`y_A = x_A,\ y_B = u(x_B; g(\cos x_A, \sin x_A, c))`, wrapped to :math:`[-\pi, \pi)`; the network sees angles by their
    cosine and sine, so that there is no seam. Starts at the identity.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428, section 2.2

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        circles: Which variables are angles, ``(D,)``; all if None.
        circle_map: Makes the map of an angle, one with :math:`u(x + 2\pi) = u(x) + 2\pi`.
        line_map: Makes the map of another variable.
        hidden_dims: Hidden layers of the network.
        mask: True for the variables A that pass, ``(D,)``; by default the first half.

    Raises:
        ValueError: If an argument is not as described, or all variables pass.

    Example:
        >>> CircularCoupling(2)(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        circles: Sequence[bool] | None = None,
        circle_map: Callable[[], UnivariateMap] = CircularSpline,
        line_map: Callable[[], UnivariateMap] = RationalQuadraticSpline,
        hidden_dims: Sequence[int] = (64, 64),
        mask: Sequence[bool] | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim, circles, circle_map, line_map)
        keep = [i < input_dim // 2 for i in range(input_dim)] if mask is None else list(mask)
        if len(keep) != input_dim or not all(isinstance(entry, bool) for entry in keep) or all(keep):
            raise ValueError(f"mask must hold {input_dim} booleans, True for a variable that passes, one of them False; got {keep}")
        self.passed = [i for i in range(input_dim) if keep[i]]
        self.mapped = [i for i in range(input_dim) if not keep[i]]
        joined = self.passed + self.mapped
        self._restore = [joined.index(i) for i in range(input_dim)]
        self.counts = [self._map_of(i).param_count for i in self.mapped]
        seen = self._features_dim(self.passed) + context_dim
        self.network = MLP(seen, sum(self.counts), hidden_dims, zero_init=True) if seen else None
        self.constant = None if seen else nn.Parameter(torch.zeros(sum(self.counts)))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, context, True)

    def _run(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        passed = torch.stack([at[..., i] for i in self.passed], -1) if self.passed else at[..., :0]
        seen = features(passed, [self.circles[i] for i in self.passed])
        if context is not None:
            seen = torch.cat([seen, context.expand(*at.shape[:-1], -1)], -1)
        raw = self.constant.expand(*at.shape[:-1], -1) if self.network is None else self.network(seen)  # type: ignore[union-attr]
        changed = torch.stack([at[..., i] for i in self.mapped], -1)
        value, log_det = self._mapped(changed, raw.split(self.counts, -1), self.mapped, inverse)
        whole = torch.cat([passed, value], -1)
        return wrapped(torch.stack([whole[..., i] for i in self._restore], -1), self.is_circle), log_det


class CircularAutoregressive(_CircularLayer):
    r"""Autoregressive layer on a torus, or on a product of circles and lines, :math:`y_i = u(x_i; g_i(x_{<i}, c))`.

    The forward direction takes one pass, the inverse one for each variable. The rest as :class:`CircularCoupling`.

    References:
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428, section 2.2

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        circles: Which variables are angles, ``(D,)``; all if None.
        circle_map: Makes the map of an angle.
        line_map: Makes the map of another variable.
        hidden_dims: Hidden layers of each network.
        order: Order in which variables depend on those before; 0 … D - 1 if None.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> layer = CircularAutoregressive(3, circles=(True, False, True))
        >>> layer.inv(layer(torch.ones(3))).tolist()
        [1.0, 1.0, 1.0]
    """

    cheap_direction = "forward"

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        circles: Sequence[bool] | None = None,
        circle_map: Callable[[], UnivariateMap] = CircularSpline,
        line_map: Callable[[], UnivariateMap] = RationalQuadraticSpline,
        hidden_dims: Sequence[int] = (64, 64),
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim, circles, circle_map, line_map)
        self.order = list(range(input_dim)) if order is None else [int(i) for i in order]
        if sorted(self.order) != list(range(input_dim)):
            raise ValueError(f"order must be a permutation of 0 … {input_dim - 1}, got {order!r}")
        self.networks = nn.ModuleList()
        self.constant: nn.Parameter | None = None
        for k, i in enumerate(self.order):
            seen, count = self._features_dim(self.order[:k]) + context_dim, self._map_of(i).param_count
            if seen:
                self.networks.append(MLP(seen, count, hidden_dims, zero_init=True))
            else:
                self.constant = nn.Parameter(torch.zeros(count))

    def _raw(self, k: int, before: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters of the k-th variable of the order, given those before it ``(*, k)``."""
        if self.constant is not None and k == 0:
            return self.constant.expand(*before.shape[:-1], -1)
        seen = features(before, [self.circles[i] for i in self.order[:k]])
        if context is not None:
            seen = torch.cat([seen, context.expand(*before.shape[:-1], -1)], -1)
        return self.networks[k - (self.constant is not None)](seen)  # type: ignore[no-any-return]

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ordered = torch.stack([x[..., i] for i in self.order], -1)
        raws = [self._raw(k, ordered[..., :k], context) for k in range(self.input_dim)]
        value, log_det = self._mapped(ordered, raws, self.order, False)
        return self._restored(value), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ordered = torch.stack([y[..., i] for i in self.order], -1)
        found, log_det = ordered[..., :0], torch.zeros_like(y[..., 0])
        for k, i in enumerate(self.order):
            value, log_slope = self._mapped(ordered[..., k : k + 1], [self._raw(k, found, context)], [i], True)
            found, log_det = torch.cat([found, value], -1), log_det + log_slope
        return self._restored(found), log_det

    def _restored(self, ordered: Tensor) -> Tensor:
        back = [self.order.index(i) for i in range(self.input_dim)]
        return wrapped(torch.stack([ordered[..., i] for i in back], -1), self.is_circle)
