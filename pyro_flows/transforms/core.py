"""The contract of a transform: two methods from which everything else follows."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from pyro.distributions import ConditionalTransform, TransformModule
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim.optimizer import register_optimizer_step_post_hook

from pyro_flows.nn.recorded import Recorded
from pyro_flows.solvers.mode import is_eager

CheapDirection = Literal["both", "forward", "inverse"]
LogDetKind = Literal["exact", "estimate", "bound"]
_Pass = Callable[..., tuple[Tensor, Tensor]]


_optimizer_steps = itertools.count(1)
_last_optimizer_step = [0]


def _note_optimizer_step(*_: Any) -> None:
    _last_optimizer_step[0] = next(_optimizer_steps)


# A fused optimiser changes parameters without a change of their versions, so the cache asks for the last step too.
register_optimizer_step_post_hook(_note_optimizer_step)


class _CacheEntry(NamedTuple):
    """The last pass through a transform, with all that it depended on."""

    x: Tensor
    y: Tensor
    log_det: Tensor
    context: Tensor | None
    versions: tuple[int, int, int]
    state: tuple[Any, ...]


def _checked(method: _Pass) -> _Pass:
    """Check input and context before ``method``, and expand the input to their common batch shape."""

    @functools.wraps(method)
    def checked(self: FlowTransform, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        backwards = method.__name__ == "inverse_and_log_det"
        x, context = self._check(x, context, method.__name__, self.output_shape if backwards else self.event_shape)
        return method(self, x, context)

    return checked


class FlowTransform(Recorded, TransformModule, ConditionalTransform):  # type: ignore[misc]
    r"""An invertible transform :math:`y = f(x; c)` with a tractable :math:`\log|\det \partial y/\partial x|`.

    A subclass writes a constructor and two methods, :meth:`forward_and_log_det` and :meth:`inverse_and_log_det`.
    From these follow :meth:`__call__`, :attr:`inv`, :meth:`log_abs_det_jacobian`, :meth:`condition`, the shape checks and
    a cache of the last pass, so that the object is a Pyro transform, a conditional Pyro transform and a module at once.

    The two methods receive ``x`` already checked, and expanded to the batch shape that it shares with ``context``; ``context``
    keeps its own batch shape, which broadcasts against that of ``x``, and is ``None`` when ``context_dim`` is 0.

    The event is ``(D,)`` unless a subclass sets ``event_shape`` to another, such as ``(C, H, W)`` of an image; where values have
    another shape than what they are made from, it sets ``output_shape`` too.

    The cache remembers one pass (x, y, log-det) by identity and version of the tensors and of every parameter and buffer, by
    the gradient mode, by train and eval mode, and by the steps that optimisers took; it is forgotten once gradients have passed
    through it. In-place edits through ``.data`` leave versions unchanged and are not seen.

    Args:
        input_dim: Number of variables D of the event ``(D,)``. At least 1.
        context_dim: Number of context variables; 0 for an unconditional transform.

    Raises:
        ValueError: If ``input_dim`` or ``context_dim`` is not such a number.

    Example:
        >>> import math
        >>> class Double(FlowTransform):
        ...     def forward_and_log_det(self, x, context=None):
        ...         return 2 * x, x.new_full(x.shape[:-1], self.input_dim * math.log(2.0))
        ...
        ...     def inverse_and_log_det(self, y, context=None):
        ...         return y / 2, y.new_full(y.shape[:-1], -self.input_dim * math.log(2.0))
        >>> double = Double(3)
        >>> double.inv(double(torch.ones(3)))
        tensor([1., 1., 1.])
    """

    bijective = True
    domain: constraints.Constraint = constraints.real_vector
    codomain: constraints.Constraint = constraints.real_vector
    log_det_kind: LogDetKind = "exact"
    cheap_direction: CheapDirection = "both"
    inverse_kind: Literal["closed", "solved"] = "closed"
    #: Error of a pass beside rounding, relative to what it gives: that of an equation solved to a tolerance.
    accuracy: float = 0.0
    #: Whether the log-determinant costs as much again as the values, so that draws alone are made without it.
    log_det_costs: bool = False

    _cache: _CacheEntry | None
    _inv: Any
    __repr__ = nn.Module.__repr__

    def __init__(self, input_dim: int, context_dim: int = 0) -> None:
        super().__init__()
        if not isinstance(input_dim, int) or isinstance(input_dim, bool) or input_dim < 1:
            raise ValueError(f"input_dim must be a positive integer, got {input_dim!r}")
        if not isinstance(context_dim, int) or isinstance(context_dim, bool) or context_dim < 0:
            raise ValueError(f"context_dim must be a non-negative integer, 0 for no context, got {context_dim!r}")
        self.input_dim = input_dim
        self.context_dim = context_dim
        self.event_shape = torch.Size((input_dim,))
        self._output_shape: torch.Size | None = None
        self._cache = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward_and_log_det", "inverse_and_log_det"):
            if name in cls.__dict__:
                setattr(cls, name, _checked(cls.__dict__[name]))

    @property
    def output_shape(self) -> torch.Size:
        """Shape of an event of values: that of :attr:`event_shape`, unless the transform changes it."""
        return self.event_shape if self._output_shape is None else self._output_shape

    @output_shape.setter
    def output_shape(self, shape: torch.Size) -> None:
        self._output_shape = torch.Size(shape)

    def _take_after(self, transform: FlowTransform) -> None:
        """Say of itself what another transform says, of which this is the same map."""
        self.event_shape, self.domain, self.codomain = transform.event_shape, transform.domain, transform.codomain
        self.output_shape, self.bijective = transform.output_shape, transform.bijective
        self.log_det_kind, self.inverse_kind = transform.log_det_kind, transform.inverse_kind
        self.cheap_direction = transform.cheap_direction
        self.accuracy, self.log_det_costs = transform.accuracy, transform.log_det_costs

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""The transform and its log-determinant in one pass.

        Args:
            x: Input, ``(*, D)``.
            context: Context, ``(*, context_dim)``, whose batch shape broadcasts against that of ``x``.

        Returns:
            :math:`y` of shape ``(*, D)`` and :math:`\log|\det \partial y/\partial x|` of shape ``(*)``.

        Raises:
            ValueError: If a shape or dtype does not fit, or a conditional transform gets no context.
        """
        raise TypeError(f"{type(self).__name__} does not define forward_and_log_det(x, context=None); every transform must")

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""The inverse and its log-determinant in one pass.

        Args:
            y: Output of the transform, ``(*, D)``.
            context: Context, ``(*, context_dim)``, whose batch shape broadcasts against that of ``y``.

        Returns:
            :math:`x` of shape ``(*, D)`` and :math:`\log|\det \partial x/\partial y|` of shape ``(*)``.

        Raises:
            ValueError: If a shape or dtype does not fit, or a conditional transform gets no context.
        """
        raise TypeError(f"{type(self).__name__} does not define inverse_and_log_det(y, context=None); every transform must")

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        r"""The transform of draws together with the score of their density.

        For :math:`x \sim p_X` the score :math:`\nabla_y \log p_Y(y) = J^{-\top} (\nabla_x \log p_X(x) - \nabla_x \log|\det J|)`
        with :math:`J = \partial y/\partial x` is what a path gradient needs. By default it takes an inverse pass; transforms whose
        Jacobian is easy to solve have it from the forward pass.

        Args:
            x: Input, ``(*, D)``, with the batch shape of the context included.
            score: Gradient of the log-density of ``x``, ``(*, D)``.
            context: Context, ``(*, context_dim)``.

        Returns:
            :math:`y` of shape ``(*, D)`` and :math:`\log|\det \partial y/\partial x|` of shape ``(*)``, with their graph, and the
            score at :math:`y`, ``(*, D)``, without.

        Raises:
            ValueError: As :meth:`forward_and_log_det`.

        References:
            Vaitl, Winkler, Richter, Kessel (2024), *Fast and unified path gradient estimators for normalizing flows*,
            https://arxiv.org/abs/2403.15881
        """
        y, log_det = self.forward_and_log_det(x, context)
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            back, log_det_back = self.inverse_and_log_det(at, context)
            outputs = [(back, score.detach().expand(back.shape)), (log_det_back, torch.ones_like(log_det_back))]
            outputs = [(output, weight) for output, weight in outputs if output.requires_grad]
            (new_score,) = torch.autograd.grad([out for out, _ in outputs], at, [weight for _, weight in outputs])
        return y, log_det, new_score

    # Pyro's and torch's interface

    @property
    def inv(self) -> FlowTransform:
        """The inverse, a module that owns the same parameters; ``t.inv.inv is t``."""
        inverse = self._inv() if self._inv is not None else None
        if inverse is None:
            inverse = Inverse(self)
            self._inv = weakref.ref(inverse)
        return inverse

    @property
    def sign(self) -> int | Tensor:
        """Sign of the Jacobian determinant: 1 unless a subclass says otherwise."""
        return 1

    @property
    def settings(self) -> tuple[Any, ...]:
        """What of its attributes may change and a pass depends on, so that a pass before the change is not remembered."""
        return ()

    @property
    def caches(self) -> bool:
        """Whether a pass through it, or what holds it, may be remembered: not if parameters, buffers and modes tell not all."""
        return True

    @property
    def eager_only(self) -> bool:
        """Whether a pass through it, or a part of it, looks at values, which torch.compile and torch.func do not show."""
        return any(part.eager_only for part in self.modules() if part is not self and isinstance(part, FlowTransform))

    def condition(self, context: Tensor) -> FlowTransform:
        """The transform at a given context, without need of one.

        Args:
            context: Context, ``(*, context_dim)``.

        Returns:
            A transform with ``context_dim`` 0 that owns the same parameters. An unconditional transform returns itself.

        Raises:
            ValueError: If the last dimension of ``context`` is not ``context_dim``.
        """
        return self if self.context_dim == 0 else Conditioned(self, context)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """This transform: it has a cache of its own, and torch's stays off."""
        return self

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of ``y`` for ``x`` of the given shape."""
        batch = self._check_event(torch.Size(shape), "forward_shape", self.event_shape)
        return batch + self.output_shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of ``x`` for ``y`` of the given shape."""
        batch = self._check_event(torch.Size(shape), "inverse_shape", self.output_shape)
        return batch + self.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """The transform of ``x``, ``(*, D)``."""
        return self._forward_cached(x, None)[0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`forward_and_log_det`, for wrappers that call a module's ``forward``."""
        return self.forward_and_log_det(x, context)

    def _inv_call(self, y: Tensor) -> Tensor:
        return self._inverse_cached(y, None)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\log|\det \partial y/\partial x|`, ``(*)``, free of cost after a pass that related ``x`` to ``y``.

        Args:
            x: Input, ``(*, D)``.
            y: Output for that input, ``(*, D)``.
        """
        return self._log_det_cached(x, y, None)

    def __getstate__(self) -> dict[str, Any]:
        forget_pyro_links(self)
        state = self.__dict__.copy()
        state["_inv"] = None
        state["_cache"] = None
        return state

    # The one-pass cache

    def _state_key(self) -> tuple[Any, ...] | None:
        """Identity, version and mode of everything that a pass depends on beside its input; None where these do not tell all."""
        key: list[Any] = [torch.is_grad_enabled(), _last_optimizer_step[0]]
        add = key.append
        stack: list[nn.Module] = [self]
        try:
            for module in stack:
                state = module.__dict__
                if state.get("_pyro_samples"):
                    raise ValueError(
                        f"{type(module).__name__} in {type(self).__name__} has random weights (PyroSample), which a density would "
                        f"draw anew, outside of the model; put priors on a flow's weights by "
                        f"pyro_flows.distributions.random_module"
                    )
                if isinstance(module, FlowTransform) and not module.caches:
                    return None
                add(state["training"])
                if isinstance(module, FlowTransform):
                    add(module.settings)
                for tensors in (state["_parameters"], state["_buffers"]):
                    for tensor in tensors.values():
                        if tensor is not None:
                            add((id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad))
                stack += [child for child in state["_modules"].values() if child is not None]
        except RuntimeError:  # inference tensors do not track versions
            return None
        return tuple(key)

    def _can_cache(self, *tensors: Tensor | None) -> bool:
        if not is_eager() or torch.is_inference_mode_enabled():
            return False
        return not any(tensor is not None and tensor.is_inference() for tensor in tensors)

    def _hit(self, context: Tensor | None) -> _CacheEntry | None:
        entry = self._cache
        if entry is None or entry.context is not context:
            return None
        if entry.versions != _versions(entry.x, entry.y, entry.context) or entry.state != self._state_key():
            return None
        return entry

    def _remember(self, x: Tensor, y: Tensor, log_det: Tensor, context: Tensor | None, produced: tuple[Tensor, Tensor]) -> None:
        state = self._state_key()
        if state is None:
            return
        self._cache = _CacheEntry(x, y, log_det, context, _versions(x, y, context), state)
        myself, remembered = weakref.ref(self), id(log_det)

        def forget(*_: Any) -> None:
            """Once gradients have passed, the graph is gone, and with it what another call could do with these tensors."""
            transform = myself()
            if transform is not None and transform._cache is not None and id(transform._cache.log_det) == remembered:
                transform._cache = None

        for tensor in produced:
            if tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(forget)

    def _forward_cached(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self._can_cache(x, context):
            return self.forward_and_log_det(x, context)
        if self._cache is not None and self._cache.x is x and (entry := self._hit(context)) is not None:
            return entry.y, entry.log_det
        y, log_det = self.forward_and_log_det(x, context)
        self._remember(x, y, log_det, context, (y, log_det))
        return y, log_det

    def _inverse_cached(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self._can_cache(y, context):
            return self.inverse_and_log_det(y, context)
        if self._cache is not None and self._cache.y is y and (entry := self._hit(context)) is not None:
            return entry.x, -entry.log_det
        x, log_det = self.inverse_and_log_det(y, context)
        self._remember(x, y, -log_det, context, (x, log_det))
        return x, log_det

    def _log_det_cached(self, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        cache = self._cache
        if cache is not None and cache.x is x and cache.y is y and self._can_cache(x, y, context):
            entry = self._hit(context)
            if entry is not None:
                return entry.log_det
        if self.cheap_direction == "inverse":
            return -self.inverse_and_log_det(y, context)[1]
        return self.forward_and_log_det(x, context)[1]

    # Checks

    def _check_event(self, shape: torch.Size, what: str, event: torch.Size) -> torch.Size:
        """The batch shape."""
        if shape[len(shape) - len(event) :] != event or len(shape) < len(event):
            expected = ", ".join(["*", *map(str, event)])
            raise ValueError(
                f"{type(self).__name__}.{what}: input has shape {tuple(shape)}, expected ({expected}); "
                f"build the transform with the input_dim of your data, or reshape it"
            )
        return shape[: len(shape) - len(event)]

    def _check(self, x: Tensor, context: Tensor | None, what: str, event: torch.Size | None = None) -> tuple[Tensor, Tensor | None]:
        if not isinstance(x, Tensor):
            raise ValueError(f"{type(self).__name__}.{what}: input must be a tensor, got {type(x).__name__}")
        if not x.dtype.is_floating_point:
            raise ValueError(f"{type(self).__name__}.{what}: input must be floating point, got {x.dtype}; convert it first")
        event = self.event_shape if event is None else event
        batch = self._check_event(x.shape, what, event)
        if not torch.compiler.is_compiling():
            self._check_dtype(x, "input", what)
        if self.context_dim == 0:
            return x, None
        if context is None:
            raise ValueError(
                f"{type(self).__name__}.{what}: a conditional transform (context_dim={self.context_dim}) needs a context; "
                f"pass context=… or use .condition(context)"
            )
        self._check_context(context, what)
        if context.shape[:-1] != batch:
            try:
                full = torch.broadcast_shapes(batch, context.shape[:-1])
            except RuntimeError as error:
                raise ValueError(
                    f"{type(self).__name__}.{what}: batch shape {tuple(batch)} of the input and {tuple(context.shape[:-1])} of "
                    f"the context do not broadcast; insert dimensions of size 1 where they differ"
                ) from error
            x = x.expand(full + event)
        return x, context

    def _check_context(self, context: Tensor, what: str) -> None:
        if not isinstance(context, Tensor):
            raise ValueError(f"{type(self).__name__}.{what}: context must be a tensor, got {type(context).__name__}")
        if context.dim() < 1 or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"{type(self).__name__}.{what}: context has shape {tuple(context.shape)}, expected (*, {self.context_dim})"
            )
        if not torch.compiler.is_compiling():
            self._check_dtype(context, "context", what)

    def _check_dtype(self, tensor: Tensor, role: str, what: str) -> None:
        parameter = _first_parameter(self)
        if parameter is not None and parameter.dtype != tensor.dtype:
            raise ValueError(
                f"{type(self).__name__}.{what}: {role} has dtype {tensor.dtype} and the parameters {parameter.dtype}; "
                f"convert one, for example by transform.to({tensor.dtype})"
            )


def _first_parameter(module: nn.Module) -> nn.Parameter | None:
    # As next(module.parameters(), None), which takes many times longer; every pass of every layer asks.
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (parameter := _first_parameter(child)) is not None:
            return parameter
    return None


def forget_pyro_links(module: nn.Module) -> None:
    """Drop the weak references that ``pyro.param`` leaves on parameters, which cannot be pickled; Pyro makes them anew.

    Example:
        >>> forget_pyro_links(nn.Linear(1, 1))
    """
    for parameter in module.parameters():
        parameter.__dict__.pop("unconstrained", None)


def _versions(x: Tensor, y: Tensor, context: Tensor | None) -> tuple[int, int, int]:
    return x._version, y._version, -1 if context is None else context._version


class Inverse(FlowTransform):
    r"""The inverse :math:`y = f^{-1}(x)` of a transform, made by ``transform.inv``.

    It owns the parameters of ``transform`` and shares its cache: ``t(x)`` followed by ``t.inv(y)`` costs one pass.

    Args:
        transform: The transform to invert.

    Raises:
        ValueError: If ``transform`` is not a :class:`FlowTransform`.

    Example:
        >>> from pyro_flows import flows
        >>> iaf = flows.get("maf")(2).inv
        >>> iaf.cheap_direction
        'forward'
    """

    def __init__(self, transform: FlowTransform) -> None:
        if not isinstance(transform, FlowTransform):
            raise ValueError(f"transform must be a FlowTransform, got {type(transform).__name__}")
        super().__init__(transform.output_shape.numel(), transform.context_dim)
        self.transform = transform
        self.event_shape, self.output_shape = transform.output_shape, transform.event_shape
        self.domain = transform.codomain
        self.codomain = transform.domain
        self.bijective = transform.bijective
        self.log_det_kind = transform.log_det_kind
        self.inverse_kind = transform.inverse_kind
        self.accuracy, self.log_det_costs = transform.accuracy, transform.log_det_costs
        swap: dict[CheapDirection, CheapDirection] = {"forward": "inverse", "inverse": "forward", "both": "both"}
        self.cheap_direction = swap[transform.cheap_direction]

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse_and_log_det(x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.forward_and_log_det(y, context)

    @property
    def inv(self) -> FlowTransform:
        return self.transform

    @property
    def sign(self) -> int | Tensor:
        return self.transform.sign

    def _forward_cached(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform._inverse_cached(x, context)

    def _inverse_cached(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform._forward_cached(y, context)

    def _log_det_cached(self, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        return -self.transform._log_det_cached(y, x, context)


class Conditioned(FlowTransform):
    """A conditional transform at a fixed context, made by ``transform.condition(context)``.

    It owns the parameters of ``transform`` and shares its cache. The batch shape of the context becomes part of
    :meth:`forward_shape`, so that a base distribution is expanded and every row of the context has noise of its own.

    Args:
        transform: A transform with ``context_dim`` > 0.
        context: The context, ``(*, context_dim)``, with gradient if it has one.

    Raises:
        ValueError: If ``transform`` is unconditional or the context does not fit it.

    Example:
        >>> from pyro_flows import flows
        >>> t = flows.get("real_nvp")(2, context_dim=3).condition(torch.zeros(5, 3))
        >>> t.forward_shape((2,))
        torch.Size([5, 2])
    """

    def __init__(self, transform: FlowTransform, context: Tensor) -> None:
        if not isinstance(transform, FlowTransform) or transform.context_dim == 0:
            raise ValueError(f"transform must be conditional (context_dim > 0), got {type(transform).__name__}")
        transform._check_context(context, "condition")
        super().__init__(transform.input_dim)
        self.transform = transform
        self.context = context
        self._take_after(transform)

    def extra_repr(self) -> str:
        return f"context={tuple(self.context.shape)}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.forward_and_log_det(x, self.context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse_and_log_det(y, self.context)

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.transform.forward_with_score(x, score, self.context)

    @property
    def sign(self) -> int | Tensor:
        return self.transform.sign

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        batch = self._check_event(torch.Size(shape), "forward_shape", self.event_shape)
        return torch.broadcast_shapes(batch, self.context.shape[:-1]) + self.output_shape

    def _forward_cached(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform._forward_cached(x, self.context)

    def _inverse_cached(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform._inverse_cached(y, self.context)

    def _log_det_cached(self, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        return self.transform._log_det_cached(x, y, self.context)
