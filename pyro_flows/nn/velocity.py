"""Velocity fields of continuous flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from .arguments import check_hidden_dims, check_positive
from .recorded import Recorded

#: Numbers by which a network that modulates is told the time.
_FEATURES = 5
_MODULATING = 32


class Linearised(NamedTuple):
    r"""A velocity field at given points, and its Jacobian :math:`J = \partial v / \partial x` there.

    Args:
        velocity: :math:`v`, ``(*, D)``.
        pull_back: Takes :math:`e`, ``(*, D)``, to :math:`J^\top e`, ``(*, D)``.
        divergence: Computes :math:`\mathrm{tr}\,J`, ``(*)``.

    Example:
        >>> at = VelocityMLP(2).at(None)(torch.zeros(()), torch.ones(3, 2))
        >>> at.velocity.shape, at.divergence().shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    velocity: Tensor
    pull_back: Callable[[Tensor], Tensor]
    divergence: Callable[[], Tensor]


#: A field at a context: time ``()`` or ``(*)`` and points ``(*, D)`` to what is known of it there.
FieldAtContext = Callable[[Tensor, Tensor], Linearised]


class VelocityField(Recorded, nn.Module):
    r"""A vector field :math:`v(t, x; c)` that moves points, :math:`\dot x = v(t, x; c)`.

    A subclass writes a constructor and :meth:`forward`; its Jacobian is then had by automatic differentiation, with one backward
    pass for each variable. A subclass that knows better overrides :meth:`at`.

    Args:
        dim: Number of variables D.
        context_dim: Size of the context; 0 for none.

    Raises:
        ValueError: If a size is out of range.

    Example:
        >>> class Turn(VelocityField):
        ...     def forward(self, t, x, context=None):
        ...         return torch.stack([-x[..., 1], x[..., 0]], -1)
        >>> Turn(2).at(None)(torch.zeros(()), torch.ones(1, 2)).divergence()
        tensor([0.])
    """

    #: Whether the divergence costs no more than the velocity, whatever the number of variables.
    divergence_is_cheap = False

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        check_positive(dim=dim)
        if not isinstance(context_dim, int) or isinstance(context_dim, bool) or context_dim < 0:
            raise ValueError(f"context_dim must be a non-negative integer, got {context_dim!r}")
        self.dim, self.context_dim = dim, context_dim

    def extra_repr(self) -> str:
        return f"{self.dim}, context_dim={self.context_dim}"

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Velocity ``(*, D)`` at time ``()`` or ``(*)``, points ``(*, D)`` and a context ``(*, context_dim)``."""
        raise TypeError(f"{type(self).__name__} does not define forward(t, x, context=None); every velocity field must")

    def at(self, context: Tensor | None) -> FieldAtContext:
        """The field at a context ``(*, context_dim)``, with its Jacobian; called once for many times and points."""

        def linearised(t: Tensor, x: Tensor) -> Linearised:
            # torch.func differentiates in inference mode and under vmap, forward mode and compilers as well.
            velocity, pull = cast(tuple[Tensor, Any], torch.func.vjp(lambda points: self(t, points, context), x))

            def pull_back(e: Tensor) -> Tensor:
                return pull(e)[0]  # type: ignore[no-any-return]

            def divergence() -> Tensor:
                total = torch.zeros_like(x[..., 0])
                for i, e in enumerate(torch.eye(self.dim, dtype=x.dtype, device=x.device)):
                    total = total + pull_back(e.expand(x.shape))[..., i]
                return total

            return Linearised(velocity, pull_back, divergence)

        return linearised


class VelocityMLP(VelocityField):
    r"""Multilayer perceptron that is told the time, with its Jacobian in closed form.

    Hidden layers :math:`h_l = \sigma\big(\gamma_l \odot (W_l h_{l-1}) + \beta_l\big)`, :math:`h_0 = x`, and
    :math:`v = W h_L + b`. With ``time="film"`` scales :math:`\gamma_l` and shifts :math:`\beta_l` are those of a network of time
    and context (FiLM), with ``time="concat"`` the scales are one and the shifts linear in time and context, as if both were further
    inputs of every layer. With :math:`S_l = \mathrm{diag}(\sigma' \odot \gamma_l)`,

    .. math:: \mathrm{tr}\,\frac{\partial v}{\partial x} = \mathrm{tr}\big(W S_L W_L \cdots S_1 W_1\big),

    which for two hidden layers is :math:`s_1^\top \big((W_1 W) \odot W_2^\top\big) s_2`: one more product of a matrix of weights
    with a vector, whatever the number of variables. The field is zero at the start.

    References:
        Grathwohl et al. (2019), *FFJORD: Free-form continuous dynamics for scalable reversible generative models*,
        https://arxiv.org/abs/1810.01367;
        Perez et al. (2018), *FiLM: Visual reasoning with a general conditioning layer*, https://arxiv.org/abs/1709.07871

    Args:
        dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Widths of the hidden layers, one at least.
        activation: ``"tanh"``, with which velocities are bounded; ``"softplus"`` or ``"silu"``.
        time: ``"film"`` or ``"concat"``.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> field = VelocityMLP(2, hidden_dims=(16, 16))
        >>> field(torch.zeros(()), torch.ones(5, 2)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        activation: Literal["tanh", "softplus", "silu"] = "tanh",
        time: Literal["film", "concat"] = "film",
    ) -> None:
        super().__init__(dim, context_dim)
        widths = check_hidden_dims(hidden_dims)
        if not widths:
            raise ValueError("hidden_dims must have one width at least, got ()")
        if not isinstance(activation, str) or activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(_ACTIVATIONS)}, got {activation!r}")
        if time not in ("film", "concat"):
            raise ValueError(f'time must be "film" or "concat", got {time!r}')
        self.hidden_dims, self.activation, self.time = widths, activation, time
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((dim, *widths), widths, strict=False))
        self.last = nn.Linear(widths[-1], dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        total = sum(widths)
        if time == "concat":
            self.shifts = nn.Linear(1 + context_dim, total, bias=False)
        else:
            self.told = nn.Linear(_FEATURES + context_dim, _MODULATING)
            self.modulation = nn.Linear(_MODULATING, 2 * total)
            with torch.no_grad():
                self.modulation.weight *= 0.5
        self.divergence_is_cheap = len(widths) <= 2

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, hidden_dims={self.hidden_dims}, activation={self.activation!r}, time={self.time!r}"

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.at(context)(t, x).velocity

    def at(self, context: Tensor | None) -> FieldAtContext:
        activate = _ACTIVATIONS[self.activation]
        modulate = self._modulation(context)
        layers = cast(list[nn.Linear], list(self.layers))
        weights = [layer.weight for layer in layers]
        first = weights[0]
        if len(weights) == 1:
            traced: Any = (first * self.last.weight.t()).sum(-1)
        elif len(weights) == 2:
            traced = (first @ self.last.weight) * weights[1].t()

        def linearised(t: Tensor, x: Tensor) -> Linearised:
            hidden, slopes = x, []
            for layer, (scale, shift) in zip(layers, modulate(t), strict=True):
                if scale is None:
                    hidden, slope = activate(layer(hidden) + shift)
                else:
                    hidden, slope = activate(nn.functional.linear(hidden, layer.weight) * scale + (layer.bias + shift))
                    slope = slope * scale
                slopes.append(slope)
            velocity = self.last(hidden)

            def pull_back(e: Tensor) -> Tensor:
                back = e @ self.last.weight
                for slope, weight in zip(reversed(slopes), reversed(weights), strict=True):
                    back = (back * slope) @ weight
                return back

            def divergence() -> Tensor:
                if len(slopes) == 1:
                    return slopes[0] @ traced
                if len(slopes) == 2:
                    return ((slopes[0] @ traced) * slopes[1]).sum(-1)
                jacobian = slopes[0][..., None] * first
                for slope, weight in zip(slopes[1:], weights[1:], strict=True):
                    jacobian = slope[..., None] * (weight @ jacobian)
                return (self.last.weight.t() * jacobian).sum((-2, -1))

            return Linearised(velocity, pull_back, divergence)

        return linearised

    def _modulation(self, context: Tensor | None) -> Callable[[Tensor], list[tuple[Tensor | None, Tensor]]]:
        """Scales and shifts of the layers as functions of time, what they have of the context computed once."""
        if self.time == "concat":
            of_time, of_context = self.shifts.weight[:, 0], self.shifts.weight[:, 1:]
            fixed = None if context is None else context @ of_context.t()

            def shifts(t: Tensor) -> list[tuple[Tensor | None, Tensor]]:
                total = t[..., None] * of_time
                parts = (total if fixed is None else total + fixed).split(self.hidden_dims, -1)
                return [(None, part) for part in parts]

            return shifts
        told, bias = self.told.weight, self.told.bias
        told_context = bias if context is None else context @ told[:, _FEATURES:].t() + bias

        def film(t: Tensor) -> list[tuple[Tensor | None, Tensor]]:
            angle = torch.pi * t
            features = torch.stack([t, angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], -1)
            code = (features @ told[:, :_FEATURES].t() + told_context).tanh()
            scales, shifts = self.modulation(code).chunk(2, -1)
            return list(zip((1 + scales).split(self.hidden_dims, -1), shifts.split(self.hidden_dims, -1), strict=True))

        return film


def _tanh(a: Tensor) -> tuple[Tensor, Tensor]:
    h = a.tanh()
    return h, 1 - h * h


def _softplus(a: Tensor) -> tuple[Tensor, Tensor]:
    return nn.functional.softplus(a), a.sigmoid()


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    s = a.sigmoid()
    h = a * s
    return h, s + h * (1 - s)


_ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"tanh": _tanh, "softplus": _softplus, "silu": _silu}
