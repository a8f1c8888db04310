"""AutoPlateFlow: a flow over the globals, and for each plate one conditional flow shared by its elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor, nn

from pyro_flows.flows.registry import FlowFactory, get
from pyro_flows.model.dependence import prior_parents
from pyro_flows.model.plates import PlateCall, PlateReader, read_plates
from pyro_flows.model.sites import is_subsample, site_support

from .automatic_guide import AutomaticGuide, fork_generators
from .plate_block import PlateBlock, SiteLayout
from .plate_context import EmbeddingRows, EncoderRows
from .plate_effects import PlateEffects, no_prior
from .plate_groups import (
    ContextKey,
    Groups,
    as_key,
    as_written,
    check_charts,
    check_dependence,
    check_indices,
    check_loops,
    check_masks,
    checked_context,
    group_by_plates,
    key_of,
    named_plates,
)
from .site_delta import SiteDelta

#: Draws times latents that are made at once; more do not fit a cache on the way.
_LATENTS_AT_ONCE = 100_000
#: Values of the latents at which it is seen which priors depend on them.
_MOVED = 7


class AutoPlateFlow(AutomaticGuide):
    r"""Automatic guide for models with plates: :math:`q(g)\prod_i q(z_i \mid g, c_i)`.

    One flow over the latents outside of the named plates, :math:`g`. For the latents :math:`z_i` of each element of a named plate
    one conditional flow that the elements share; it is told the latents on which they hang (:math:`g`, and those of enclosing
    plates) and a row :math:`c_i` for the element: what an encoder makes of the model's arguments (amortised), or a learned
    embedding (not amortised). So plates may be subsampled, by ``subsample_size=`` or by ``subsample=``, in minibatches of changing
    size; the indices are those of the call, and the guide scales as the model does. With an encoder time and memory of a step do
    not depend on the size of the plate, and new elements are guided without training again.

    Latents in several named plates (nested or crossed) need a context of their own: under the name of their innermost plate, or
    under the tuple of the names where that plate has latents of its own. Plates that are not named must not be subsampled; latents
    in them count as dimensions of the element or, outside of the named plates, of the globals.

    The rows of an encoder for a tuple of plates are in the order of the tuple; for an innermost plate outermost first.

    Latents of a location-scale family, or log-normal, whose prior has a scale that is a latent itself are effects of a hierarchy:
    they make a funnel with it. The guide reads their prior from the model at each draw of the latents on which they hang, for which
    the model runs a second time up to them, and standardises them by it and by what it learns of the data (``PartialCentring``); of
    normal effects with normal data it so has the exact posterior, in the neck of the funnel as in its mouth.

    Elements of different blocks are independent given the blocks on which they are conditional: of two crossed plates ``a`` and
    ``b``, the latents of ``a`` know nothing of those of ``b``. Leave the smaller one out of ``context``, where its posterior
    matters to the other.

    Args:
        model: A Pyro model.
        context: For a plate, or a tuple of plates, an encoder, called with the model's arguments, that returns a row ``(C,)`` for
            every element, of the minibatch or of the whole plate; or a positive integer, the width of a learned row. The first d
            numbers of a learned row move the location of the d latents of its element, the next d their log-scale, the others
            shape the flow.
        flow: Name of a registered flow or callable ``(input_dim, context_dim) -> FlowTransform``, for all blocks, or a dictionary
            with one for each of some plates, ``"globals"`` for that over the globals; where nothing is said, ``nsf_coupling`` of
            two layers, of four from three latents on.
        init_loc_fn: Per-site initialisation, as for Pyro's guides.
        init_scale: Standard deviation of the unconstrained latents at the start. Must be positive.
        flow_options: Keyword arguments of a registered flow, such as ``{"num_layers": 8}``.
        rows: For an encoder, ``"minibatch"`` or ``"plate"``: what its rows stand for. Needed only where the indices of a call are
            the whole plate in another order before any smaller minibatch was seen.
        sparse: Whether embedding tables have sparse gradients, for ``torch.optim.SparseAdam``: a step then costs the same whatever
            the size of the plate.
        create_plates: As for Pyro's guides: returns the plates of the call, for subsampling.

    Raises:
        ValueError: If an argument is not as described; at :meth:`setup`, if the model has no continuous latent, a discrete one
            that is not enumerated, latents that are local to a subsampled plate without context, or a latent whose prior depends
            on a latent of a plate that does not enclose it; when called, if an encoder returns rows that do not fit or are not
            finite, or a plate with an embedding has changed its size.

    References:
        Kingma, Welling (2014), *Auto-encoding variational Bayes*, https://arxiv.org/abs/1312.6114;
        Agrawal, Domke (2021), *Amortized variational inference for simple hierarchical models*, https://arxiv.org/abs/2111.03144;
        Papaspiliopoulos, Roberts, Sköld (2007), *A general framework for the parametrization of hierarchical models*,
        https://arxiv.org/abs/0708.3797

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y), subsample_size=5) as i:
        ...         z = pyro.sample("z", dist.Normal(mean, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])
        >>> guide = AutoPlateFlow(model, {"data": 4}).setup(torch.zeros(20))
        >>> guide(torch.zeros(20))["z"].shape
        torch.Size([5])
    """

    takes_local_latents = True

    def __init__(
        self,
        model: Callable[..., Any],
        context: Mapping[ContextKey, Callable[..., Tensor] | int],
        flow: str | FlowFactory | Mapping[ContextKey, str | FlowFactory] | None = None,
        *,
        init_loc_fn: Callable[[Any], Tensor] = init_to_median,
        init_scale: float = 0.1,
        flow_options: Mapping[str, Any] | None = None,
        rows: Mapping[ContextKey, str] | None = None,
        sparse: bool = False,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        flows = dict(flow) if isinstance(flow, Mapping) else {}
        for choice in flows.values():
            if isinstance(choice, str):
                get(choice)
        default = None if isinstance(flow, Mapping) else flow
        if isinstance(default, str):
            get(default)
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        self._flow = default
        self._flow_options = dict(flow_options or {})
        self._context = checked_context(context)
        self._flows = {as_key(name): choice for name, choice in flows.items()}
        self._rows = {as_key(name): value for name, value in (rows or {}).items()}
        self._sparse = bool(sparse)
        apart = [name for name in self._flows if name not in self._context and name != ("globals",)]
        if apart:
            raise ValueError(
                f"flow names {[as_written(key) for key in apart]}, for which there is no context; the names are "
                f"{[as_written(key) for key in self._context]} and 'globals'"
            )
        for name, value in self._rows.items():
            if value not in ("minibatch", "plate") or name not in self._context:
                raise ValueError(
                    f'rows must hold "minibatch" or "plate" by name of a plate with an encoder, got {value!r} for '
                    f"{'/'.join(name)!r}"
                )
        # Here, so that an optimiser made before setup finds what a user brings.
        self.encoders = nn.ModuleList(value for value in self._context.values() if isinstance(value, nn.Module))

    # Setting up

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            self._read_sites(args, kwargs)
            sites = dict(self.prototype_trace.iter_stochastic_nodes())
            check_loops(sites)
            check_charts(self._cut, self._cond_indep_stacks, self._context)
            self._start_values = {name: site["value"].detach() for name, site in sites.items()}
            self._starts = self._start()
            groups = group_by_plates(self._cond_indep_stacks, self._context)
            parents = prior_parents(self._raw_model[0], args, kwargs, self._start_values)
            check_dependence(groups, parents)
            self._check_repeated(args, kwargs)
            call = self.look(*args, **kwargs)
            self._find_effects(groups, parents, call)
            self._build(groups, call, args, kwargs)

    def _find_effects(self, groups: Groups, parents: Mapping[str, Sequence[str]], call: PlateReader) -> None:
        event_dims = {name: self.prototype_trace.nodes[name]["fn"].event_dim for name in self._start_values}
        depth = max(
            [value.dim() - event_dims[name] for name, value in self._start_values.items()]
            + [-frame.dim for frame in self._prototype_frames.values()]
        )
        self._effects = PlateEffects(self._start_values, event_dims, depth)
        with fork_generators():
            torch.manual_seed(0)
            moved = [
                {name: self._transforms[name](value + torch.randn_like(value)) for name, value in self._starts.items()}
                for _ in range(_MOVED)
            ]
            self._effects.find(self._raw_model[0], groups, parents, moved, call)

    def _check_repeated(self, args: Any, kwargs: Any) -> None:
        """Run the model again, with other random numbers and with other latents: what the guide reads of it must not change."""
        moved = {name: self._transforms[name](value + 2 + torch.randn_like(value)) for name, value in self._starts.items()}
        calls = []
        with fork_generators(), poutine.block():
            for seed, values in ((0, None), (1, None), (0, moved)):
                torch.manual_seed(seed)
                calls.append(self._read_call(args, kwargs, values))
        if self.create_plates is None:  # else all indices are those of these plates
            check_indices(calls[0], calls[1])
        check_masks(calls[0], calls[2])

    def _build(self, groups: Groups, call: PlateReader, args: Any, kwargs: Any) -> None:
        blocks: list[PlateBlock] = []
        sources: dict[tuple[str, ...], nn.Module] = {}
        self._block_source: list[int | None] = []
        self._row_order: dict[tuple[str, ...], tuple[str, ...]] = {}
        for plates, names in groups.items():
            dims = {plate: call.calls[plate].dim for plate in plates}
            layouts, loc = self._layouts(names, dims)
            parents = [i for i, block in enumerate(blocks) if set(block.plates) <= set(plates)]
            width, parent_width = 0, sum(blocks[i].dim for i in parents)
            direct = None
            self._block_source.append(None)
            if plates:
                key = key_of(plates, groups, self._context)
                order = key if len(key) == len(plates) else plates
                sources[key] = self._make_source(key, [call.calls[plate] for plate in order], loc)
                with torch.enable_grad():  # an encoder whose parameters would not be trained is noticed
                    rows = sources[key]([call.calls[plate] for plate in order], args, kwargs)
                self._row_order[plates] = order
                width = rows.shape[-1]
                if rows.dtype != loc.dtype:
                    raise ValueError(
                        f"context[{'/'.join(key)!r}] returned {rows.dtype} and the latents are {loc.dtype}; give both one dtype"
                    )
                direct = (parent_width, width) if isinstance(sources[key], EmbeddingRows) else None
                self._block_source[-1] = list(sources).index(key)
            flow = self._flows.get(key_of(plates, groups, self._context) if plates else ("globals",), self._flow)
            if flow is None:
                flow, options = "nsf_coupling", {"num_layers": 2 if len(loc) <= 2 else 4, **self._flow_options}
            else:
                options = self._flow_options
            hierarchical = any(name in self._effects.names for name in names)
            block = PlateBlock(
                dims, layouts, loc, self._init_scale, flow, parents, parent_width + width, direct, options, hierarchical
            )
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.sources = nn.ModuleList(sources.values())
        unused = [key for key in self._context if key not in sources]
        if unused:
            raise ValueError(f"context names {unused}, and no latent site is in just these plates; the groups are {list(groups)}")

    def _make_source(self, key: tuple[str, ...], plates: Sequence[PlateCall], like: Tensor) -> nn.Module:
        value = self._context[key]
        if isinstance(value, int):
            return EmbeddingRows(plates, value, like, sparse=self._sparse)
        return EncoderRows(value, plates, self._rows.get(key))

    def _layouts(self, names: Sequence[str], dims: Mapping[str, int]) -> tuple[list[SiteLayout], Tensor]:
        layouts, locs, start = [], [], 0
        for name in names:
            site = self.prototype_trace.nodes[name]
            unconstrained = self._starts[name]
            event_dim = site["fn"].event_dim
            batch = site["value"].shape[: site["value"].dim() - event_dim]
            event = unconstrained.shape[len(batch) :]
            kept = tuple(d for d in range(-len(batch), 0) if d not in dims.values() and batch[d] != 1)
            size = torch.Size([batch[d] for d in kept]).numel() * event.numel()
            layout = SiteLayout(name, event_dim, event, batch, kept, start, start + size)
            layouts.append(layout)
            locs.append(layout.pack(unconstrained, len(batch)).reshape(-1, size).mean(0))
            start += size
        return layouts, torch.cat(locs)

    @property
    def _parts(self) -> list[PlateBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    # One call

    def set_model(self, model: Callable[..., Any]) -> None:
        """Give the guide its model back, which a pickle does not hold.

        Args:
            model: The model that it was made for.

        Raises:
            ValueError: If it is not callable.
        """
        if not callable(model):
            raise ValueError(f"model must be callable, got {type(model).__name__}")
        self.__dict__.update(_model=(InitMessenger(self.init_loc_fn)(model),), _raw_model=(model,))

    def _given_model(self) -> Callable[..., Any]:
        if self._raw_model[0] is None:
            raise ValueError("this guide was unpickled without its model; give it back by guide.set_model(model)")
        return self._raw_model[0]  # type: ignore[no-any-return]

    def _read_call(self, args: Any, kwargs: Any, values: Mapping[str, Tensor] | None = None) -> PlateReader:
        raw = self._given_model()
        local = named_plates(self._context)
        awaited = frozenset(
            name
            for name, frames in self._cond_indep_stacks.items()
            if any(frame.name in local for frame in frames) or _has_bounds(site_support(self.prototype_trace.nodes[name]["fn"]))
        )
        given = {} if self.create_plates is None else self._given_plates(args, kwargs)
        model = raw if not given else _Indices(given)(raw)
        call = read_plates(
            model, args, kwargs, plates=frozenset(self._prototype_frames), sites=values or self._start_values, awaited=awaited
        )
        missing = sorted(awaited - set(call.shapes))
        if missing:
            raise ValueError(
                f"latent sites {missing} were there at setup and are not in this call; the guide needs the same in every call"
            )
        for name in call.shapes:
            self._check_shape(name, call)
        call.transforms = {**self._transforms, **call.transforms}
        return call

    def _given_plates(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        plates = self.create_plates(*args, **kwargs)  # type: ignore[misc]
        plates = [plates] if isinstance(plates, pyro.plate) else list(plates)
        return {plate.name: plate._indices for plate in plates}

    def _check_shape(self, name: str, call: PlateReader) -> None:
        at_setup, now = tuple(self._start_values[name].shape), tuple(call.shapes[name])
        site = self.prototype_trace.nodes[name]
        event_dim = site["fn"].event_dim
        sizes = {f.dim - event_dim: call.calls[f.name].count for f in self._cond_indep_stacks[name] if f.name in call.calls}
        local = named_plates(self._context)
        free = {f.dim - event_dim for f in self._cond_indep_stacks[name] if f.name in local}
        same = len(now) == len(at_setup) and all(
            a == b or (i - len(now) in free and b == sizes.get(i - len(now)))
            for i, (a, b) in enumerate(zip(at_setup, now, strict=True))
        )
        if not same:
            raise ValueError(
                f"latent site {name!r} had shape {at_setup} at setup and has {now} in this call; only the sizes of the plates in "
                f"context may change"
            )

    def _masks(self, block: PlateBlock, call: PlateReader) -> Tensor | bool | None:
        """The mask of the elements of a block, which must be that of all its sites."""
        masks = [call.masks.get(layout.name) for layout in block.layouts]
        first = masks[0]
        same = all(
            mask is first or (isinstance(mask, Tensor) and isinstance(first, Tensor) and torch.equal(mask, first))
            for mask in masks[1:]
        )
        kept = {dim for layout in block.layouts for dim in layout.kept}
        if isinstance(first, Tensor) and same:
            same = all(first.dim() < -dim or first.shape[dim] == 1 for dim in kept)
        if not same:
            raise ValueError(
                f"latent sites {[layout.name for layout in block.layouts]} of {block.label} are masked in different ways; mask "
                f"whole elements of the plate, or give the masked sites a plate of their own"
            )
        return first

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents of the elements of this call, with the arguments of the model.

        Returns:
            A value per latent site.

        Raises:
            ValueError: If shapes have changed otherwise than in the plates of the context, or an encoder does not fit.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        call = self._read_call(args, kwargs)
        plates = {name: plate.enter() for name, plate in call.calls.items()}
        for name, frame in self._prototype_frames.items():
            if name not in plates:  # a plate of globals after the last local latent
                plates[name] = pyro.plate(name, frame.full_size or frame.size, dim=frame.dim)
        result: dict[str, Tensor] = {}
        seen: list[Tensor] = []
        values: dict[str, Tensor] = {}
        for i, block in enumerate(self._parts):
            context = self._context_of(i, seen, values, call, checked=False)  # the model itself is run at these draws
            mask = self._masks(block, call) if block.plates else None
            with ExitStack() as stack:
                for name in block.plates:
                    stack.enter_context(plates[name])
                if mask is not None:
                    stack.enter_context(poutine.mask(mask=mask))
                site = f"_{self._pyro_name}_{'_'.join(block.plates) or 'globals'}"
                latent = pyro.sample(site, block.distribution(context), infer={"is_auxiliary": True})
            seen.append(block.whitened(latent, context))
            for name, (value, log_det) in block.constrain(latent, call.transforms).items():
                values[name] = value
                event_dim = self.prototype_trace.nodes[name]["fn"].event_dim
                log_density: Tensor | float = 0.0 if poutine.get_mask() is False else -log_det
                with ExitStack() as stack:
                    for frame in self._cond_indep_stacks[name]:
                        stack.enter_context(plates[frame.name])
                    if mask is not None:
                        stack.enter_context(poutine.mask(mask=mask))
                    result[name] = pyro.sample(name, SiteDelta(value, log_density=log_density, event_dim=event_dim))
        return {name: result[name] for name in self._cond_indep_stacks}

    def _context_of(
        self, i: int, seen: Sequence[Tensor], values: Mapping[str, Tensor], call: PlateReader, *, checked: bool = True
    ) -> Tensor | None:
        """What block ``i`` is told: the latents of its parents, the rows of its elements at the dimensions of their plates, and the
        prior of its effects at the values of the latents before.
        """
        block = self._parts[i]
        parts = [seen[j] for j in block.parents]
        source = self._block_source[i]
        if source is not None:
            plates = [call.calls[name] for name in self._row_order[tuple(block.plates)]]
            rows = self.sources[source](plates, call.args, call.kwargs)
            by_dim = sorted(range(len(plates)), key=lambda axis: plates[axis].dim)
            rows = rows.permute(*by_dim, len(plates))
            shape = [1] * -min(block.plates.values())
            for plate in plates:
                shape[plate.dim] = plate.count
            parts.append(rows.reshape(*shape, rows.shape[-1]))
        if block.hierarchical:
            parts.extend(self._prior_of(block, values, call, checked))
        if not parts:
            return None
        batch = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
        return torch.cat([part.expand(*batch, -1) for part in parts], -1)

    def _values(self, block: PlateBlock, latent: Tensor, call: PlateReader) -> dict[str, Tensor]:
        """Values of the sites of a block, where a prior is to be read at them."""
        if not self._effects.names:
            return {}
        return {name: value for name, (value, _) in block.constrain(latent, call.transforms).items()}

    def _prior_of(self, block: PlateBlock, values: Mapping[str, Tensor], call: PlateReader, checked: bool) -> tuple[Tensor, Tensor]:
        """Location and log-precision ``(*, plates, d)`` of the prior of the latents of a block that are effects."""
        names = [layout.name for layout in block.layouts if layout.name in self._effects.names]
        priors = self._effects.priors(self._given_model(), names, values, call, checked=checked)
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for layout in block.layouts:
            if layout.name in priors:
                event = len(layout.unconstrained_event_shape)
                pair = [layout.pack(part.to(self.like), part.dim() - event) for part in priors[layout.name]]
            else:
                pair = list(no_prior(self.like.new_zeros(layout.stop - layout.start)))
            for into, part in zip(parts, pair, strict=True):
                into.append(part)
        batch = torch.broadcast_shapes(*[part.shape[:-1] for part in parts[0] + parts[1]])
        loc, log_precision = (torch.cat([part.expand(*batch, -1) for part in side], -1) for side in parts)
        return loc, log_precision

    # Draws and densities

    def recentre(self, *args: Any, **kwargs: Any) -> None:
        """Make the present location and scale of the latents the units of further training; the distribution stays as it is.

        Steps of an optimiser then move the latents by shares of their present standard deviations, whatever units the model has.
        To be called between a first training of :meth:`affine_parameters` and that of all, with a new optimiser, as ``fit`` does.

        Args:
            args: Arguments of a call of the model, whose elements stand for all.
            kwargs: Keyword arguments of it.
        """
        self.setup(*args, **kwargs)
        call = self.look(*args, **kwargs)
        with torch.no_grad():
            contexts: list[Tensor | None] = []
            seen: list[Tensor] = []
            values: dict[str, Tensor] = {}
            for i, block in enumerate(self._parts):
                context = self._context_of(i, seen, values, call)
                batch = () if context is None else context.shape[:-1]
                batch = torch.broadcast_shapes(batch, (64, *(1 for _ in range(self._depth))))
                contexts.append(context)
                latent = block.distribution(context).expand(batch).sample()
                seen.append(block.whitened(latent, context))
                values.update(self._values(block, latent, call))
            for block, context, source in zip(self._parts, contexts, self._block_source, strict=True):
                factors = block.recentre(context)
                rows = None if source is None else self.sources[source]
                if factors is not None and isinstance(rows, EmbeddingRows):
                    rows.table.weight[:, : len(factors)] *= factors

    def affine_parameters(self) -> list[nn.Parameter]:
        """Parameters of everything but the flows: affine maps, encoders, learned rows. With these alone the guide is normal."""
        of_flows = {id(p) for block in self._parts for p in block.flow_parameters()}
        return [p for p in self.parameters() if id(p) not in of_flows]

    def log_prob(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Log-density of the guide at given values of the elements of a call, in the constrained space of the model.

        The sum over the elements of the call, each counted once: not scaled to the size of the plates. Masked elements do not
        count.

        Args:
            values: A value ``(*, site shape)`` for every latent site; batch shapes broadcast.
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.

        Returns:
            Log-density, ``(*)``.

        Raises:
            ValueError: If a site is missing, unknown, of the wrong shape or dtype, or outside its support.
        """
        self.setup(*args, **kwargs)
        self._check_names(values)
        call = self.look(*args, **kwargs)
        unconstrained: dict[str, Tensor] = {}
        total = self.like.new_zeros(())
        for name, value in values.items():
            unconstrained[name], log_det = self._unconstrain_site(
                name, value, self.like, call.shapes[name], call.transforms[name], call.supports.get(name)
            )
            lead = log_det.dim() - len(call.shapes[name]) + self.prototype_trace.nodes[name]["fn"].event_dim
            mask = (
                call.masks.get(name)
                if any(frame.name in named_plates(self._context) for frame in self._cond_indep_stacks[name])
                else None
            )
            total = total - _unmasked(log_det, mask).reshape(*log_det.shape[:lead], -1).sum(-1)
        return total + self.score(unconstrained, call)

    def unconstrain(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Unconstrained latents of a call as vectors ``(*, D)``, of site values ``(*, site shape)``, site after site.

        Args:
            values: A value for every latent site; batch shapes broadcast.
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If a site is missing, unknown, of the wrong shape or dtype, or outside its support.
        """
        self.setup(*args, **kwargs)
        self._check_names(values)
        call = self.look(*args, **kwargs)
        parts = []
        for name in self._cond_indep_stacks:
            value, log_det = self._unconstrain_site(
                name, values[name], self.like, call.shapes[name], call.transforms[name], call.supports.get(name)
            )
            lead = log_det.dim() - len(call.shapes[name]) + self.prototype_trace.nodes[name]["fn"].event_dim
            parts.append(value.reshape(*value.shape[:lead], -1))
        batch = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
        return torch.cat([part.expand(*batch, -1) for part in parts], -1)

    def look(self, *args: Any, **kwargs: Any) -> PlateReader:
        """Read the plates of a call, with the rows of its elements yet to be made: what :meth:`draw` and :meth:`score` are told.

        Args:
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.

        Returns:
            The plates of the call, the masks and supports of its sites, and its arguments.

        Raises:
            ValueError: As :meth:`forward`.
        """
        with poutine.block():
            call = self._read_call(args, kwargs)
        for name, value in self._start_values.items():
            call.shapes.setdefault(name, value.shape)
        return call

    def draw(self, num_samples: int, call: PlateReader) -> tuple[dict[str, Tensor], Tensor]:
        """Unconstrained draws of all latents of a call, with gradient, and their log-density.

        Args:
            num_samples: Number S of draws.
            call: The call, from :meth:`look`.

        Returns:
            Unconstrained values ``(S, unconstrained shape)`` by site, and the log-density in these coordinates, ``(S)``, in which
            each element counts once, and masked ones do not. Many draws of many latents are made in parts, for their memory.
        """
        count = sum(self._unconstrained_shape(layout, call).numel() for block in self._parts for layout in block.layouts)
        most = max(1, _LATENTS_AT_ONCE // max(count, 1))
        parts = [self._draw_together(min(most, num_samples - start), call) for start in range(0, num_samples, most)]
        if len(parts) == 1:
            return parts[0]
        values, log_qs = zip(*parts, strict=True)
        return {name: torch.cat([value[name] for value in values]) for name in values[0]}, torch.cat(log_qs)

    def _draw_together(self, num_samples: int, call: PlateReader) -> tuple[dict[str, Tensor], Tensor]:
        result: dict[str, Tensor] = {}
        seen: list[Tensor] = []
        values: dict[str, Tensor] = {}
        total = self.like.new_zeros(()).expand(num_samples)
        for i, block in enumerate(self._parts):
            context = self._context_of(i, seen, values, call)
            batch = () if context is None else context.shape[:-1]
            batch = torch.broadcast_shapes(batch, (num_samples, *(1 for _ in range(self._depth))))
            latent, log_q = block.distribution(context).expand(batch).rsample_and_log_prob()
            mask = self._masks(block, call) if block.plates else None
            total = total + _unmasked(log_q, mask).reshape(num_samples, -1).sum(-1)
            seen.append(block.whitened(latent, context))
            values.update(self._values(block, latent, call))
            for layout in block.layouts:
                value = layout.unpack(latent)
                shape = self._unconstrained_shape(layout, call)
                result[layout.name] = value.reshape(num_samples, *shape)
        return {name: result[name] for name in self._cond_indep_stacks}, total

    def score(self, unconstrained: Mapping[str, Tensor], call: PlateReader) -> Tensor:
        """Log-density ``(*)`` of unconstrained values ``(*, unconstrained shape)`` by site, as that of :meth:`draw`.

        Args:
            unconstrained: A value for every latent site; batch shapes broadcast.
            call: The call, from :meth:`look`.
        """
        total = self.like.new_zeros(())
        seen: list[Tensor] = []
        values: dict[str, Tensor] = {}
        depth = self._depth
        for i, block in enumerate(self._parts):
            context = self._context_of(i, seen, values, call)
            parts = []
            for layout in block.layouts:
                value = unconstrained[layout.name]
                batch_dim = len(layout.batch_shape)
                lead = value.dim() - batch_dim - len(layout.unconstrained_event_shape)
                # Draws stand to the left of all plates, as in a particle plate.
                value = value.reshape(value.shape[:lead] + (1,) * (depth - batch_dim) + value.shape[lead:])
                parts.append(layout.pack(value, lead + depth))
            batch = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
            latent = torch.cat([part.expand(*batch, -1) for part in parts], -1)
            values.update(self._values(block, latent, call))
            log_q = block.distribution(context).log_prob(latent)
            log_q = _unmasked(log_q, self._masks(block, call) if block.plates else None)
            total = total + log_q.reshape(*log_q.shape[: log_q.dim() - depth], -1).sum(-1)
            seen.append(block.whitened(latent, context))
        return total

    def _unconstrained_shape(self, layout: SiteLayout, call: PlateReader) -> torch.Size:
        shape = call.shapes[layout.name]
        return torch.Size((*shape[: len(shape) - layout.event_dim], *layout.unconstrained_event_shape))

    @property
    def _depth(self) -> int:
        """Batch dimensions of the sites, to the left of which draws stand."""
        return self._effects.depth

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the latents."""
        return self._parts[0].like

    def sample(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws of all latents of the elements of one call.

        Args:
            num_samples: Number of draws.
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.

        Returns:
            Values ``(num_samples, site shape)`` per site.

        Raises:
            ValueError: If ``num_samples`` is not a positive integer, or as :meth:`forward`.
        """
        self._check_draws(num_samples)
        self.setup(*args, **kwargs)
        with torch.no_grad():
            call = self.look(*args, **kwargs)
            drawn, _ = self.draw(num_samples, call)
        return {name: call.transforms[name](value) for name, value in drawn.items()}

    def median(self, *args: Any, num_samples: int = 1_000, **kwargs: Any) -> dict[str, Tensor]:
        """Median of every latent site for the elements of a call, from draws.

        Args:
            args: Arguments of the model.
            num_samples: Number of draws.
            kwargs: Keyword arguments of the model.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, num_samples=num_samples, **kwargs).items()}

    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 1_000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of every latent site for the elements of a call, from draws; marginal ones, in unconstrained coordinates.

        Args:
            quantiles: Probabilities between 0 and 1, ``(Q,)``.
            args: Arguments of the model.
            num_samples: Number of draws.
            kwargs: Keyword arguments of the model.

        Returns:
            Values ``(Q, site shape)`` per site.

        Raises:
            ValueError: If a probability is outside [0, 1].
        """
        self._check_draws(num_samples)
        self.setup(*args, **kwargs)
        probs = self._probabilities(quantiles, self.like)
        with torch.no_grad():
            call = self.look(*args, **kwargs)
            drawn, _ = self.draw(num_samples, call)
            return {name: call.transforms[name](torch.quantile(value, probs, dim=0)) for name, value in drawn.items()}


class _Indices(poutine.messenger.Messenger):  # type: ignore[misc]
    """Gives plates the indices that ``create_plates`` made."""

    def __init__(self, indices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.indices = indices

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.indices and is_subsample(msg):
            msg["value"] = self.indices[msg["name"]]


def _has_bounds(support: Any) -> bool:
    """Whether a support has bounds that may be others in another call."""
    return any(
        isinstance(v, (Tensor, int, float)) and not isinstance(v, bool) for k, v in vars(support).items() if "bound" in k
    ) or any(_has_bounds(v) for v in vars(support).values() if isinstance(v, torch.distributions.constraints.Constraint))


def _unmasked(log_prob: Tensor, mask: Tensor | bool | None) -> Tensor:
    """Log-densities, zero at elements that are masked."""
    if mask is None:
        return log_prob
    return torch.where(torch.as_tensor(mask, device=log_prob.device), log_prob, torch.zeros_like(log_prob))
