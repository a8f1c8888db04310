"""What all libraries are asked for: one flow, in one of two roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

KINDS = ("affine coupling", "affine autoregressive", "spline coupling", "spline autoregressive")


class UnsupportedError(Exception):
    """The library has no such flow, or not in this direction."""


@dataclass(frozen=True)
class Shape:
    """A flow: six layers, say, with conditioners of two hidden layers.

    Args:
        kind: One of ``KINDS``.
        dim: Number of variables.
        role: ``"density"`` scores data in its fast direction, ``"guide"`` draws in it.
        layers: Number of layers, of alternating halves or orders.
        hidden: Width of both hidden layers.
        bins: Of a spline.
        bound: Of a spline.
    """

    kind: str
    dim: int
    role: str = "density"
    layers: int = 6
    hidden: int = 64
    bins: int = 8
    bound: float = 5.0

    @property
    def is_coupling(self) -> bool:
        """Whether it is a coupling."""
        return "coupling" in self.kind

    @property
    def is_spline(self) -> bool:
        """Whether its maps are splines."""
        return "spline" in self.kind


@dataclass
class Flow:
    """A flow of some library over a standard normal.

    Args:
        module: Owns the parameters.
        log_prob: From data ``(N, D)`` to log-density ``(N,)``.
        draw: From a number N to draws ``(N, D)`` with gradient and their log-density ``(N,)``.
        distribution: The library's own object.
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    draw: Callable[[int], tuple[Tensor, Tensor]]
    distribution: Any = None

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)
