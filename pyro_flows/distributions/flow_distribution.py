"""The distribution of a base seen through a flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from pyro.distributions import Dirichlet
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_flows.manifolds.simplex import SIMPLEX
from pyro_flows.manifolds.sphere import SPHERE, UniformSphere
from pyro_flows.manifolds.torus import UniformTorus, circles_of
from pyro_flows.transforms.compose import flattened
from pyro_flows.transforms.core import FlowTransform
from pyro_flows.transforms.supports import is_kind
from pyro_flows.transforms.values_only import values_only

from .module_distribution import ModuleDistribution
from .standard_normal import StandardNormal


class FlowDistribution(ModuleDistribution):
    r"""Distribution of :math:`y = f(\epsilon)` for noise :math:`\epsilon \sim q_0` and a flow :math:`f`.

    :math:`\log q(y) = \log q_0(f^{-1}(y)) + \log|\det \partial f^{-1}/\partial y|`.

    A Pyro distribution, and a module that owns flow and base, so that ``pyro.module("q", distribution)`` trains both.
    Drawing with the density costs one forward pass, scoring one inverse pass, and scoring what was just drawn nothing.
    Calling the object draws, as with every Pyro distribution. Mean, variance and entropy have no closed form and are
    not defined.

    Args:
        transform: The flow :math:`f`, from noise to values.
        base: Distribution of the noise, with ``log_prob`` and ``rsample``, of the flow's event shape; another
            :class:`FlowDistribution` is one. By default it is standard normal, or uniform for a flow on a sphere, on a
            torus or on a simplex, in the dtype and on the device that the flow has when it is used.
        validate_args: Check the values that are scored against shape and support; Pyro's setting if None.

    Raises:
        ValueError: If the event or batch shapes of flow and base do not agree, the base cannot be drawn from with
            gradient, or, when it is used, a conditional flow has no context.

    References:
        Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan (2021), *Normalizing flows for probabilistic
        modeling and inference*, https://arxiv.org/abs/1912.02762

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(2, context_dim=3)).condition(torch.zeros(5, 3))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> value, log_prob = q.rsample_and_log_prob((10,))
        >>> log_prob.shape
        torch.Size([10, 5])
    """

    base: Distribution
    transform: FlowTransform
    has_default_base: bool

    def __init__(self, transform: FlowTransform, base: Distribution | None = None, *, validate_args: bool | None = None) -> None:
        if not isinstance(transform, FlowTransform):
            raise ValueError(f"transform must be a FlowTransform, got {type(transform).__name__}")
        if any(backwards and not part.bijective for part, backwards in flattened(transform, False)):
            raise ValueError("transform has a surjection the wrong way round: it must go from latents to data, as the flow does")
        is_default = base is None
        if base is None:
            dtype, device = _dtype_and_device(transform)
            base = _default_base(transform, dtype, device)
        if not isinstance(base, Distribution):
            raise ValueError(f"base must be a distribution, got {type(base).__name__}")
        if base.event_shape != transform.event_shape:
            raise ValueError(
                f"base has event shape {tuple(base.event_shape)} and the flow {tuple(transform.event_shape)}; "
                f"they must agree (a product of scalars needs .to_event(1))"
            )
        if not base.has_rsample:
            raise ValueError(f"base must have rsample, and {type(base).__name__} has not; choose a reparametrised one")
        super().__init__((), transform.output_shape, validate_args=validate_args)
        self.has_default_base = is_default
        self._set(transform, base)

    def made_with(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Those at hand, for expanded and conditioned ones are copies.
        return (self.transform,), {} if self.has_default_base else {"base": self.base}

    def _set(self, transform: FlowTransform, base: Distribution) -> None:
        batch = torch.Size(base.batch_shape)
        if transform.context_dim == 0:
            try:
                shape = transform.forward_shape(torch.Size(batch + transform.event_shape))
            except RuntimeError as error:  # torch's broadcast_shapes
                raise ValueError(
                    f"context: its batch shape does not broadcast with the batch shape {tuple(batch)} of the base "
                    f"({error}); insert dimensions of size 1 where they differ"
                ) from error
            batch = shape[: len(shape) - len(transform.output_shape)]
            if batch != base.batch_shape:
                base = base.expand(batch)  # a row of the context gets noise of its own
        self._batch_shape = batch
        self.transform = transform
        self.base = base

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A base that is no module is moved too.
        if not isinstance(self.base, nn.Module):
            _move(self.base, fn)
        return super()._apply(fn, recurse)

    def _with(self, transform: FlowTransform, base: Distribution) -> FlowDistribution:
        new = self._shallow_copy()
        new._modules = {}
        new._set(transform, base)
        return new

    @property
    def has_rsample(self) -> bool:
        """True unless the flow has surjections, whose draws are not differentiable."""
        return self.transform.bijective

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The codomain of the flow."""
        return self.transform.codomain

    def extra_repr(self) -> str:
        return f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"

    def condition(self, context: Tensor) -> FlowDistribution:
        """The distribution at a context, ``(*, context_dim)``, whose batch shape becomes part of this one's.

        Every row of the context has noise of its own. An unconditional distribution returns itself.

        Raises:
            ValueError: If the last dimension of ``context`` is not the flow's ``context_dim``, or its batch shape does
                not broadcast with that of the base.
        """
        return self if self.transform.context_dim == 0 else self._with(self.transform.condition(context), self.base)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """The same distribution, with the same parameters, and another batch shape.

        Raises:
            ValueError: If this one's batch shape does not expand to it.
        """
        return self._with(self.transform, self.base.expand(self._check_expansion(batch_shape)))

    def _ready(self) -> None:
        if self.transform.context_dim:
            raise ValueError(
                f"the flow is conditional (context_dim={self.transform.context_dim}) and has no context; "
                f"use distribution.condition(context)"
            )
        if self.has_default_base and not torch.compiler.is_compiling():
            dtype, device = _dtype_and_device(self.transform)
            has = _dtype_and_device_of_base(self.base)
            if (dtype or has[0], device or has[1]) != has:  # the flow was moved without this distribution
                if isinstance(self.base, StandardNormal):
                    self.base.to(dtype=dtype, device=device)
                else:
                    self.base = _default_base(self.transform, dtype, device).expand(self.base.batch_shape)

    def _checked(self, value: Tensor, noise: Tensor) -> Tensor:
        batch = noise.shape[: noise.dim() - len(self.base.event_shape)]
        if value.shape != batch + self.event_shape:
            raise ValueError(
                f"transform takes noise of shape {tuple(noise.shape)} to values of shape {tuple(value.shape)}, which "
                f"would share their noise; its forward_shape must tell the batch shape that it adds"
            )
        return value

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)`` with gradient.

        Raises:
            ValueError: If the flow is conditional and has no context.
        """
        self._ready()
        noise = self.base.rsample(torch.Size(sample_shape))
        return self._checked(self.transform(noise), noise)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)`` without gradient, and without their density where that costs extra.

        Raises:
            ValueError: If the flow is conditional and has no context.
        """
        if not self.transform.log_det_costs:
            return self.rsample(sample_shape)
        with values_only():
            return self.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws with gradient, and their log-density ``(*sample_shape, *batch_shape)``, in one forward pass.

        Raises:
            ValueError: If the flow is conditional and has no context.
        """
        self._ready()
        if not self.transform.bijective:
            value = self.rsample(sample_shape)
            return value, self.log_prob(value)
        if isinstance(self.base, FlowDistribution):
            noise, log_base = self.base.rsample_and_log_prob(sample_shape)
        else:
            noise = self.base.rsample(torch.Size(sample_shape))
            log_base = self.base.log_prob(noise)
        value, log_det = self.transform._forward_cached(noise, None)
        return self._checked(value, noise), log_base - log_det

    def rsample_with_score(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
        r"""Draws with gradient, their log-density, and its score :math:`\nabla_y \log q(y)` without an inverse pass if it can be.

        Returns:
            Draws ``(*sample_shape, *batch_shape, *event_shape)``, log-density ``(*sample_shape, *batch_shape)``, and the score,
            of the shape of the draws and without gradient.

        Raises:
            ValueError: If the flow is conditional and has no context.
        """
        base = self.base.rsample_with_score(sample_shape) if isinstance(self.base, FlowDistribution) else None
        return self.with_score(self.base.rsample(torch.Size(sample_shape)) if base is None else base[0], base)

    def with_score(self, noise: Tensor, base: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`rsample_with_score` for given draws of the base.

        Args:
            noise: Draws of the base, ``(*, *event_shape)``.
            base: The same, with their log-density and its score, where these are known.

        Raises:
            ValueError: If the flow is conditional and has no context, or has surjections.
        """
        self._ready()
        if not self.transform.bijective:
            raise ValueError("transform has surjections, whose draws have no path gradient; use an objective without it")
        if base is not None:
            noise, log_base, score = base
        else:
            log_base = self.base.log_prob(noise)
            with torch.enable_grad():
                at = noise.detach().requires_grad_()
                (score,) = torch.autograd.grad(self.base.log_prob(at).sum(), at)
        value, log_det, score = self.transform.forward_with_score(noise, score)
        return self._checked(value, noise), log_base - log_det, score

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` of ``value`` ``(*, *event_shape)``, in one inverse pass; in none for a value just drawn.

        Raises:
            ValueError: If the flow is conditional and has no context, or ``value`` has a wrong shape or dtype, or,
                where arguments are validated, is outside the support.
        """
        self._ready()
        self._check_value(value)
        noise, log_det = self.transform._inverse_cached(value, None)
        return self.base.log_prob(noise) + log_det


def _move(distribution: Distribution, fn: Callable[[Tensor], Tensor]) -> None:
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            vars(distribution)[name] = fn(value)
        elif isinstance(value, Distribution):
            _move(value, fn)


def _default_base(transform: FlowTransform, dtype: torch.dtype | None, device: torch.device | None) -> Distribution:
    """The standard distribution of what the flow takes."""
    if is_kind(transform.domain, SPHERE):
        return UniformSphere(transform.input_dim, dtype=dtype, device=device, validate_args=False)
    if is_kind(transform.domain, SIMPLEX):
        return Dirichlet(torch.ones(transform.input_dim, dtype=dtype, device=device), validate_args=False)
    circles = circles_of(transform.domain)
    if circles is not None:
        return UniformTorus(transform.input_dim, circles, dtype=dtype, device=device, validate_args=False)
    return StandardNormal(tuple(transform.event_shape), dtype=dtype, device=device, validate_args=False)


def _dtype_and_device_of_base(base: Distribution) -> tuple[torch.dtype, torch.device]:
    """Those of the draws of a default base."""
    like: Tensor = base.concentration if isinstance(base, Dirichlet) else base.zero  # type: ignore[attr-defined]
    return like.dtype, like.device


def _dtype_and_device(transform: FlowTransform) -> tuple[torch.dtype | None, torch.device | None]:
    """Those of the first parameter, or else floating-point buffer; None where there is neither."""
    like = next(transform.parameters(), None)
    if like is None:
        like = next((buffer for buffer in transform.buffers() if buffer.is_floating_point()), None)
    return (None, None) if like is None else (like.dtype, like.device)
