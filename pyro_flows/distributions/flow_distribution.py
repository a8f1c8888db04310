"""The distribution of a base seen through a flow."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_flows.transforms.core import FlowTransform

from .standard_normal import StandardNormal


class FlowDistribution(TorchDistribution, nn.Module):  # type: ignore[misc]
    r"""Distribution of :math:`y = f(\epsilon)`, :math:`\epsilon \sim q_0`: :math:`\log q(y) = \log q_0(f^{-1}(y)) + \log|\det \partial f^{-1}/\partial y|`.

    A Pyro distribution, and a module that owns flow and base, so that ``pyro.module("q", distribution)`` trains both. Drawing with
    the density costs one forward pass, scoring one inverse pass, and scoring what was just drawn nothing.

    Args:
        transform: The flow :math:`f`, from noise to values.
        base: Distribution of the noise, with ``log_prob`` and ``rsample``, of the flow's event shape; another
            :class:`FlowDistribution` is one. Standard normal by default, in the flow's dtype and on its device.

    Raises:
        ValueError: If the event shapes differ, the base cannot be drawn from with gradient, or, when it is used, a conditional flow
            has no context.

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(2, context_dim=3)).condition(torch.zeros(5, 3))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    arg_constraints: dict[str, Any] = {}
    base: Distribution
    transform: FlowTransform
    __repr__ = nn.Module.__repr__

    def __init__(self, transform: FlowTransform, base: Distribution | None = None) -> None:
        if not isinstance(transform, FlowTransform):
            raise ValueError(f"transform must be a FlowTransform, got {type(transform).__name__}")
        if base is None:
            like = next(transform.parameters(), None)
            if like is None:
                like = next((buffer for buffer in transform.buffers() if buffer.is_floating_point()), None)
            dtype, device = (None, None) if like is None else (like.dtype, like.device)
            base = StandardNormal(tuple(transform.event_shape), dtype=dtype, device=device)
        if not isinstance(base, Distribution):
            raise ValueError(f"base must be a distribution, got {type(base).__name__}")
        if base.event_shape != transform.event_shape:
            raise ValueError(
                f"base has event shape {tuple(base.event_shape)} and the flow {tuple(transform.event_shape)}; "
                f"they must agree (a product of scalars needs .to_event(1))"
            )
        if not base.has_rsample:
            raise ValueError(f"base must have rsample, and {type(base).__name__} has not; choose a reparametrised one")
        self._build(transform, base)

    def _build(self, transform: FlowTransform, base: Distribution) -> None:
        nn.Module.__init__(self)
        batch = torch.Size(base.batch_shape)
        if transform.context_dim == 0:
            shape = transform.forward_shape(torch.Size(batch + transform.event_shape))
            batch = shape[: len(shape) - len(transform.event_shape)]
            if batch != base.batch_shape:
                base = base.expand(batch)  # a row of the context gets noise of its own
        TorchDistribution.__init__(self, batch, transform.event_shape, validate_args=False)
        self.transform = transform
        self.base = base

    @property
    def has_rsample(self) -> bool:
        """Always true."""
        return True

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The codomain of the flow."""
        return self.transform.codomain

    def condition(self, context: Tensor) -> FlowDistribution:
        """The distribution at a context, ``(*, context_dim)``, whose batch shape becomes part of this one's.

        An unconditional distribution returns itself.

        Raises:
            ValueError: If the last dimension of ``context`` is not the flow's ``context_dim``.
        """
        return self if self.transform.context_dim == 0 else self._with(self.transform.condition(context), self.base)

    def _with(self, transform: FlowTransform, base: Distribution) -> FlowDistribution:
        new = type(self).__new__(type(self))
        new._build(transform, base)
        return new

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> FlowDistribution:
        """The same distribution, with the same parameters, and another batch shape."""
        return self._with(self.transform, self.base.expand(torch.Size(batch_shape)))

    def _ready(self) -> None:
        if self.transform.context_dim:
            raise ValueError(
                f"the flow is conditional (context_dim={self.transform.context_dim}) and has no context; "
                f"use distribution.condition(context)"
            )

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)`` with gradient."""
        self._ready()
        return self.transform(self.base.rsample(torch.Size(sample_shape)))

    def rsample_and_log_prob(self, sample_shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Draws with gradient, and their log-density ``(*sample_shape, *batch_shape)``, in one forward pass."""
        self._ready()
        noise = self.base.rsample(torch.Size(sample_shape))
        value, log_det = self.transform._forward_cached(noise, None)
        return value, self.base.log_prob(noise) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` of ``value`` ``(*, *event_shape)``, in one inverse pass, or none for a value just drawn."""
        self._ready()
        noise, log_det = self.transform._inverse_cached(value, None)
        return self.base.log_prob(noise) + log_det
