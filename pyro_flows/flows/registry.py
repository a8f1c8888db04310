"""Published flows by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pyro_flows.nn import ColumnMLP
from pyro_flows.transforms.core import CheapDirection, FlowTransform
from pyro_flows.transforms.supports import is_real

FlowFactory = Callable[..., FlowTransform]
Smoothness = Literal["smooth", "once"]
Event = Literal["vector", "image", "sphere", "torus", "simplex"]
_F = TypeVar("_F", bound=FlowFactory)


@dataclass(frozen=True)
class FlowInfo:
    """What the registry knows of a flow.

    Args:
        name: Name by which :func:`get` finds it.
        factory: ``(input_dim, context_dim=0, **options) -> FlowTransform``; one of images takes their shape ``(C, H, W)`` first.
        cheap: Direction that needs one pass: ``"forward"`` samples fast, ``"inverse"`` scores fast, ``"both"`` does both.
        inverse: How the other direction is computed, ``"closed"`` form or ``"solved"`` numerically.
        paper: Address of the paper.
        smoothness: How often the density can be differentiated, ``"smooth"`` for always, or ``"once"``.
        event: What it is a flow of: ``"vector"``, ``"image"``, ``"sphere"``, ``"torus"`` or ``"simplex"``.

    Example:
        >>> from pyro_flows import flows
        >>> flows.info("maf").cheap
        'inverse'
    """

    name: str
    factory: FlowFactory
    cheap: CheapDirection
    inverse: Literal["closed", "solved"]
    paper: str
    smoothness: Smoothness = "smooth"
    event: Event = "vector"


_REGISTRY: dict[str, FlowInfo] = {}


def register(
    name: str,
    *,
    cheap: CheapDirection,
    inverse: Literal["closed", "solved"],
    paper: str,
    smoothness: Smoothness = "smooth",
    event: Event = "vector",
) -> Callable[[_F], _F]:
    """Register a factory ``(input_dim, context_dim=0, **options) -> FlowTransform`` under a name.

    Args:
        name: The name; must be free.
        cheap: Direction that needs one pass.
        inverse: How the other direction is computed.
        paper: Address of the paper.
        smoothness: How often the density can be differentiated.
        event: What it is a flow of.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> from pyro_flows import flows
        >>> from pyro_flows.transforms import AffineTril
        >>> @flows.register("doc_affine", cheap="both", inverse="closed", paper="")
        ... def doc_affine(input_dim, context_dim=0):
        ...     return AffineTril(input_dim, context_dim)
        >>> flows.get("doc_affine") is doc_affine
        True
        >>> flows.unregister("doc_affine")
    """

    def decorate(factory: _F) -> _F:
        if name in _REGISTRY:
            raise ValueError(f"name={name!r} is registered already, by {_REGISTRY[name].factory}; choose another name")
        checked = _with_sizes_checked(factory, event)
        _REGISTRY[name] = FlowInfo(name, checked, cheap, inverse, paper, smoothness, event)
        return checked

    return decorate


def _with_sizes_checked(factory: _F, event: Event) -> _F:
    """The factory, which refuses a number of variables or a size of the context that is none."""

    @functools.wraps(factory)
    def checked(input_dim: Any, context_dim: int = 0, **options: Any) -> FlowTransform:
        if event == "vector" and (not isinstance(input_dim, int) or isinstance(input_dim, bool) or input_dim < 1):
            raise ValueError(f"input_dim must be a positive integer, got {input_dim!r}")
        if not isinstance(context_dim, int) or isinstance(context_dim, bool) or context_dim < 0:
            raise ValueError(f"context_dim must be an integer that is not negative, got {context_dim!r}")
        made: FlowTransform = factory(input_dim, context_dim, **options)
        return made

    return checked  # type: ignore[return-value]


def unregister(name: str) -> None:
    """Forget a flow that :func:`register` made known.

    Args:
        name: Its name.

    Raises:
        ValueError: If no flow has that name.

    Example:
        See :func:`register`.
    """
    info(name)
    del _REGISTRY[name]


def names(event: Event = "vector") -> tuple[str, ...]:
    """Names of the registered flows of vectors, of images, or on a manifold, sorted.

    Args:
        event: Of what.

    Example:
        >>> from pyro_flows import flows
        >>> "real_nvp" in flows.names(), flows.names("image")
        (True, ('glow', 'real_nvp_image'))
    """
    return tuple(sorted(name for name, entry in _REGISTRY.items() if entry.event == event))


def info(name: str) -> FlowInfo:
    """What is known of a registered flow.

    Args:
        name: Its name.

    Raises:
        ValueError: If no flow has that name.

    Example:
        >>> from pyro_flows import flows
        >>> flows.info("real_nvp").paper
        'https://arxiv.org/abs/1605.08803'
    """
    if name not in _REGISTRY:
        raise ValueError(f"no flow is named {name!r}; the names are {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]


def get(name: str) -> FlowFactory:
    """Factory of a registered flow, ``(input_dim, context_dim=0, **options) -> FlowTransform``.

    Args:
        name: Its name.

    Raises:
        ValueError: If no flow has that name.

    Example:
        >>> from pyro_flows import flows
        >>> flows.get("affine")(2).input_dim
        2
    """
    return info(name).factory


def build(
    flow: str | FlowFactory,
    input_dim: int | tuple[int, ...],
    context_dim: int = 0,
    *,
    for_data: bool = False,
    steep: bool = False,
    **options: Any,
) -> FlowTransform:
    """Build a flow from a name or from a callable, and check what came out.

    Args:
        flow: Name in the registry or a callable ``(input_dim, context_dim, **options) -> FlowTransform``.
        input_dim: Dimension D that the flow must have, or shape ``(C, H, W)`` of its images.
        context_dim: Dimension of the context that it must take.
        for_data: Whether it is a density of data, which may live on a manifold and have surjections, and not of a guide.
        steep: Whether its networks start with weights for densities with edges, see
            :meth:`~pyro_flows.nn.ColumnMLP.start_steep`; at the start it is the same map.
        options: Passed to the factory.

    Raises:
        ValueError: If the name is unknown, or the factory returned something else than such a transform.

    Example:
        >>> from pyro_flows import flows
        >>> flows.build("affine", 3).event_shape
        torch.Size([3])
    """
    if isinstance(flow, str):
        factory = get(flow)
        wanted: Event = "vector" if isinstance(input_dim, int) else "image"
        on_manifold = for_data and wanted == "vector" and info(flow).event != "image"
        if info(flow).event != wanted and not on_manifold:
            raise ValueError(f"flow={flow!r} is a flow of {info(flow).event}s; flows of {wanted}s are {', '.join(names(wanted))}")
    elif callable(flow):
        factory = flow
    else:
        raise ValueError(f"flow must be a name or a callable (input_dim, context_dim), got {type(flow).__name__}")
    label = repr(flow) if isinstance(flow, str) else getattr(flow, "__name__", type(flow).__name__)
    try:
        inspect.signature(factory).bind(input_dim, context_dim, **options)
    except TypeError as error:
        raise ValueError(
            f"flow={label} cannot be called as (input_dim, context_dim{''.join(f', {name}=' for name in options)}): {error}; "
            f"its signature is {inspect.signature(factory)}"
        ) from error
    transform = factory(input_dim, context_dim, **options)
    if not isinstance(transform, FlowTransform):
        raise ValueError(f"flow={label} returned {type(transform).__name__}; it must return a FlowTransform")
    if not transform.bijective and not for_data:
        raise ValueError(
            f"flow={label} returned a flow with surjections, whose draws have no gradient; fit it to data by fit_density"
        )
    if not for_data and not (is_real(transform.domain) and is_real(transform.codomain)):
        raise ValueError(f"flow={label} returned a flow to {transform.codomain}; one of real vectors is wanted")
    event_shape = (input_dim,) if isinstance(input_dim, int) else tuple(input_dim)
    if tuple(transform.output_shape) != event_shape or transform.context_dim != context_dim:
        raise ValueError(
            f"flow={label} returned a transform with event shape {tuple(transform.output_shape)} and "
            f"context_dim={transform.context_dim}; expected {event_shape} and {context_dim}"
        )
    if steep:
        for module in transform.modules():
            if isinstance(module, ColumnMLP):
                module.start_steep()
    return transform
