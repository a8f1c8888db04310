"""What a Pyro model holds: its latent sites, their shapes and supports, its observed sites and plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor

from .sites import InitToSupport, Site, is_deterministic, is_enumerated, is_subsample, site_support, site_transform


@dataclass(frozen=True)
class LatentSite:
    """A continuous latent site and its place in the flat vector of unconstrained latents.

    Args:
        name: Name of the site.
        transform: Bijection from unconstrained values to the support.
        shape: Shape of a value.
        batch_dim: Number of its batch dimensions.
        unconstrained_shape: Shape of an unconstrained value.
        start: Where it begins in the flat vector.
        stop: Where it ends.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Dirichlet(torch.ones(3)))
        >>> read_model(model).sites[0].unconstrained_shape
        torch.Size([2])
    """

    name: str
    transform: Any
    shape: torch.Size
    batch_dim: int
    unconstrained_shape: torch.Size
    start: int
    stop: int


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
) -> ModelStructure:
    """Run a model once and say what it holds. The global random generators are left as they were.

    Args:
        model: A Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        init_loc_fn: Initialisation strategy, which gives the values that the model is run with.

    Raises:
        ValueError: If the model raises, has no continuous latent, a discrete one that is not enumerated, a latent local to a
            subsampled plate, latents of different dtypes, or an observation that is NaN; the message names the site.

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
            raise ValueError(f"the model raised {type(error).__name__} {where}: {error}") from error
    return _structure(trace)


def _structure(trace: poutine.Trace) -> ModelStructure:
    sample_sites = {name: s for name, s in trace.nodes.items() if s["type"] == "sample" and not is_subsample(s)}
    check_observed(sample_sites)
    enumerated = tuple(name for name, s in sample_sites.items() if is_enumerated(s))
    latent = [(name, s) for name, s in sample_sites.items() if not s["is_observed"] and name not in enumerated]
    check_latents(latent, "a flow")
    sites, start = [], 0
    for name, s in latent:
        transform = site_transform(s["fn"])
        shape = transform.inv(s["value"]).shape
        stop = start + shape.numel()
        sites.append(LatentSite(name, transform, s["value"].shape, len(s["fn"].batch_shape), shape, start, stop))
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
            name: s["value"] for name, s in sample_sites.items() if s["is_observed"] and not is_deterministic(s) and not is_factor(s)
        },
        enumerated=enumerated,
        deterministic=tuple(name for name, s in sample_sites.items() if is_deterministic(s)),
        param_names=tuple(name for name, s in trace.nodes.items() if s["type"] == "param"),
        named_dims={name: _dim_names(name, s) for name, s in sample_sites.items() if not is_factor(s)},
        max_plate_nesting=max((-frame.dim for frame in frames), default=0),
        subsampled=tuple(sorted({f.name for f in frames if f.full_size is not None and f.full_size != f.size})),
    )


def is_factor(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``.

    Example:
        >>> is_factor({"fn": dist.Unit(torch.tensor(1.0))})
        True
    """
    return type(site["fn"]).__name__ == "Unit"


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
                f"observed site {name!r} has {int(bad.sum())} NaN among {bad.numel()} values; drop them, or mask them with "
                f"pyro.poutine.mask or obs_mask="
            )


def check_latents(sites: Sequence[tuple[str, Site]], guide: str) -> None:
    """Refuse sites that one flow over all latents cannot serve.

    Args:
        sites: Names and sites of the latents.
        guide: Name of the guide, for the message.

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
        if site_support(site["fn"]).is_discrete:
            raise ValueError(
                f"latent site {name!r} is discrete; mark it infer={{'enumerate': 'parallel'}} and use TraceEnum_ELBO, "
                f"or hide it with pyro.poutine.block and give it a guide of its own"
            )
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"latent site {name!r} is local to plate {frame.name!r}, which is subsampled ({frame.size} of "
                    f"{frame.full_size}); {guide} over all latents would mix up its elements: use AutoPlateFlow, or do not "
                    f"subsample that plate"
                )
