"""The latents that share their plates, and the conditional flow of one element of these plates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn

from pyro_flows.distributions import FlowDistribution
from pyro_flows.flows.registry import FlowFactory, build
from pyro_flows.nn import MLP, FirstNumbers
from pyro_flows.transforms import (
    AffineTril,
    Compose,
    ContextMap,
    Elementwise,
    FlowTransform,
    LowerCholeskyAffine,
    PartialCentring,
)
from pyro_flows.transforms.context_parameters import ContextParameters
from pyro_flows.transforms.univariate import Affine

#: Dimensions from which on an affine layer is elementwise: a full matrix has too many weights.
_FULL_UP_TO = {True: 32, False: 512}


@dataclass(frozen=True)
class SiteLayout:
    """Where a latent site stands in the vector of one element.

    Args:
        name: The site.
        event_dim: Event dimensions of a value.
        unconstrained_event_shape: Event shape of an unconstrained value.
        batch_shape: Batch shape at setup.
        kept: Batch dimensions, negative, that are part of the vector rather than of the plates of the block, and not of size one.
        start: Where it begins in the vector.
        stop: Where it ends.

    Example:
        >>> SiteLayout("x", 0, torch.Size([]), torch.Size([3, 5]), (-2,), 0, 3).kept_shape
        (3,)
    """

    name: str
    event_dim: int
    unconstrained_event_shape: torch.Size
    batch_shape: torch.Size
    kept: tuple[int, ...]
    start: int
    stop: int

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Sizes of the batch dimensions that are part of the vector."""
        return tuple(self.batch_shape[dim] for dim in self.kept)

    def unpack(self, latent: Tensor) -> Tensor:
        """Unconstrained values ``(*, batch shape, event shape)`` of vectors ``(*, plates, d)``, the plates at their dimensions."""
        piece = latent[..., self.start : self.stop]
        batch = (1,) * (len(self.batch_shape) - piece.dim() + 1) + tuple(piece.shape[:-1])
        event = tuple(self.unconstrained_event_shape)
        piece = piece.reshape(batch + self.kept_shape + event)
        axis = len(batch)  # where the next kept dimension stands
        for dim in self.kept:
            place = len(batch) + dim
            if piece.shape[place] != 1:
                raise ValueError(
                    f"site {self.name!r}: batch dimension {dim} is that of its own values, and a plate outside of the guide has "
                    f"taken it; set max_plate_nesting={len(self.batch_shape)} or more, or declare the dimension by to_event"
                )
            # The moved dimension takes the place of one of size 1, so that all others keep their places.
            piece = piece.movedim(axis, place).squeeze(place + 1)
            batch = batch[:place] + (piece.shape[place],) + batch[place + 1 :]
        return piece

    def pack(self, unconstrained: Tensor, batch_dim: int) -> Tensor:
        """Vectors ``(*, plates, stop - start)`` of unconstrained values; ``batch_dim`` counts the dimensions before the event's."""
        event = unconstrained.dim() - batch_dim
        places = [batch_dim + dim for dim in self.kept]
        last = list(range(batch_dim - len(places), batch_dim))
        moved = unconstrained.movedim(places, last)
        for place in sorted(places):
            moved = moved.unsqueeze(place)
        return moved.reshape(*moved.shape[: moved.dim() - len(places) - event], -1)


class PlateBlock(nn.Module):
    r"""Latents in the same plates: :math:`z_i = \mu + \sigma\,(L(c_i)\,f_\theta(\epsilon_i; c_i) + b(c_i))` for every element
    :math:`i`.

    One conditional flow :math:`f_\theta`, shared by the elements and at the identity when training starts, then an affine map whose
    parameters are linear in the context :math:`c_i`, then a fixed location and scale, the units in which steps are taken. The
    latents without a plate are a block too, of one element. Effects whose prior has a scale that is a latent itself have
    :class:`PartialCentring` in place of the fixed location and scale, and an affine map without context before it: they are
    standardised by their prior and a learned normal likelihood.

    Args:
        plates: Names of the plates, outermost first, and their dimensions; empty for latents without.
        layouts: Its sites.
        loc: Location of a vector at the start, ``(d,)``.
        init_scale: Standard deviation at the start.
        flow: Name of a registered flow, or callable ``(input_dim, context_dim) -> FlowTransform``.
        parents: Which blocks it is conditional on, by position.
        context_dim: Size of the whole context.
        direct: Where in the context the row stands whose numbers add to location and log-scale, and how many; None for none.
        flow_options: Of a registered flow.
        hierarchical: Whether it is told the prior of its latents.

    Example:
        >>> layout = SiteLayout("x", 0, torch.Size([]), torch.Size([5]), (), 0, 1)
        >>> block = PlateBlock({"data": -1}, [layout], torch.zeros(1), 0.1, "affine", (), 0)
        >>> block.distribution(None).event_shape
        torch.Size([1])
    """

    def __init__(
        self,
        plates: Mapping[str, int],
        layouts: Sequence[SiteLayout],
        loc: Tensor,
        init_scale: float,
        flow: str | FlowFactory,
        parents: Sequence[int],
        context_dim: int,
        direct: tuple[int, int] | None = None,
        flow_options: Mapping[str, Any] | None = None,
        hierarchical: bool = False,
    ) -> None:
        super().__init__()
        self.plates = dict(plates)
        self.layouts = tuple(layouts)
        self.parents = tuple(parents)
        dim = len(loc)
        inner = build(flow, dim, context_dim, **(flow_options or {}))
        inner = inner.to(loc)
        outer = _affine(dim, 0 if hierarchical else context_dim).to(loc)
        self.direct = direct
        self.hierarchical = hierarchical
        frame: LowerCholeskyAffine | PartialCentring
        if hierarchical:
            frame = PartialCentring(dim, context_dim + 2 * dim).to(loc)
            inner, outer = ContextMap(inner, FirstNumbers(context_dim), frame.context_dim), outer
        else:
            frame = LowerCholeskyAffine(torch.zeros_like(loc), torch.ones_like(loc))
        self.joint = FlowDistribution(Compose([inner, outer, frame]))
        self._start(loc, init_scale)

    @property
    def dim(self) -> int:
        """Size d of the vector of one element."""
        return self.layouts[-1].stop

    @property
    def label(self) -> str:
        """How messages call it."""
        return "/".join(self.plates) or "the latents outside of plates"

    def distribution(self, context: Tensor | None) -> FlowDistribution:
        """Distribution of the vectors, its batch shape that of the context."""
        return self.joint if context is None else self.joint.condition(context)

    def whitened(self, latent: Tensor, context: Tensor | None) -> Tensor:
        """The vectors before the affine map, of order one, in which other blocks see them."""
        _, affine, frame = self._parts
        told = context if frame.context_dim else None
        return affine.inverse_and_log_det(frame.inverse_and_log_det(latent, told)[0], context)[0]

    @property
    def _parts(self) -> tuple[FlowTransform, FlowTransform, LowerCholeskyAffine | PartialCentring]:
        return tuple(self.joint.transform.parts)  # type: ignore[union-attr, arg-type, return-value]

    @property
    def frame(self) -> LowerCholeskyAffine | PartialCentring:
        """The last map: a fixed location and scale, or the one that standardises effects."""
        return self._parts[2]

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the latents."""
        frame = self.frame
        return frame.centre if isinstance(frame, PartialCentring) else frame.loc

    def flow_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the flow, which are not those of the affine map."""
        return self._parts[0].parameters()

    @property
    def _location_scale(self) -> FlowTransform:
        """The map whose location and scale are learned for each element."""
        _, affine, frame = self._parts
        return frame if isinstance(frame, PartialCentring) else affine

    @torch.no_grad()
    def _start(self, loc: Tensor, init_scale: float) -> None:
        log_scale = torch.full_like(loc, math.log(init_scale))
        layer = self._location_scale
        if isinstance(layer, Elementwise) and layer.conditioner is not None:
            univariate = layer.univariate
            params, start = layer.conditioner, {"raw": torch.stack([loc, univariate.raw_log_scale(log_scale)])}  # type: ignore[operator]
        elif isinstance(layer, PartialCentring):
            params, start = layer.params, {"bias": loc, "log_scale": log_scale}
        else:
            params, start = layer.params, {"bias": loc, "log_diagonal": log_scale}  # type: ignore[assignment]
        for name, value in start.items():
            params.get_parameter(name).copy_(value)
        if self.direct is not None and params.network is not None:
            first, width = self.direct
            weight = params.network.layers[-1].get_parameter("weight")
            for i in range(min(2 * self.dim, width)):  # locations first, then log-scales
                weight[i, first + i] = 1.0

    @torch.no_grad()
    def recentre(self, context: Tensor | None) -> Tensor | None:
        """Make mean location and scale of the latents at some contexts the units of learning; the distribution stays what it is.

        A map that is elementwise, for want of weights for a full one, is left as it is.

        Args:
            context: Contexts ``(*, C)``, None where there is none.

        Returns:
            Factors ``(d,)`` by which the numbers of learned rows that add to locations must be multiplied; None if there are none.
        """
        layer, frame = self._location_scale, self.frame
        if isinstance(layer, Elementwise):
            return None
        params: ContextParameters = layer.params  # type: ignore[assignment]
        if isinstance(frame, PartialCentring):
            told = None if params.network is None or context is None else context[..., : frame.context_dim - 2 * self.dim]
            bias = params(told)[0]
            log_scale = frame.location_and_log_scale(context)[1]  # type: ignore[arg-type]
            unit = frame.unit.clone()
            log_scale = log_scale - unit.log()
        else:
            bias, log_scale, _ = params(context)
            unit = frame.scale_tril.diagonal().clone()
        loc, log_scale = bias.reshape(-1, self.dim).mean(0), log_scale.reshape(-1, self.dim).mean(0)
        scale = log_scale.exp()
        if not bool(torch.isfinite(loc).all() & torch.isfinite(scale).all() & (scale > 0).all()):
            return None
        params.get_parameter("bias").sub_(loc).div_(scale)
        if isinstance(frame, PartialCentring):
            frame.centre.add_(unit * loc)
            frame.unit.mul_(scale)
        else:
            frame.set(frame.loc + unit * loc, unit * scale)
            params.get_parameter("log_diagonal").sub_(log_scale)
        if params.network is None:
            return None
        last = params.network.layers[-1]  # the only one
        last.get_parameter("weight")[: self.dim].div_(scale[:, None])
        last.get_parameter("bias")[: self.dim].div_(scale)
        if self.direct is None:
            return None
        first, width = self.direct
        count = min(self.dim, width)
        if not self._flow_is_identity(context):
            return None  # it sees the rows, and would be another with other rows
        for network in self._linear_in_context():
            network.layers[-1].get_parameter("weight")[:, first : first + count].mul_(scale[:count])
        return 1 / scale[:count]

    def _linear_in_context(self) -> Iterator[MLP]:
        """The networks of all maps but the flow, which have one layer."""
        for part in self._parts[1:]:
            params = getattr(part, "conditioner", None) or getattr(part, "params", None)
            if isinstance(params, ContextParameters) and params.network is not None:
                yield params.network

    def _flow_is_identity(self, context: Tensor | None) -> bool:
        batch = () if context is None else context.shape[:-1]
        noise = self.joint.base.expand(torch.Size(batch)).sample()
        return bool(torch.allclose(self._parts[0].forward_and_log_det(noise, context)[0], noise, atol=1e-5))

    def constrain(self, latent: Tensor, transforms: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        r"""Value and :math:`\log|\det|` of every site, by name; the latter of the batch shape of the site.

        Args:
            latent: Vectors ``(*, d)``.
            transforms: From unconstrained values to the support, by site.
        """
        result = {}
        for layout in self.layouts:
            unconstrained = layout.unpack(latent)
            transform = transforms[layout.name]
            value = transform(unconstrained)
            log_det = transform.log_abs_det_jacobian(unconstrained, value)
            result[layout.name] = value, sum_rightmost(log_det, log_det.dim() - value.dim() + layout.event_dim)
        return result


def _affine(dim: int, context_dim: int) -> FlowTransform:
    """An affine map, linear in the context."""
    if dim <= _FULL_UP_TO[context_dim > 0]:
        return AffineTril(dim, context_dim, hidden_dims=())
    return Elementwise(dim, Affine(log_scale_bound=10.0), context_dim, hidden_dims=())
