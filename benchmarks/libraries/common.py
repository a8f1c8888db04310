"""What all libraries are asked for: one flow, in one of two roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
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
        silu: Whether the networks of others have the activation of ours, SiLU, in place of their own, ReLU, which takes less time.
    """

    kind: str
    dim: int
    role: str = "density"
    layers: int = 6
    hidden: int = 64
    bins: int = 8
    bound: float = 5.0
    silu: bool = False

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


def use_silu(module: nn.Module) -> int:
    """Put SiLU in the place of every ReLU, be it a module or a function; returns how many there were."""
    count = 0
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(owner, name, nn.SiLU())
                count += 1
        for name, value in list(vars(owner).items()):
            if value in (nn.functional.relu, torch.relu):
                setattr(owner, name, nn.functional.silu)
                count += 1
    return count
