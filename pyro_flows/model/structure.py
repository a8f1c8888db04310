"""What a Pyro model holds: its latent sites, their shapes and supports, its observed sites and plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor, nn
from torch.distributions import constraints

from .dtypes import dtype_hint
from .sites import (
    InitToSupport,
    Site,
    is_deterministic,
    is_enumerated,
    is_factor,
    is_subsample,
    site_support,
    site_transform,
)


@dataclass(frozen=True)
class LatentSite:
    """A continuous latent site and its place in the flat vector of unconstrained latents.

    Args:
        name: Name of the site.
        support: Where its values live.
        transform: Bijection from unconstrained values to the support.
        shape: Shape of a value.
        batch_dim: Number of its batch dimensions.
        event_dim: Number of its event dimensions.
        unconstrained_shape: Shape of an unconstrained value.
        start: Where it begins in the flat vector.
        stop: Where it ends.
        plates: Names of the plates that it is in, outermost first.
        subsampled: Whether one of them is subsampled.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Dirichlet(torch.ones(3)))
        >>> read_model(model).sites[0].unconstrained_shape
        torch.Size([2])
    """

    name: str
    support: constraints.Constraint
    transform: Any
    shape: torch.Size
    batch_dim: int
    event_dim: int
    unconstrained_shape: torch.Size
    start: int
    stop: int
    plates: tuple[str, ...]
    subsampled: bool


@dataclass(frozen=True)
class ModelStructure:
    """What :func:`read_model` found.

    Args:
        sites: Continuous latent sites, in the order of the model.
        dim: Size D of the flat vector of unconstrained latents.
        dtype: Type of the latents.
        device: Device of the latents.
        initial: A value per latent site, from the initialisation strategy.
        observed: Observed values, by site.
        enumerated: Names of discrete sites that are summed over.
        deterministic: Names of deterministic sites.
        param_names: Names of learnable parameters of the model.
        named_dims: Names of the dimensions of every site's value, from its plates.
        max_plate_nesting: Number of batch dimensions that plates use.
        subsampled: Names of subsampled plates.
        imputed: Names of the latent sites that ``obs_mask=`` makes.
        stand_ins: A valid datum for each observed site that has NaN at masked entries.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> read_model(model).dim
        1
    """

    sites: tuple[LatentSite, ...]
    dim: int
    dtype: torch.dtype
    device: torch.device
    initial: Mapping[str, Tensor]
    observed: Mapping[str, Tensor]
    enumerated: tuple[str, ...]
    deterministic: tuple[str, ...]
    param_names: tuple[str, ...]
    named_dims: Mapping[str, list[str]]
    max_plate_nesting: int
    subsampled: tuple[str, ...]
    imputed: frozenset[str]
    stand_ins: Mapping[str, Tensor]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Learnable parameters of the model that are to be trained, by name."""
        store = pyro.get_param_store()
        return {name: store._params[name] for name in self.param_names if store._params[name].requires_grad}

    @property
    def local_sites(self) -> tuple[LatentSite, ...]:
        """The latent sites inside a subsampled plate."""
        return tuple(site for site in self.sites if site.subsampled)

    def with_charts(self, transforms: Mapping[str, Any]) -> ModelStructure:
        """The same, with other transforms at sites on circles and spheres, which start at their centres.

        Args:
            transforms: A transform by name, for each such site.

        Example:
            >>> def model():
            ...     pyro.sample("x", dist.VonMises(3.0, 1.0))
            >>> from pyro_flows.model.circle import CircleTransform
            >>> read_model(model).with_charts({"x": CircleTransform(torch.tensor(3.0))}).initial["x"].round(decimals=3)
            tensor(3.)
        """
        sites = tuple(replace(site, transform=transforms.get(site.name, site.transform)) for site in self.sites)
        zeros = {site.name: self.initial[site.name].new_zeros(site.unconstrained_shape) for site in sites}
        centres = {name: transform(zeros[name]) for name, transform in transforms.items()}
        return replace(self, sites=sites, initial={**self.initial, **centres})

    def check_same(self, other: ModelStructure) -> None:
        """Refuse another reading of the model whose latent sites are not these.

        Args:
            other: What :func:`read_model` found at another call.

        Raises:
            ValueError: If a latent site is missing, new or of another shape; the message names it.

        Example:
            >>> def model(n):
            ...     pyro.sample("x", dist.Normal(torch.zeros(n), 1.0).to_event(1))
            >>> read_model(model, (2,)).check_same(read_model(model, (3,)))  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            ValueError: latent site 'x' had shape (2,) and has (3,) in this call; the model must have the same latent ...
        """
        known = {site.name: tuple(site.shape) for site in self.sites}
        found = {site.name: tuple(site.shape) for site in other.sites}
        for name in [*known, *found]:
            if known.get(name) == found.get(name):
                continue
            if name not in found:
                change = "is not there in this call"
            elif name not in known:
                change = "is new in this call"
            else:
                change = f"had shape {known[name]} and has {found[name]} in this call"
            raise ValueError(f"latent site {name!r} {change}; the model must have the same latent sites in every call")


class _LastSite(poutine.messenger.Messenger):  # type: ignore[misc]
    """Remembers which sample site a model reached last."""

    name: str | None = None

    def _pyro_sample(self, msg: Site) -> None:
        self.name = msg["name"]


def read_model(
    model: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    init_loc_fn: Callable[[Any], Tensor] = init_to_median,
    *,
    allow_local: bool = False,
) -> ModelStructure:
    """Run a model once and say what it holds. The global random generators are left as they were.

    Args:
        model: A Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        init_loc_fn: Initialisation strategy, which gives the values that the model is run with.
        allow_local: Whether latents local to a subsampled plate are all right.

    Raises:
        ValueError: If the model raises, has no continuous latent, a discrete one that is not enumerated, a latent
            local to a subsampled plate, latents of different dtypes, or an observation that is NaN; the message names
            the site.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.HalfNormal(torch.ones(3)).to_event(1))
        >>> read_model(model).dim
        3
    """
    last = _LastSite()
    initialised = InitMessenger(InitToSupport(init_loc_fn))(model)
    with torch.random.fork_rng(), torch.no_grad(), poutine.block(), last:
        torch.manual_seed(0)
        try:
            trace = poutine.trace(initialised).get_trace(*args, **dict(kwargs or {}))
        except Exception as error:
            where = "before its first sample site" if last.name is None else f"at or after sample site {last.name!r}"
            hint = dtype_hint(error, args, kwargs or {})
            raise ValueError(f"the model raised {type(error).__name__} {where}: {error}{hint}") from error
    return _structure(trace, allow_local)


def _structure(trace: poutine.Trace, allow_local: bool) -> ModelStructure:
    sample_sites = {name: s for name, s in trace.nodes.items() if s["type"] == "sample" and not is_subsample(s)}
    check_observed(sample_sites)
    enumerated = tuple(name for name, s in sample_sites.items() if is_enumerated(s))
    latent = [(name, s) for name, s in sample_sites.items() if not s["is_observed"] and name not in enumerated]
    check_latents(latent, "a flow", allow_local=allow_local)
    sites, start = [], 0
    for name, s in latent:
        transform = site_transform(s["fn"])
        shape = transform.inv(s["value"]).shape
        stop = start + shape.numel()
        sites.append(
            LatentSite(
                name=name,
                support=site_support(s["fn"]),
                transform=transform,
                shape=s["value"].shape,
                batch_dim=len(s["fn"].batch_shape),
                event_dim=s["fn"].event_dim,
                unconstrained_shape=shape,
                start=start,
                stop=stop,
                plates=tuple(frame.name for frame in s["cond_indep_stack"]),
                subsampled=any(_is_subsampled(frame) for frame in s["cond_indep_stack"]),
            )
        )
        start = stop
    dtypes = {name: s["value"].dtype for name, s in latent}
    if len(set(dtypes.values())) > 1:
        raise ValueError(f"latent sites have different dtypes ({dtypes}); give all priors one dtype")
    frames = [frame for s in sample_sites.values() for frame in s["cond_indep_stack"] if frame.vectorized]
    first = latent[0][1]["value"]
    return ModelStructure(
        sites=tuple(sites),
        dim=start,
        dtype=first.dtype,
        device=first.device,
        initial={name: s["value"] for name, s in latent},
        observed={
            name: s["value"]
            for name, s in sample_sites.items()
            if s["is_observed"] and not is_deterministic(s) and not is_factor(s)
        },
        enumerated=enumerated,
        deterministic=tuple(name for name, s in sample_sites.items() if is_deterministic(s)),
        param_names=tuple(name for name, s in trace.nodes.items() if s["type"] == "param"),
        named_dims={name: _dim_names(name, s) for name, s in sample_sites.items() if not is_factor(s)},
        max_plate_nesting=max((-frame.dim for frame in frames), default=0),
        subsampled=tuple(sorted({frame.name for frame in frames if _is_subsampled(frame)})),
        imputed=frozenset(name for name, _ in latent if _is_imputed(name, sample_sites)),
        stand_ins=_stand_ins(sample_sites),
    )


def _is_subsampled(frame: Any) -> bool:
    return frame.full_size is not None and frame.full_size != frame.size


def _is_imputed(name: str, sites: Mapping[str, Site]) -> bool:
    """Whether a latent site is the half that ``pyro.sample(…, obs_mask=)`` makes for missing entries."""
    stem, _, suffix = name.rpartition("_")
    other = sites.get(f"{stem}_observed")
    return suffix == "unobserved" and other is not None and other["is_observed"] and sites[name]["mask"] is not None


def _stand_ins(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """A valid datum for every observed site with NaN entries, which are masked if the model passed the checks."""
    found = {}
    for name, site in sites.items():
        value = site["value"]
        if not site["is_observed"] or is_deterministic(site) or not isinstance(value, Tensor):
            continue
        if bool(torch.isnan(value).any()):
            rows = value.reshape((-1,) + value.shape[value.dim() - site["fn"].event_dim :])
            valid = ~torch.isnan(rows).reshape(len(rows), -1).any(-1)
            found[name] = rows[valid][0] if bool(valid.any()) else torch.zeros_like(rows[0])
    return found


def _dim_names(name: str, site: Site) -> list[str]:
    """Names for the dimensions of a value: plates where there are some, numbered otherwise."""
    # A deterministic site declares all its dimensions as event, yet inside a plate its last ones are the plate's.
    event_dim = 0 if is_deterministic(site) else site["fn"].event_dim
    shape = site["value"].shape
    plates = {frame.dim - event_dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    names = []
    for i, size in enumerate(shape):
        frame = plates.get(i - len(shape))
        names.append(frame.name if frame is not None and frame.size == size else f"{name}_dim_{i}")
    return names


def check_observed(sites: Mapping[str, Site]) -> None:
    """Refuse observations that are NaN and not masked.

    Args:
        sites: Sample sites of a trace, by name.

    Raises:
        ValueError: If there is one; the message names the site and counts.

    Example:
        >>> check_observed({})
    """
    for name, site in sites.items():
        if not site["is_observed"] or is_deterministic(site) or not isinstance(site["value"], Tensor):
            continue
        bad = torch.isnan(site["value"])
        if site["fn"].event_dim:
            bad = bad.flatten(bad.dim() - site["fn"].event_dim).any(-1)
        mask = site["mask"]
        if mask is not None:
            bad = bad & torch.as_tensor(mask, device=bad.device)
        if bool(bad.any()):
            raise ValueError(
                f"observed site {name!r} has {int(bad.sum())} NaN among {bad.numel()} values; drop them, or mask them "
                f"with pyro.poutine.mask or obs_mask="
            )


def check_latents(sites: Sequence[tuple[str, Site]], guide: str, *, allow_local: bool = False) -> None:
    """Refuse sites that one flow over all latents cannot serve.

    Args:
        sites: Names and sites of the latents.
        guide: Name of the guide, for the message.
        allow_local: Whether latents local to a subsampled plate are all right.

    Raises:
        ValueError: If there is none, one is discrete, or one is local to a subsampled plate.

    Example:
        >>> check_latents([], "AutoFlow")
        Traceback (most recent call last):
        ...
        ValueError: the model has no continuous latent sites, so AutoFlow has nothing to approximate; use an empty guide
    """
    if not sites:
        raise ValueError(f"the model has no continuous latent sites, so {guide} has nothing to approximate; use an empty guide")
    for name, site in sites:
        how = (site.get("infer") or {}).get("enumerate")
        if how not in (None, False, "parallel") and site_support(site["fn"]).is_discrete:
            raise ValueError(f"latent site {name!r} is marked infer={{'enumerate': {how!r}}}; only 'parallel' is supported")
        if site_support(site["fn"]).is_discrete:
            raise ValueError(
                f"latent site {name!r} is discrete. If it is data, its value was not given: check the "
                f"arguments of the model. Else mark it infer={{'enumerate': 'parallel'}} and use TraceEnum_ELBO, "
                f"or hide it with pyro.poutine.block and give it a guide of its own"
            )
        for frame in site["cond_indep_stack"]:
            if not allow_local and _is_subsampled(frame):
                raise ValueError(
                    f"latent site {name!r} is local to plate {frame.name!r}, which is subsampled ({frame.size} of "
                    f"{frame.full_size}); {guide} over all latents would mix up its elements: use AutoPlateFlow(model, "
                    f"context={{{frame.name!r}: …}}), or do not subsample that plate"
                )
