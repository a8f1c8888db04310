"""Discrete latents summed out: the log-density of a model with enumerated sites at given continuous ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from .log_einsum import VmapLogRing
from .sites import Site, is_subsample


class _Shaped:
    """The shape of a value, which is all that enumeration asks of it."""

    def __init__(self, value: Tensor) -> None:
        self.shape = value.shape
        self.data = self

    def dim(self) -> int:
        return len(self.shape)


class _Enumerate(EnumMessenger):  # type: ignore[misc]
    """Pyro's enumeration without reading ``.data``, which vmap refuses; masked NaN are stood in for."""

    def __init__(self, first_available_dim: int, stand_ins: Mapping[str, Tensor]) -> None:
        super().__init__(first_available_dim)
        self.stand_ins = stand_ins

    def _pyro_sample(self, msg: Site) -> None:
        stand_in = self.stand_ins.get(msg["name"])
        if stand_in is not None and msg["is_observed"]:
            msg["value"] = torch.where(torch.isnan(msg["value"]), stand_in, msg["value"])
        super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Site) -> None:
        value = msg["value"]
        super()._pyro_post_sample({**msg, "value": value if value is None else _Shaped(value)})


def enumerated_trace(
    model: Callable[[], Any],
    values: Mapping[str, Tensor],
    max_plate_nesting: int,
    stand_ins: Mapping[str, Tensor] | None = None,
) -> poutine.Trace:
    """Trace of a model with values at its continuous latents, all values of its enumerated ones at once.

    Args:
        model: A Pyro model, called without arguments.
        values: A value per continuous latent site.
        max_plate_nesting: Number of batch dimensions that plates use.
        stand_ins: What to put in place of masked NaN, per observed site.

    Example:
        >>> def model():
        ...     pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        >>> enumerated_trace(model, {}, 0).nodes["k"]["value"]
        tensor([0., 1.])
    """
    conditioned = poutine.condition(model, data=dict(values))
    with _Enumerate(-1 - max_plate_nesting, stand_ins or {}):
        trace = poutine.trace(conditioned).get_trace()
    trace.compute_log_prob(lambda name, site: not is_subsample(site))
    return trace


def summed_log_prob(trace: poutine.Trace) -> Tensor | float:
    r"""Log-density of a trace with its enumerated sites summed out, :math:`\log \sum_k p(x, z, k)`, ``()``.

    A scale, such as that of a subsampled plate, multiplies the logarithm of the sum, as in ``TraceEnum_ELBO``.

    Args:
        trace: From :func:`enumerated_trace`.

    Raises:
        ValueError: If sites that depend on enumerated ones have different scales.

    Example:
        >>> def model():
        ...     k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        ...     pyro.sample("x", dist.Normal(k, 1.0), obs=torch.tensor(0.5))
        >>> summed_log_prob(enumerated_trace(model, {}, 0))
        tensor(-1.0439)
    """
    trace.pack_tensors()
    plates = set(trace.plate_to_symbol.values())
    sum_dims = set(trace.symbol_to_dim) - plates
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    scales: dict[str, Any] = {}
    total: Tensor | float = 0.0
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or is_subsample(site):
            continue
        enumerated = site["infer"].get("_enumerate_dim") is not None
        factor = site["packed"]["unscaled_log_prob"]
        if sum_dims.isdisjoint(factor._pyro_dims):
            total = total + scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"]).sum()
            continue
        if not enumerated:
            # The probabilities of an enumerated site are left unmasked, so that they sum to one.
            factor = packed.scale_and_mask(factor, mask=site["packed"]["mask"])
        ordinal = frozenset(trace.plate_to_symbol[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized)
        factors.setdefault(ordinal, []).append(factor)
        scales[name] = site["scale"]
    if not factors:
        return total
    with shared_intermediates() as cache:
        contracted = contract_to_tensor(factors, sum_dims, ring=VmapLogRing(cache=cache))
    return total + _common(scales) * contracted


def _common(scales: Mapping[str, Any]) -> Any:
    first, scale = next(iter(scales.items()))
    for name, other in scales.items():
        if other is not scale and (isinstance(other, Tensor) or isinstance(scale, Tensor) or other != scale):
            raise ValueError(f"sites {first!r} and {name!r} depend on enumerated sites and have different scales; give them one")
    if isinstance(scale, Tensor) and scale.dim():
        raise ValueError(f"site {first!r} depends on enumerated sites and has a scale of shape {tuple(scale.shape)}; use a number")
    return scale


def finite_sites(trace: poutine.Trace) -> dict[str, bool]:
    """Whether each site's log-probability is free of NaN and of plus infinity.

    Example:
        >>> def model():
        ...     pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        >>> finite_sites(enumerated_trace(model, {}, 0))
        {'k': True}
    """
    return {
        name: not bool((torch.isnan(site["log_prob"]) | (site["log_prob"] == torch.inf)).any())
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_subsample(site)
    }
