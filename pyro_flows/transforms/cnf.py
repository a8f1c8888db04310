"""Continuous normalizing flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..nn.velocity import FieldAtContext, VelocityField
from ..solvers.ode import Solver, check_solver, solve_ode
from .core import FlowTransform
from .solve_costs import recorder
from .supports import is_real
from .values_only import wants_log_det

#: Number of variables up to which a trace without closed form is exact unless told otherwise.
_SMALL = 16


class Rates(NamedTuple):
    """How points move.

    Args:
        velocity: ``(*, D)``.
        divergence: Computes that of the velocity, ``(*)``, or an estimate.
        pulled: The probe, pulled back by the Jacobian of the velocity, ``(*, D)``; None without a probe.

    Example:
        >>> Rates(torch.zeros(2), lambda: torch.zeros(()), None).divergence()
        tensor(0.)
    """

    velocity: Tensor
    divergence: Callable[[], Tensor]
    pulled: Tensor | None


class CNF(FlowTransform):
    r"""Continuous normalizing flow: points are moved along a velocity field from time :math:`t_0` to :math:`t_1`.

    .. math:: \dot x = v(t, x; c), \quad y = x(t_1), \quad
        \log\Big|\det \frac{\partial y}{\partial x}\Big| = \int_{t_0}^{t_1} \mathrm{tr}\,\frac{\partial v}{\partial x}\,dt.

    The inverse goes back in time; both directions are exact to the tolerance of the solver, and cost the same. The trace is exact,
    or estimated without bias as :math:`e^\top \frac{\partial v}{\partial x} e` (Hutchinson) with one :math:`e` for each row and
    solve. Estimated densities cannot weigh draws, so that ``diagnose`` refuses them.

    Solvers that adapt choose one step size for all rows of a call, and look at values, so that they run in eager mode alone; under
    ``torch.compile`` and ``vmap`` use ``solver="rk4"`` with ``num_steps``, whose error is not controlled: compare it with an
    adaptive solve at points of interest. An estimated trace draws random numbers, for which ``vmap`` wants to be told
    ``randomness="different"``. Kinetic energy and Jacobian norm along the way, which keep a field easy to solve (RNODE), are had by
    :func:`~pyro_flows.transforms.record_costs`.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), *Neural ordinary differential equations*, https://arxiv.org/abs/1806.07366;
        Grathwohl et al. (2019), *FFJORD*, https://arxiv.org/abs/1810.01367;
        Finlay et al. (2020), *How to train your neural ODE*, https://arxiv.org/abs/2002.02798

    Args:
        velocity: The field v.
        t0: Time of the noise.
        t1: Time of the values; another one.
        solver: ``"dopri5"``, ``"dopri8"`` or ``"bosh3"``, which adapt their steps to ``tolerance``; ``"rk4"``, ``"midpoint"`` or
            ``"euler"``, which take ``num_steps`` equal ones.
        tolerance: Error of a step, absolute and relative to the state. For a fixed grid, what ``num_steps`` are trusted to give.
        num_steps: Number of steps of a fixed grid.
        trace: ``"exact"``, ``"estimate"``, or ``"auto"``: exact for fields that have it in closed form, and for up to 16 variables.
        probes: Distribution of e, ``"rademacher"`` or ``"gaussian"``.
        gradient: ``"steps"``, through the steps of the solver; or ``"adjoint"``, by the adjoint equation, whose memory does not
            grow with the number of steps.

    Raises:
        ValueError: If an argument is not as described; when called, as :func:`~pyro_flows.solvers.solve_ode`.
        ArithmeticError: When called, if the solver does not get through. Where the adjoint equation does not, in a backward pass,
            it is torchdiffeq's AssertionError.

    Example:
        >>> from pyro_flows.nn import VelocityMLP
        >>> flow = CNF(VelocityMLP(2))
        >>> flow.inv(flow(torch.ones(2))).tolist()
        [1.0, 1.0]
    """

    inverse_kind = "solved"
    cheap_direction = "both"
    log_det_costs = True

    def __init__(
        self,
        velocity: VelocityField,
        *,
        t0: float = 0.0,
        t1: float = 1.0,
        solver: Solver = "dopri5",
        tolerance: float = 1e-5,
        num_steps: int | None = None,
        trace: Literal["auto", "exact", "estimate"] = "auto",
        probes: Literal["rademacher", "gaussian"] = "rademacher",
        gradient: Literal["steps", "adjoint"] = "steps",
    ) -> None:
        if not isinstance(velocity, VelocityField):
            raise ValueError(f"velocity must be a VelocityField, such as VelocityMLP(2), got {type(velocity).__name__}")
        super().__init__(velocity.dim, velocity.context_dim)
        if not all(isinstance(t, (int, float)) and math.isfinite(t) for t in (t0, t1)) or t0 == t1:
            raise ValueError(f"t0 and t1 must be two different times, got {t0!r} and {t1!r}")
        check_solver(solver, tolerance, num_steps)
        if trace not in ("auto", "exact", "estimate"):
            raise ValueError(f'trace must be "auto", "exact" or "estimate", got {trace!r}')
        if probes not in ("rademacher", "gaussian"):
            raise ValueError(f'probes must be "rademacher" or "gaussian", got {probes!r}')
        if gradient not in ("steps", "adjoint"):
            raise ValueError(f'gradient must be "steps" or "adjoint", got {gradient!r}')
        if gradient == "adjoint" and num_steps is not None:
            raise ValueError(f'gradient="adjoint" is for a solver that adapts, got solver={solver!r}')
        self.velocity = velocity
        self.t0, self.t1 = float(t0), float(t1)
        self.solver, self.tolerance, self.num_steps = solver, float(tolerance), num_steps
        self.probes, self.gradient = probes, gradient
        exact = trace == "exact" or (trace == "auto" and (velocity.divergence_is_cheap or velocity.dim <= _SMALL))
        self.log_det_kind = "exact" if exact else "estimate"
        self.accuracy = self.tolerance

    def extra_repr(self) -> str:
        steps = f"tolerance={self.tolerance:g}" if self.num_steps is None else f"num_steps={self.num_steps}"
        return f"t0={self.t0:g}, t1={self.t1:g}, solver={self.solver!r}, {steps}, log_det={self.log_det_kind!r}"

    @property
    def eager_only(self) -> bool:
        """Whether the solver adapts its steps to values."""
        return self.num_steps is None

    @property
    def settings(self) -> tuple[Any, ...]:
        """The solver and its options."""
        return self.solver, self.tolerance, self.num_steps

    @property
    def caches(self) -> bool:
        """Not while costs are recorded, which a pass that is remembered has not, or its log-determinant is left out."""
        return recorder() is None and wants_log_det()

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        return self._solve(x, context, self.t0, self.t1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        return self._solve(y, context, self.t1, self.t0)

    def _solve(self, x: Tensor, context: Tensor | None, start: float, end: float) -> tuple[Tensor, Tensor]:
        field, costs, dim = self.velocity.at(context), recorder(), self.input_dim
        scored, exact = wants_log_det(), self.log_det_kind == "exact"
        wants = costs is not None and costs.regularisers and scored
        probe = self._probe(x) if wants or (scored and not exact) else None
        forwards = 1.0 if end > start else -1.0

        def slope(t: Tensor, state: Tensor) -> Tensor:
            if costs is not None:
                costs.evaluations += 1
            rates = self._rates(field, t, state[..., :dim], probe)
            if not scored:
                return rates.velocity
            columns = [rates.velocity, rates.divergence()[..., None]]
            if wants:
                columns.append(forwards * rates.velocity.square().sum(-1, keepdim=True))
                columns.append(forwards * rates.pulled.square().sum(-1, keepdim=True))  # type: ignore[union-attr]
            return torch.cat(columns, -1)

        if not scored:
            return self._arrived(self._integrate(slope, x, context, start, end)), x.new_full(x.shape[:-1], torch.nan)
        more = 3 if wants else 1
        state = torch.cat([x, x.new_zeros(*x.shape[:-1], more)], -1)
        state = self._integrate(slope, state, context, start, end)
        if wants:
            costs.add(state[..., dim + 1], state[..., dim + 2])  # type: ignore[union-attr]
        return self._arrived(state[..., :dim]), state[..., dim]

    def speed(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Velocity ``(*, D)`` of points ``(*, D)`` at times ``()`` or ``(*)``, on the manifold if there is one.

        Args:
            t: Times.
            x: Points.
            context: Context ``(*, context_dim)``.
        """
        return self._rates(self.velocity.at(context), t, x, None).velocity

    def _rates(self, field: FieldAtContext, t: Tensor, x: Tensor, probe: Tensor | None) -> Rates:
        """What moves points ``(*, D)`` at a time: the part of a flow that a manifold changes."""
        at = field(t, x)
        pulled = None if probe is None else at.pull_back(probe)
        if self.log_det_kind == "exact" or probe is None or pulled is None:
            return Rates(at.velocity, at.divergence, pulled)
        return Rates(at.velocity, lambda: (pulled * probe).sum(-1), pulled)

    def _arrived(self, x: Tensor) -> Tensor:
        """Points ``(*, D)`` as they are given out."""
        return x

    def geodesic(self, start: Tensor, end: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        r"""Points on the shortest way between points, and the velocity on it: :math:`(1 - s)\,x + s\,y` and :math:`y - x`.

        Args:
            start: Points x, ``(*, D)``.
            end: Points y, ``(*, D)``.
            share: Share s of the way, ``(*)``.
        """
        return (1 - share)[..., None] * start + share[..., None] * end, end - start

    def _integrate(
        self,
        slope: Callable[[Tensor, Tensor], Tensor],
        state: Tensor,
        context: Tensor | None,
        start: float,
        end: float,
        watched: int | None = None,
    ) -> Tensor:
        adjoint = None
        if self.gradient == "adjoint" and torch.is_grad_enabled():
            tensors = [*self.velocity.parameters(), *([] if context is None else [context])]
            adjoint = [tensor for tensor in tensors if tensor.requires_grad]
        return solve_ode(
            slope,
            state,
            start,
            end,
            solver=self.solver,
            tolerance=self.tolerance,
            num_steps=self.num_steps,
            adjoint=adjoint,
            watched=watched,
        )

    def _probe(self, x: Tensor) -> Tensor:
        normal = torch.randn_like(x)
        return normal if self.probes == "gaussian" else torch.where(normal > 0, 1.0, -1.0).to(x.dtype)

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        r"""As for every transform; of vectors and with the exact trace the score is carried along.

        .. math:: \dot s = -\nabla_x \Big(v^\top s + \mathrm{tr}\,\frac{\partial v}{\partial x}\Big)

        References:
            Vaitl, Nicoli, Nakajima, Kessel (2022), *Path-gradient estimators for continuous normalizing flows*,
            https://arxiv.org/abs/2206.09016
        """
        if self.log_det_kind != "exact" or not is_real(self.domain):
            return super().forward_with_score(x, score, context)
        x, context = self._check(x, context, "forward_with_score")
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                given = None if context is None else context.clone()
                return self.forward_with_score(x.clone(), score.clone(), given)
        field, dim, graph, costs = self.velocity.at(context), self.input_dim, torch.is_grad_enabled(), recorder()

        def slope(t: Tensor, state: Tensor) -> Tensor:
            if costs is not None:
                costs.evaluations += 1
            points = state[..., :dim]
            with torch.enable_grad():
                points = points if points.requires_grad else points.detach().requires_grad_()
                at = field(t, points)
                velocity, divergence = at.velocity, at.divergence()
                total = (velocity * state[..., dim + 1 :].detach()).sum() + divergence.sum()
                # Of the points alone: the gradient goes no further back than this evaluation.
                (found,) = torch.autograd.grad(total, points, retain_graph=graph)
            columns = torch.cat([velocity, divergence[..., None]], -1)
            return torch.cat([columns if graph else columns.detach(), -found], -1)

        state = torch.cat([x, x.new_zeros(*x.shape[:-1], 1), score.detach().expand(x.shape)], -1)
        state = self._integrate(slope, state, context, self.t0, self.t1, watched=dim + 1)
        return state[..., :dim], state[..., dim], state[..., dim + 1 :].detach()
