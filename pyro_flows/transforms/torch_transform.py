"""A transform of torch or Pyro, such as that of a constraint, as one of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import Constraint, independent

from .core import FlowTransform
from .event_shape import check_event_shape


class TorchTransform(FlowTransform):
    r"""A bijective transform of torch or Pyro as a :class:`FlowTransform`, for compositions with ours.

    With a constraint in its place, it is that of ``biject_to``, and a flow gets values under it: positive, ordered, on a simplex.

    Args:
        transform: The transform, or a constraint; a transform that is a module is owned, and trained.
        event_shape: Shape of its input, ``(D,)`` for instance.

    Raises:
        ValueError: If ``transform`` is not bijective, or takes no input of that shape.

    Example:
        >>> from torch.distributions import constraints
        >>> to_simplex = TorchTransform(constraints.simplex, (2,))
        >>> to_simplex(torch.zeros(2)), to_simplex.output_shape
        (tensor([0.3333, 0.3333, 0.3333]), torch.Size([3]))
    """

    def __init__(self, transform: Transform | Constraint, event_shape: Sequence[int]) -> None:
        constraint = transform if isinstance(transform, Constraint) else None
        transform = biject_to(constraint) if constraint is not None else transform
        shape = check_event_shape(event_shape)
        super().__init__(math.prod(shape))
        if not isinstance(transform, Transform) or not transform.bijective:
            raise ValueError(
                f"transform must be a bijective transform of torch or Pyro, or a constraint, got {type(transform).__name__}"
            )
        if transform.domain.event_dim > len(shape):
            raise ValueError(
                f"event_shape must have at least {transform.domain.event_dim} dimensions for {type(transform).__name__}, got "
                f"{tuple(shape)}"
            )
        self.transform = transform
        self.event_shape, self.output_shape = shape, torch.Size(transform.forward_shape(shape))
        self.domain = _of_events(transform.domain, len(self.event_shape))
        # What biject_to composes says less of where its values are than the constraint does.
        self.codomain = _of_events(transform.codomain if constraint is None else constraint, len(self.output_shape))

    @property
    def caches(self) -> bool:
        """Only what is a module: of other transforms, tensors may change unseen."""
        return isinstance(self.transform, nn.Module)

    @property
    def sign(self) -> int | Tensor:
        """That of the transform; the product over the entries of an event where it is elementwise."""
        sign = self.transform.sign
        if self.transform.domain.event_dim:
            return sign  # type: ignore[no-any-return]
        if isinstance(sign, Tensor):
            return sign.expand(self.event_shape).prod()
        return sign ** self.event_shape.numel()  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.transform}, event_shape={tuple(self.event_shape)}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.transform(x)
        return y, self._log_det(x, y)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.transform.inv(y)
        return x, -self._log_det(x, y)

    def _log_det(self, x: Tensor, y: Tensor) -> Tensor:
        log_det = self.transform.log_abs_det_jacobian(x, y)
        return sum_rightmost(log_det, log_det.dim() - (x.dim() - len(self.event_shape)))  # type: ignore[no-any-return]


def _of_events(constraint: Constraint, dims: int) -> Constraint:
    missing = dims - constraint.event_dim
    return independent(constraint, missing) if missing > 0 else constraint
