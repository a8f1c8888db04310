"""The log-density of a guide at its own draws, with the gradient of the path alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_flows.model.sites import is_subsample


class NotRepeatableError(ValueError):
    """A guide has another density at the same values when it is run again.

    Example:
        >>> issubclass(NotRepeatableError, ValueError)
        True
    """


def path_trace(guide: Callable[..., Any], drawn: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    r"""Run a guide again at its draws, with its parameters held fixed.

    For :math:`z = f_\theta(\epsilon)` the gradient of :math:`\log q_\theta(z)` has a part through :math:`z` and a score part whose
    mean is zero. The log-densities of this trace have the values of those drawn and the first part of their gradient, through all
    the latents on which each site depends.

    Args:
        guide: The guide.
        drawn: Its trace, the indices of its plates included.
        args: Arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        A trace with log-probabilities.

    Raises:
        ValueError: If a site is not reparametrised; the message names it.
        NotRepeatableError: If the guide is another when it is run again, as dropout makes it.

    References:
        Roeder, Wu, Duvenaud (2017), *Sticking the landing*, https://arxiv.org/abs/1703.09194

    Example:
        >>> from pyro import poutine
        >>> guide = pf.AutoFlow(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), flow="affine").setup()
        >>> drawn = poutine.trace(guide).get_trace()
        >>> log_q = path_trace(guide, drawn, (), {}).log_prob_sum()
        >>> all(p.requires_grad for p in guide.parameters())
        True
    """
    at = drawn.copy()
    for name, site in drawn.nodes.items():
        if site["type"] != "sample" or is_subsample(site) or site["is_observed"]:
            continue
        if not site["fn"].has_rsample and not isinstance(_innermost(site["fn"]), dist.Delta):
            raise ValueError(
                f"site {name!r} of the guide is not reparametrised, and path gradients need rsample; use Trace_ELBO or RenyiELBO "
                f"of Pyro"
            )
        # A tensor of its own: for the drawn one a flow still holds the log-density with the gradient of its parameters.
        at.nodes[name]["value"] = site["value"].view_as(site["value"])
    with _fixed(drawn), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")  # they are in that of the first pass
        trace = poutine.trace(poutine.replay(guide, trace=at)).get_trace(*args, **kwargs)
        trace.compute_log_prob()
    drawn.compute_log_prob()
    for name, site in drawn.nodes.items():
        if site["type"] == "sample" and not is_subsample(site):
            _check_same(name, site["log_prob"].detach(), trace.nodes[name]["log_prob"].detach())
    return trace


def _check_same(name: str, first: Tensor, second: Tensor) -> None:
    """Refuse a guide that is another when it is run again, as dropout makes it."""
    if first.shape != second.shape:
        return
    difference = (first - second).abs()
    apart = difference > 0.05 + 0.02 * first.abs()
    if bool(torch.isfinite(difference).all()) and float(apart.double().mean()) > 0.5:
        raise NotRepeatableError(
            f"site {name!r} of the guide has another density at the same values when the guide is run again: it draws random "
            f"numbers outside of its sample sites, as dropout does, and has no path gradient; use Trace_ELBO, or guide.eval()"
        )


@contextmanager
def _fixed(trace: Trace) -> Iterator[None]:
    """Take gradients from the parameters that a trace names, for a while."""
    leaves: list[Tensor] = []
    for site in trace.nodes.values():
        if site["type"] == "param" and isinstance(site["value"], Tensor):
            leaf = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
            if leaf.is_leaf and leaf.requires_grad:
                leaves.append(leaf)
    for leaf in leaves:
        leaf.requires_grad_(False)
    try:
        yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(True)


def _innermost(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return fn


class TracedGuide:
    """A guide that keeps its last trace, the indices of plates included, which objectives of Pyro drop.

    Args:
        guide: The guide.

    Example:
        >>> traced = TracedGuide(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
        >>> _ = traced()
        >>> list(traced.trace.nodes)
        ['x']
    """

    trace: Trace

    def __init__(self, guide: Callable[..., Any]) -> None:
        self.guide = guide

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with poutine.trace() as tracer:
            result = self.guide(*args, **kwargs)
        self.trace = tracer.trace
        return result
