"""Whether a model and its guide may be run for several particles at once in a plate of Pyro's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
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
    """Compare a model and a guide in a particle plate with single runs, site by site, at draws of the guide.

    Args:
        model: A Pyro model.
        guide: Its guide.
        args: Arguments of the call.
        kwargs: Keyword arguments of the call.
        nesting: Number of batch dimensions that plates use.

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

    def traced(stochastic: Callable[..., Any], given: Trace, count: int | None = None) -> Trace:
        particles = nullcontext() if count is None else pyro.plate("_pyro_flows_particles", count, dim=-1 - nesting)
        with particles:
            trace = poutine.trace(poutine.replay(stochastic, trace=given)).get_trace(*args, **kwargs)
        trace.compute_log_prob()  # at once: a transform without an inverse remembers its last draw alone
        return trace

    with torch.no_grad(), torch.random.fork_rng(), poutine.block():
        torch.manual_seed(0)
        single = poutine.trace(guide).get_trace(*args, **kwargs)
        alone = poutine.trace(poutine.replay(model, trace=single)).get_trace(*args, **kwargs)
        plates = {name: site for name, site in alone.nodes.items() if site["type"] == "sample" and is_subsample(site)}
        try:
            guided = traced(guide, _only(plates), _PARTICLES)
            drawn = {name: site for name, site in _sites(guided).items() if not site["is_observed"]}
            modelled = traced(model, _only({**plates, **drawn}), _PARTICLES)
            for i in range(_PARTICLES):
                picked = {name: dict(single.nodes[name]) for name in drawn}
                for name, site in picked.items():
                    values = _of_particle(drawn[name]["value"], i, nesting + site["fn"].event_dim)
                    site["value"] = values.reshape(site["value"].shape)
                for together, stochastic in ((guided, guide), (modelled, model)):
                    expected = traced(stochastic, _only({**plates, **picked}))
                    for name, site in _sites(expected).items():
                        found = together.nodes.get(name)
                        if found is None or not _same(_of_particle(found["log_prob"], i, nesting), site["log_prob"]):
                            return f"differs from single runs at site {name!r}"
        except Exception as error:  # whatever a model may raise when it has one more dimension; alone it ran
            return f"raises {type(error).__name__}: {error}"
    return None


def _only(nodes: Mapping[str, Any]) -> Trace:
    """A trace of some sites."""
    kept = Trace()
    for name, site in nodes.items():
        kept.add_node(name, **dict(site))
    return kept


def _sites(trace: Trace) -> dict[str, dict[str, Any]]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not is_subsample(site)}


def _of_particle(values: Tensor, i: int, dims: int) -> Tensor:
    """What a particle has of values with a dimension of particles before ``dims`` others; all of it where there is none."""
    return values.expand(_PARTICLES, *values.shape[1:])[i] if values.dim() > dims else values


def _same(together: Tensor, alone: Tensor) -> bool:
    """Whether log-probabilities are the same, element by element and in sum."""
    if together.numel() != alone.numel():
        return False
    first, second = together.reshape(-1), alone.reshape(-1)
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in ((first, second), (first.sum(), second.sum()))
    )
