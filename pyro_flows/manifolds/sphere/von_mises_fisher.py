"""Von Mises-Fisher distribution in any dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.solvers.mode import is_eager

from .geometry import SPHERE, any_frame, check_ambient_dim, check_on_sphere, log_area, project_to_sphere


class VonMisesFisher(TorchDistribution):  # type: ignore[misc]
    r"""Von Mises-Fisher distribution on :math:`S^{n-1}`, :math:`p(x) \propto e^{\kappa \mu^\top x}`, for any n of at least 2.

    .. math:: p(x) = \frac{e^{\kappa (\mu^\top x - 1)}}{|S^{n-2}| \int_{-1}^1 (1 - t^2)^{(n-3)/2} e^{\kappa (t - 1)} dt}

    The integral, a Bessel function, is in closed form for n = 3, and else a trapezoid rule in the logit of :math:`(1 - t)/2`, which
    converges exponentially, to rounding for κ from 0 to 1e8; it has gradients, and runs under ``vmap``. At κ = 0 the distribution
    is uniform. Pyro has n = 2 as ``VonMises``, of an angle, and n = 3 as ``VonMises3D``, without draws.

    References:
        Mardia, Jupp (2000), *Directional statistics*, section 9.3; Wood (1994), *Simulation of the von Mises Fisher distribution*,
        https://doi.org/10.1080/03610919408813161

    Args:
        loc: Mean direction μ, unit vectors ``(*, n)``.
        concentration: κ, not negative, ``(*)``. Draws carry its gradient for n = 3.
        validate_args: Check arguments and values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If ``loc`` is no unit vector or ``concentration`` is negative, where arguments are validated; or if draws for n
            other than 3 are asked for a gradient of ``concentration``.

    Example:
        >>> vmf = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(50.0))
        >>> vmf.sample((1000,)).mean(0)[2].item() > 0.95
        True
        >>> round(vmf.mean_resultant_length.item(), 4)
        0.98
    """

    arg_constraints = {"loc": SPHERE, "concentration": constraints.nonnegative}
    support = SPHERE
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor | float, *, validate_args: bool | None = None) -> None:
        if not isinstance(loc, Tensor) or not loc.is_floating_point():
            raise ValueError(f"loc must be a floating-point tensor of unit vectors (*, n), got {loc!r}")
        check_ambient_dim(loc.shape[-1] if loc.dim() else 0, "the last dimension of loc")
        concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        batch = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc, self.concentration = loc.expand(*batch, -1), concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)
        if self._validate_args:
            check_on_sphere(loc, "loc")
            if is_eager() and not bool(torch.isfinite(concentration).all()):
                raise ValueError("concentration must be finite; a point mass has no density")

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> VonMisesFisher:
        """The same with another batch shape."""
        loc = self.loc.expand(*batch_shape, -1)
        new = VonMisesFisher(loc, self.concentration.expand(torch.Size(batch_shape)), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` with regard to area, at unit vectors ``(*, n)``."""
        if self._validate_args:
            self._validate_sample(value)
        # kappa (mu.x - 1) = -kappa |mu - x|^2 / 2, without cancellation where they are close.
        gap = 0.5 * (value - self.loc).square().sum(-1)
        return -self.concentration * gap - log_normaliser(self.concentration, self.event_shape[0])

    @property
    def mean_resultant_length(self) -> Tensor:
        """Length of the mean vector, ``(*)``, the ratio of two Bessel functions."""
        keep = self.concentration.requires_grad
        kappa = self.concentration.view_as(self.concentration) if keep else self.concentration.detach().clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(log_normaliser(kappa, self.event_shape[0]).sum(), kappa, create_graph=keep)
        return 1 + slope

    @property
    def mean(self) -> Tensor:
        """Mean vector ``(*, n)``, shorter than one."""
        return self.mean_resultant_length[..., None] * self.loc

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, n)``.

        Raises:
            ValueError: If ``concentration`` asks for a gradient, and n is not 3.
        """
        n = self.event_shape[0]
        shape = torch.Size(sample_shape) + self.batch_shape
        kappa = self.concentration.expand(shape)
        if n == 3:
            u = torch.rand_like(kappa)
            small = kappa < 1e-2
            safe = torch.where(small, torch.ones_like(kappa), kappa)
            series = 2 * u * (1 - kappa * (1 - u) + kappa.square() * (2 / 3 - 2 * u + 4 / 3 * u.square()))
            gap = torch.where(small, series, -torch.log1p(u * torch.expm1(-2 * safe)) / safe)
        elif self.concentration.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"concentration has a gradient, which draws for n = {n} do not carry; only those for n = 3 do")
        else:
            gap = _rejection(kappa, n)
        gap = gap.clamp(0, 2)
        around = project_to_sphere(torch.randn(*shape, n - 1, dtype=kappa.dtype, device=kappa.device))
        tangential = (gap * (2 - gap)).clamp(min=torch.finfo(gap.dtype).tiny).sqrt()[..., None] * around
        rotated = any_frame(self.loc) @ torch.cat([tangential, (1 - gap)[..., None]], -1)[..., None]
        return project_to_sphere(rotated[..., 0])


def log_normaliser(kappa: Tensor, n: int) -> Tensor:
    r"""Logarithm of :math:`\int_{S^{n-1}} e^{\kappa (\mu^\top x - 1)} dx`, ``(*)``.

    Args:
        kappa: Concentrations ``(*)``, from 0 to 1e8.
        n: Number of coordinates, at least 2.

    Example:
        >>> round(log_normaliser(torch.tensor(0.0, dtype=torch.float64), 3).exp().item() / torch.pi, 6)
        4.0
    """
    if n == 3:
        # 2 pi (1 - e^-2k) / k, by its series where k is small.
        small = kappa < 1e-2
        safe = torch.where(small, torch.ones_like(kappa), kappa)
        series = math.log(4 * math.pi) - kappa + kappa.square() / 6 - kappa.square().square() / 180
        return torch.where(small, series, math.log(2 * math.pi) + torch.log(-torch.expm1(-2 * safe)) - safe.log())
    places, log_weights, offset = _nodes(n)
    v, log_weight = (torch.tensor(part, dtype=kappa.dtype, device=kappa.device) for part in (places, log_weights))
    return torch.logsumexp(log_weight - 2 * kappa[..., None] * v, -1) + offset


@lru_cache(maxsize=64)
def _nodes(n: int) -> tuple[list[float], list[float], float]:
    """Of the rule: places (1 - t) / 2, log-weights, and what is added to the logarithm of the sum."""
    a = 0.5 * (n - 1)
    step = min(0.2, 0.6 / math.sqrt(a))
    first, last = -(45 / a + 20 + math.log(2e8)), 45 / a + 5
    y = torch.arange(first, last, step, dtype=torch.float64, device="cpu")
    softplus = torch.nn.functional.softplus
    log_weight = a * (-softplus(y) - softplus(-y))
    offset = math.log(2 * step) + 2 * (a - 1) * math.log(2) + log_area(n - 1)
    return y.sigmoid().tolist(), log_weight.tolist(), offset


@torch.no_grad()
def _rejection(kappa: Tensor, n: int) -> Tensor:
    """Draws of one minus the cosine, by Wood's algorithm."""
    dtype, kappa = kappa.dtype, kappa.double()
    m = n - 1
    b = m / (2 * kappa + (4 * kappa.square() + m**2).sqrt())
    x0 = (1 - b) / (1 + b)
    log_one_minus = (4 * b / (1 + b).square()).log()  # of 1 - x0^2
    beta = torch.distributions.Beta(kappa.new_tensor(0.5 * m), kappa.new_tensor(0.5 * m), validate_args=False)
    gap = torch.zeros_like(kappa)
    left = torch.ones_like(kappa, dtype=torch.bool)
    for _ in range(1000):
        z = beta.sample(kappa.shape)
        proposal = 2 * b * z / (1 - (1 - b) * z)
        # kappa (w - x0) + m log((1 - x0 w) / (1 - x0^2)) >= log u
        log_ratio = kappa * (1 - x0 - proposal) + m * ((1 - x0 + x0 * proposal).log() - log_one_minus)
        taken = left & (log_ratio >= torch.rand_like(kappa).log())
        gap = torch.where(taken, proposal, gap)
        left = left & ~taken
        if not bool(left.any()):
            return gap.to(dtype)
    raise ArithmeticError(f"{int(left.sum())} draws were rejected 1,000 times; concentration must be finite")
