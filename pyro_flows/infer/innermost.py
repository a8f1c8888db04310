"""The layer of a flow that is next to the noise, and data seen through those behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar, cast

from torch import Tensor

from pyro_flows.distributions import FlowDistribution
from pyro_flows.transforms import Compose, ContextMap, FlowTransform, RegressionFlow

Layer = TypeVar("Layer", bound=FlowTransform)


class Innermost(NamedTuple, Generic[Layer]):
    """The layer next to the noise.

    Args:
        layer: The layer.
        pull: Takes points of the data, and their contexts or None, to its values.
        tell: Makes what it is told of a context.

    Example:
        See :func:`innermost`.
    """

    layer: Layer
    pull: Callable[[Tensor, Tensor | None], Tensor]
    tell: Callable[[Tensor | None], Tensor | None]


def demand_innermost(distribution: FlowDistribution, kind: type[Layer], objective: str) -> Innermost[Layer]:
    """The layer of :func:`innermost`, where an objective cannot do without.

    Args:
        distribution: The density.
        kind: Class of the layer.
        objective: Its name, for the message.

    Raises:
        ValueError: If there is none.

    Example:
        >>> from pyro_flows import flows
        >>> from pyro_flows.transforms import CNF
        >>> demand_innermost(FlowDistribution(flows.get("cnf")(2)), CNF, "flow matching").layer.input_dim
        2
    """
    if not isinstance(distribution, FlowDistribution):
        raise ValueError(f"flow must be one flow for {objective}, got {type(distribution).__name__}")
    found = innermost(distribution.transform, kind)
    if found is None:
        raise ValueError(
            f"{objective} is for a flow whose innermost layer, that next to the noise, is a {kind.__name__}; got\n"
            f"{distribution.transform}"
        )
    return found


def innermost(transform: FlowTransform, kind: type[Layer]) -> Innermost[Layer] | None:
    """The layer of a flow that is next to the noise, if it is of a kind and those behind it can be undone; else None.

    Args:
        transform: The flow.
        kind: Class of the layer.

    Example:
        >>> from pyro_flows import flows
        >>> from pyro_flows.transforms import ActNorm
        >>> innermost(flows.affine(2), ActNorm) is None, innermost(ActNorm(2), ActNorm).layer
        (True, ActNorm())
    """
    if isinstance(transform, kind):
        return Innermost(transform, lambda points, context: points, lambda context: context)
    if isinstance(transform, ContextMap):
        within, told = innermost(transform.transform, kind), transform.told
        if within is None:
            return None
        layer, pull_on, tell_on = within
        return Innermost(layer, lambda points, context: pull_on(points, told(context)), lambda context: tell_on(told(context)))
    if isinstance(transform, RegressionFlow):
        behind = innermost(transform.flow, kind)
        if behind is None:
            return None

        def residuals(points: Tensor, context: Tensor | None) -> Tensor:
            return behind.pull(transform.residuals(points, context)[0], transform.told(context))

        return Innermost(behind.layer, residuals, lambda context: behind.tell(transform.told(context)))
    if isinstance(transform, Compose):
        first, *rest = cast(list[FlowTransform], list(transform.parts))
        inner = innermost(first, kind)
        if inner is None or not all(part.bijective for part in rest):
            return None

        def pull(points: Tensor, context: Tensor | None) -> Tensor:
            for part in reversed(rest):
                points = part.inverse_and_log_det(points, context if part.context_dim else None)[0]
            return inner.pull(points, context)

        return Innermost(inner.layer, pull, inner.tell)
    return None
