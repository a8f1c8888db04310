"""Whether a flow that is invertible on paper is so in floating point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows.distributions import FlowDistribution
from pyro_flows.transforms import Conditioned, FlowTransform
from pyro_flows.transforms.supports import is_real

from .printed import Printed

#: Points at which Jacobians are taken.
_JACOBIANS = 32


@dataclass(frozen=True)
class AuditRow:
    """One set of points.

    Args:
        points: Which points.
        count: How many.
        refused: At how many the flow raised or was not finite, in either direction.
        p99: 99th percentile of the round-trip error, relative to ``1 + |x|``, of the others.
        worst: The largest.
        stretch: Largest singular value of the Jacobian of the first direction, at 32 of them at most.
        squeeze: The same of the way back.

    Example:
        >>> AuditRow("data", 10, 0, 0.0, 0.0, 1.0, 1.0).refused
        0
    """

    points: str
    count: int
    refused: int
    p99: float
    worst: float
    stretch: float
    squeeze: float


@dataclass(frozen=True)
class InverseAudit(Printed):
    """Round trips of a flow on data, on noise, and far from both.

    Args:
        rows: A row for each set of points.
        tolerance: Relative error up to which a round trip is right.
        verdict: ``"invertible"`` everywhere; ``"near the data"``, where it is wrong or refused far out alone; ``"broken"``.

    Example:
        See :func:`audit_inverse`.
    """

    rows: tuple[AuditRow, ...]
    tolerance: float
    verdict: str

    def __str__(self) -> str:
        lines = [f"{'points':<12} {'count':>6} {'refused':>8} {'p99':>9} {'worst':>9} {'stretch':>9} {'squeeze':>9}"]
        for row in self.rows:
            figures = " ".join(f"{value:>9.2g}" for value in (row.p99, row.worst, row.stretch, row.squeeze))
            lines.append(f"{row.points:<12} {row.count:>6} {row.refused:>8} {figures}")
        lines.append(f"{self.verdict} (tolerance {self.tolerance:g})")
        return "\n".join(lines)


def audit_inverse(
    flow: Any,
    data: Tensor,
    context: Tensor | None = None,
    *,
    far: float = 10.0,
    tolerance: float | None = None,
    seed: int = 0,
) -> InverseAudit:
    r"""Round-trip errors and Lipschitz estimates of a flow on data, on noise and far out of distribution.

    From data the way is :math:`x \to f^{-1}(x) \to f(f^{-1}(x))`, from noise the other way round. The error is
    :math:`\max_i |x_i - x'_i| / (1 + \max_i |x_i|)`. Far points are data moved ``far`` times as far from their mean, and noise as
    far from zero. The largest singular values of the Jacobians, ``stretch`` on the way there and ``squeeze`` on the way
    back, say how much a rounding error can grow; ``refused`` counts points for which a solver gave up or a result is not finite.

    Args:
        flow: Transform from noise to data, a distribution, or a density fit.
        data: Points ``(N, D)``.
        context: Their contexts ``(N, C)``, if the flow is conditional.
        far: Factor of the far points. Above 1.
        tolerance: Relative error up to which a round trip is right; 1e-4 in single, 1e-9 in double precision if None.
        seed: Of the noise.

    Raises:
        ValueError: If an argument is not as described, or the flow is conditional and has no context.

    References:
        Behrmann, Vicol, Wang, Grosse, Jacobsen (2021), *Understanding and mitigating exploding inverses in invertible neural
        networks*, https://arxiv.org/abs/2006.09347

    Example:
        >>> from pyro_flows import flows
        >>> print(audit_inverse(flows.get("real_nvp")(2), torch.randn(100, 2)).verdict)
        invertible
    """
    flow = getattr(flow, "distribution", flow)  # of a DensityFit
    transform = flow.transform if isinstance(flow, FlowDistribution) else flow
    if not isinstance(transform, FlowTransform):
        raise ValueError(f"flow must be a FlowTransform or a FlowDistribution, got {type(flow).__name__}")
    if not transform.bijective or not (is_real(transform.domain) and is_real(transform.codomain)):
        raise ValueError(
            f"flow must be a bijection of real vectors, whose far points are in its domain, and this goes from {transform.domain} "
            f"to {transform.codomain}{'' if transform.bijective else ' with surjections'}; audit the part of it that is one"
        )
    if not isinstance(data, Tensor) or data.dim() != 2 or data.shape[-1] != transform.input_dim or len(data) < 2:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must have shape (N, {transform.input_dim}) with N at least 2, got {got}")
    if (context is None) != (transform.context_dim == 0):
        raise ValueError(
            f"context: the flow has context_dim={transform.context_dim}, got {'none' if context is None else tuple(context.shape)}"
        )
    if not far > 1:
        raise ValueError(f"far must be greater than 1, got {far}")
    if tolerance is None:
        tolerance = 1e-9 if data.dtype == torch.float64 else 1e-4
    generator = torch.Generator(device="cpu").manual_seed(seed)
    noise = torch.randn(data.shape, generator=generator, dtype=data.dtype, device="cpu").to(data.device)
    at = transform if context is None else Conditioned(transform, context)
    mean = data.mean(0)
    sets = {
        "data": (data, True),
        "noise": (noise, False),
        "far data": (mean + far * (data - mean), True),
        "far noise": (far * noise, False),
    }
    rows = tuple(_row(name, at, points, backwards) for name, (points, backwards) in sets.items())
    near, beyond = rows[:2], rows[2:]
    if any(row.refused or not row.worst <= tolerance for row in near):
        verdict = "broken"
    elif any(row.refused or not row.worst <= tolerance for row in beyond):
        verdict = "near the data"
    else:
        verdict = "invertible"
    return InverseAudit(rows, tolerance, verdict)


def _row(name: str, transform: FlowTransform, points: Tensor, backwards: bool) -> AuditRow:
    there = transform.inverse_and_log_det if backwards else transform.forward_and_log_det
    back = transform.forward_and_log_det if backwards else transform.inverse_and_log_det
    with torch.no_grad():
        try:
            images = there(points)[0]
            found = back(images)[0]
        except (ArithmeticError, RuntimeError):  # a solver that gave up says so
            return AuditRow(name, len(points), len(points), math.nan, math.nan, math.nan, math.nan)
    right = torch.isfinite(images).all(-1) & torch.isfinite(found).all(-1)
    error = ((found - points).abs().amax(-1) / (1 + points.abs().amax(-1)))[right].double()
    p99, worst = (float(error.quantile(0.99)), float(error.max())) if len(error) else (math.nan, math.nan)
    few = right.nonzero().flatten()[:_JACOBIANS]
    stretch, squeeze = _largest_singular_value(there, points, few), _largest_singular_value(back, images, few)
    return AuditRow(name, len(points), int((~right).sum()), p99, worst, stretch, squeeze)


def _largest_singular_value(function: Callable[[Tensor], tuple[Tensor, Tensor]], points: Tensor, few: Tensor) -> float:
    """Of the Jacobians at a few of the points; all pass the function, whose contexts belong to them."""
    if not len(few):
        return math.nan
    x = points.detach().clone().requires_grad_()
    y = function(x)[0]
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0][few] for i in range(y.shape[-1])]
    jacobians = torch.stack(rows, -2).double()
    jacobians = jacobians[torch.isfinite(jacobians).all(-1).all(-1)]
    return float(torch.linalg.matrix_norm(jacobians, ord=2).max()) if len(jacobians) else math.inf
