"""Student-t base with learnable degrees of freedom."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Gamma, constraints

from .module_distribution import ModuleDistribution

_LOWEST, _RANGE = 1.0, 1e4


class StudentTBase(ModuleDistribution):
    r"""Product of Student-t distributions with a learnable degree of freedom :math:`\nu_i` per variable.

    :math:`q_0(\epsilon) = \prod_i c(\nu_i) (1 + \epsilon_i^2/\nu_i)^{-(\nu_i+1)/2}`,
    :math:`c(\nu) = \Gamma((\nu+1)/2) / (\Gamma(\nu/2)\sqrt{\pi\nu})`, :math:`\nu_i = 1 + 10^4\,\mathrm{sigmoid}(a_i)`:
    a step of the raw parameter :math:`a_i` is a relative change of :math:`\nu_i - 1`, and at the upper end the
    distribution is as good as normal. Draws are reparametrised, also in :math:`\nu_i`.

    A flow that is Lipschitz cannot make tails heavier than its base has; with this base the data, or the posterior,
    decide.

    References:
        Jaini, Kobyzev, Yu, Brubaker (2020), *Tails of Lipschitz triangular flows*, https://arxiv.org/abs/1907.04481

    Args:
        input_dim: Number of variables D.
        df: Degrees of freedom at the start, between 1 and 10,001.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If ``input_dim`` is not a positive integer or ``df`` is out of its bounds.

    Example:
        >>> base = StudentTBase(3, df=5.0)
        >>> base.rsample((10,)).square().sum().backward()
        >>> base.raw_df.grad.shape
        torch.Size([3])
    """

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, input_dim: int, df: float = 30.0, *, validate_args: bool | None = None) -> None:
        if not isinstance(input_dim, int) or isinstance(input_dim, bool) or input_dim < 1:
            raise ValueError(f"input_dim must be a positive integer, got {input_dim!r}")
        if not _LOWEST < df < _LOWEST + _RANGE:
            raise ValueError(f"df must lie between {_LOWEST:g} and {_LOWEST + _RANGE:g}, both excluded, got {df}")
        super().__init__((), (input_dim,), validate_args=validate_args)
        fraction = (df - _LOWEST) / _RANGE
        self.raw_df = nn.Parameter(torch.full((input_dim,), math.log(fraction) - math.log1p(-fraction)))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, ``(D,)``."""
        return _LOWEST + _RANGE * self.raw_df.sigmoid()

    def extra_repr(self) -> str:
        return f"input_dim={self.event_shape[0]}, batch_shape={tuple(self.batch_shape)}"

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, D)``, with gradient to the degrees of freedom."""
        half = (self.df / 2).expand(self._extended_shape(torch.Size(sample_shape)))
        normal = torch.randn(half.shape, dtype=half.dtype, device=half.device)
        return normal * Gamma(half, half, validate_args=False).rsample().rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(*)``, of ``value``, ``(*, D)``."""
        self._check_value(value)
        df = self.df
        log_norm = _log_gamma_ratio(df / 2) - 0.5 * (math.pi * df).log()
        result = (log_norm - 0.5 * (df + 1) * (value.square() / df).log1p()).sum(-1)
        return result.expand(torch.broadcast_shapes(self.batch_shape, result.shape))


def _log_gamma_ratio(a: Tensor) -> Tensor:
    r""":math:`\log\Gamma(a + 1/2) - \log\Gamma(a)`, whose terms cancel for large :math:`a`."""
    large = a > 20
    small = torch.where(large, torch.ones_like(a), a)
    inverse = 1 / torch.where(large, a, torch.full_like(a, 20.0))
    square = inverse.square()
    series = -1 / 8 + square * (1 / 192 + square * (-1 / 640 + square * (17 / 14336 - square * 31 / 18432)))
    return torch.where(large, inverse * series - 0.5 * inverse.log(), torch.lgamma(small + 0.5) - torch.lgamma(small))
