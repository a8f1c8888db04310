"""Student-t base with learnable degrees of freedom."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints


class StudentTBase(TorchDistribution, nn.Module):  # type: ignore[misc]
    r"""Product of Student-t distributions with learnable degrees of freedom :math:`\nu_i = 1 + \mathrm{softplus}(a_i)`.

    A flow that is Lipschitz cannot make tails heavier than its base has; this base lets the data decide.

    References:
        Jaini, Kobyzev, Yu, Brubaker (2020), *Tails of Lipschitz triangular flows*, https://arxiv.org/abs/1907.04481

    Args:
        input_dim: Number of variables D.
        df: Degrees of freedom at the start, above 1.

    Raises:
        ValueError: If ``input_dim`` is not a positive integer or ``df`` is not above 1.

    Example:
        >>> StudentTBase(3, df=5.0).df
        tensor([5., 5., 5.], grad_fn=<AddBackward0>)
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True
    __repr__ = nn.Module.__repr__

    def __init__(self, input_dim: int, df: float = 20.0) -> None:
        if not isinstance(input_dim, int) or input_dim < 1:
            raise ValueError(f"input_dim must be a positive integer, got {input_dim!r}")
        if not df > 1:
            raise ValueError(f"df must be above 1, got {df}")
        nn.Module.__init__(self)
        TorchDistribution.__init__(self, torch.Size(()), torch.Size((input_dim,)), validate_args=False)
        start = df - 1 + math.log(-math.expm1(-(df - 1)))
        self.raw_df = nn.Parameter(torch.full((input_dim,), start))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, ``(D,)``."""
        return 1 + nn.functional.softplus(self.raw_df)

    def _student(self) -> dist.TorchDistribution:
        student = dist.StudentT(self.df, validate_args=False).to_event(1)
        return student.expand(self.batch_shape) if self.batch_shape else student

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> StudentTBase:
        """The same distribution, with the same parameters, and another batch shape."""
        new = StudentTBase.__new__(StudentTBase)
        nn.Module.__init__(new)
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new.raw_df = self.raw_df
        return new

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, D)``, with gradient to the degrees of freedom."""
        return self._student().rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(*)``, of ``value``, ``(*, D)``."""
        return self._student().log_prob(value)
