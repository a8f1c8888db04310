"""Whether a model may be run for several particles at once in a plate of Pyro's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_flows.model.sites import is_subsample

_PARTICLES = 3


def why_not_together(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], nesting: int
) -> str | None:
    """Compare a model in a particle plate with single runs, site by site, at draws of a guide.

    Args:
        model: A Pyro model.
        guide: A guide of it that is right in a particle plate.
        args: Arguments of the call.
        kwargs: Keyword arguments of the call.
        nesting: Number of batch dimensions that plates of the model use.

    Returns:
        None where they agree; else what goes wrong, in words.

    Example:
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(z.max(), 1.0), obs=torch.tensor(1.0))
        >>> guide = pf.AutoFlow(model, flow="affine").setup()
        >>> why_not_together(model, guide, (), {}, 0)
        "differs from single runs at site 'y'"
    """
    with torch.no_grad(), torch.random.fork_rng(), poutine.block():
        torch.manual_seed(0)
        single = poutine.trace(guide).get_trace(*args, **kwargs)
        alone = poutine.trace(poutine.replay(model, trace=single)).get_trace(*args, **kwargs)
        plates = {name: site for name, site in alone.nodes.items() if site["type"] == "sample" and is_subsample(site)}

        def together(stochastic: Callable[..., Any], trace: Trace) -> Trace:
            with pyro.plate("_pyro_flows_particles", _PARTICLES, dim=-1 - nesting):
                return poutine.trace(poutine.replay(stochastic, trace=trace)).get_trace(*args, **kwargs)

        try:
            drawn = together(guide, _only(alone, plates))
            latents = {n: s for n, s in drawn.nodes.items() if n in single.nodes and s["type"] == "sample" and not is_subsample(s)}
            found = _terms(together(model, _only(drawn, {**plates, **latents})), _PARTICLES)
        except Exception as error:
            return f"raises {type(error).__name__}: {error}"
        for i in range(_PARTICLES):
            picked = _only(single, {**plates, **{name: single.nodes[name] for name in latents}})
            for name, site in latents.items():
                shape = single.nodes[name]["value"].shape
                picked.nodes[name]["value"] = site["value"].expand(_PARTICLES, *site["value"].shape[1:])[i].reshape(shape)
            expected = _terms(poutine.trace(poutine.replay(model, trace=picked)).get_trace(*args, **kwargs), 1)
            for name, term in expected.items():
                other = found.get(name)
                if other is None or not torch.allclose(other[i], term[0], rtol=1e-3, atol=1e-3, equal_nan=True):
                    return f"differs from single runs at site {name!r}"
    return None


def _only(trace: Trace, nodes: Mapping[str, Any]) -> Trace:
    """A trace of some sites."""
    kept = Trace()
    for name, site in nodes.items():
        kept.add_node(name, **dict(site))
    return kept


def _terms(trace: Trace, count: int) -> dict[str, Tensor]:
    """Log-probability of each site, ``(count,)``."""
    trace.compute_log_prob()
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not is_subsample(s)}
    return {
        name: site["log_prob"].expand(count, *site["log_prob"].shape[1:]).reshape(count, -1).sum(-1)
        if count > 1
        else site["log_prob"].sum().reshape(1)
        for name, site in sites.items()
    }
