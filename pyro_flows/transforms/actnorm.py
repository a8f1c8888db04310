"""Shift and scale of every variable, set from data on request."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .core import FlowTransform


class ActNorm(FlowTransform):
    r"""Affine map :math:`y = e^{s} x + b` of every variable, with a start taken from data.

    :math:`\log|\det dy/dx| = \sum_i s_i`. It is the identity until :meth:`initialize`, which makes the outputs of a
    batch have mean 0 and standard deviation 1. A forward pass never initialises it, so that nothing depends on which
    batch happens to come first.

    References:
        Kingma, Dhariwal (2018), *Glow*, https://arxiv.org/abs/1807.03039

    Args:
        input_dim: Number ``D`` of variables.

    Raises:
        ValueError: If ``input_dim`` is not positive.

    Example:
        >>> norm = ActNorm(1)
        >>> norm.initialize(torch.tensor([[1.0], [3.0], [5.0]]))
        >>> norm(torch.tensor([3.0])).abs().item() < 1e-6
        True
    """

    initialized: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.bias = nn.Parameter(torch.zeros(input_dim))
        self.log_scale = nn.Parameter(torch.zeros(input_dim))
        self.register_buffer("initialized", torch.tensor(False))
        self._waiting = False

    @torch.no_grad()
    def initialize(self, x: Tensor, direction: Literal["forward", "inverse"] = "forward") -> None:
        """Set shift and scale so that the outputs of this batch have mean 0 and standard deviation 1.

        Args:
            x: At least two points, shape ``(*, D)``. A later call replaces what an earlier one has set.
            direction: Of which direction the outputs are meant.

        Raises:
            ValueError: If the shape does not fit, or a variable is constant or not finite in the batch.
        """
        if x.dim() < 2 or x.shape[-1] != self.input_dim or x.shape[:-1].numel() < 2:
            raise ValueError(f"x must hold at least two points of shape (*, {self.input_dim}), got shape {tuple(x.shape)}")
        if direction not in ("forward", "inverse"):
            raise ValueError(f'direction must be "forward" or "inverse", got {direction!r}')
        rows = x.reshape(-1, self.input_dim).to(self.bias)
        mean, scale = rows.mean(0), rows.std(0)
        usable = torch.isfinite(rows).all(0) & (scale > torch.finfo(rows.dtype).eps * mean.abs())
        if not bool(usable.all()):
            bad = (~usable).nonzero().flatten().tolist()
            raise ValueError(f"x must be finite and must vary in every variable; variables {bad} do not: drop them")
        forward = direction == "forward"
        self.log_scale.copy_(-scale.log() if forward else scale.log())
        self.bias.copy_(-mean / scale if forward else mean)
        self.initialized.fill_(True)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        if self._waiting:
            self._waiting = False  # also where it stands twice in a flow
            self.initialize(x)
        return x * self.log_scale.exp() + self.bias, self.log_scale.sum(-1).expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        if self._waiting:
            self._waiting = False
            self.initialize(y, "inverse")
        return (y - self.bias) * (-self.log_scale).exp(), -self.log_scale.sum(-1).expand(y.shape[:-1])


@torch.no_grad()
def initialize_actnorms(flow: FlowTransform, data: Tensor, context: Tensor | None = None) -> None:
    """Start every ActNorm in a flow from noise to data, that is not started yet, from what reaches it of a batch.

    Args:
        flow: The flow, with layers at any depth.
        data: At least two points, shape ``(*, D)``, or images.
        context: Their contexts, if the flow takes any.

    Raises:
        ValueError: If a variable that reaches such a layer is constant or not finite in the batch.

    Example:
        >>> norm = ActNorm(1)
        >>> initialize_actnorms(norm, torch.tensor([[1.0], [3.0], [5.0]]))
        >>> norm.inv(torch.tensor([3.0])).abs().item() < 1e-6
        True
    """
    layers = [module for module in flow.modules() if isinstance(module, ActNorm) and not bool(module.initialized)]
    for layer in layers:
        layer._waiting = True
    try:
        if layers:
            flow.inverse_and_log_det(data, context)
    finally:
        for layer in layers:
            layer._waiting = False
