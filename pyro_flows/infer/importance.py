"""Log importance weights of a model and a guide, one for each element of a plate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_flows.guides.flow_guide import check_exact_density
from pyro_flows.model.sites import innermost, is_deterministic, is_subsample

from .particle_plate import why_not_together

_PARTICLES = "_draws"


class ElementWeights:
    r"""Draws :math:`\log p(x_i, z_i) - \log q(z_i \mid x_i)` for the elements :math:`i` of a plate.

    The indices of subsampled plates are those of the model in a first run, and stay for all draws.

    Args:
        model: A Pyro model.
        guide: Its guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        plate: Name of the plate, or None for one weight of the whole joint density.

    Raises:
        ValueError: If the weights are not defined, see :func:`evaluate_nll`, or the guide's density is not exact.

    Example:
        >>> def model():
        ...     with pyro.plate("data", 3):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> weights = ElementWeights(model, model, (), {}, "data")
        >>> weights.draw(5).abs().max().item(), weights.vectorized
        (0.0, True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        plate: str | None,
    ) -> None:
        for name, value in (("model", model), ("guide", guide)):
            if not callable(value):
                raise ValueError(f"{name} must be callable, got {type(value).__name__}")
        if plate is not None and not isinstance(plate, str):
            raise ValueError(f"plate must be the name of a plate or None, got {plate!r}")
        self._model, self._guide, self._args, self._kwargs = model, guide, args, kwargs
        self._plate = plate
        self._fixed = Trace()
        guide_trace, model_trace = self._run()
        for site in guide_trace.nodes.values():
            if site["type"] == "sample" and isinstance(density := innermost(site["fn"]), nn.Module):
                check_exact_density(density)
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and is_subsample(site):
                self._fixed.add_node(name, **site)
        guide_trace, model_trace = self._run()
        self._check(guide_trace, model_trace)
        frames = {frame.name: frame for site in _sites(model_trace, guide_trace) for frame in site["cond_indep_stack"]}
        self._nesting = max((-frame.dim for frame in frames.values() if frame.vectorized), default=0)
        self._dim = None if plate is None else frames[plate].dim
        self.size = 1 if plate is None else frames[plate].size
        subsampled = plate is not None and frames[plate].full_size != frames[plate].size
        self.indices: Tensor | None = self._fixed.nodes[plate]["value"].cpu() if subsampled else None
        fixed_model, fixed_guide = (poutine.replay(fn, trace=self._fixed) for fn in (model, guide))
        self.vectorized = why_not_together(fixed_model, fixed_guide, args, kwargs, self._nesting) is None

    def draw(self, count: int) -> Tensor:
        """Log-weights of ``count`` draws, ``(count, N)``, in float64 on the CPU.

        Raises:
            ArithmeticError: If one is NaN or plus infinity.
        """
        traces = [self._run(count)] if self.vectorized else [self._run() for _ in range(count)]
        weights = torch.cat([self._log_prob(model) - self._log_prob(guide) for guide, model in traces])
        wrong = ~(weights < torch.inf)
        if bool(wrong.any()):
            names = sorted({str(site["name"]) for pair in traces for site in _sites(*pair) if not _is_usable(site)})
            raise ArithmeticError(
                f"log-weights are NaN or plus infinity for {int(wrong.any(0).sum())} of {self.size} elements, "
                f"from sites {names}; look for NaN in the data and for densities that diverge"
            )
        return weights

    def _run(self, count: int | None = None) -> tuple[Trace, Trace]:
        """Traces of guide and model, at ``count`` draws in a plate, one without plate if None."""
        guide, model = (poutine.replay(fn, trace=self._fixed) for fn in (self._guide, self._model))
        if count is not None:
            particles = pyro.plate(_PARTICLES, count, dim=-self._nesting - 1)
            guide, model = particles(guide), particles(model)
        with poutine.block():
            guide_trace = poutine.trace(guide).get_trace(*self._args, **self._kwargs)
            guide_trace.compute_log_prob()  # at once: a transform without an inverse remembers its last draw alone
            drawn = Trace()  # without plates, whose indices are those of the model
            for site in _sites(guide_trace):
                drawn.add_node(site["name"], **site)
            model_trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*self._args, **self._kwargs)
            model_trace.compute_log_prob()
        return guide_trace, model_trace

    def _check(self, guide_trace: Trace, model_trace: Trace) -> None:
        latents = {site["name"] for site in _sites(model_trace) if not site["is_observed"]}
        drawn = {site["name"]: site for site in _sites(guide_trace) if not site["is_observed"]}
        for name in latents - set(drawn):
            raise ValueError(f"guide: it does not draw the latent site {name!r} of the model; without it there are no weights")
        for name in set(drawn) - latents:
            if not drawn[name]["infer"].get("is_auxiliary"):
                raise ValueError(
                    f"guide: its site {name!r} is not in the model; mark it with infer={{'is_auxiliary': True}} or drop it"
                )
        frames = {frame.name: frame for site in _sites(model_trace) for frame in site["cond_indep_stack"]}
        if self._plate is not None and self._plate not in frames:
            raise ValueError(f"plate must be one of the plates of the model, {sorted(frames)}, got {self._plate!r}")
        for name, frame in frames.items():
            if name != self._plate and frame.full_size not in (None, frame.size):
                hint = "name it by plate=..." if self._plate is None else "give all of it"
                raise ValueError(
                    f"plate {name!r} is subsampled ({frame.size} of {frame.full_size}), so part of the data is missing; {hint}"
                )
        if self._plate is None:
            return
        if not frames[self._plate].vectorized:
            raise ValueError(f"plate {self._plate!r} is a loop; use it as a context, `with pyro.plate(...):`")
        for site in _sites(model_trace, guide_trace):
            if self._plate not in {frame.name for frame in site["cond_indep_stack"]} and not is_deterministic(site):
                kind = "observed" if site["is_observed"] else "latent"
                raise ValueError(
                    f"{kind} site {site['name']!r} is outside of plate {self._plate!r}, so that its elements have no "
                    f"likelihood of their own; plate=None scores all data together"
                )

    def _log_prob(self, trace: Trace) -> Tensor:
        """Log-density ``(count, N)``, unscaled."""
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for site in _sites(trace):
            log_prob = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]).double().cpu()
            log_prob = log_prob.reshape((1,) * (self._nesting + 1 - log_prob.dim()) + log_prob.shape)
            others = [dim for dim in range(-self._nesting, 0) if dim != self._dim]
            log_prob = log_prob.sum(others) if others else log_prob
            total = total + log_prob.reshape(len(log_prob), -1)
        return total


def _sites(*traces: Trace) -> Iterable[dict[str, Any]]:
    """Sample sites but for the indices of plates."""
    return [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample" and not is_subsample(site)]


def _is_usable(site: dict[str, Any]) -> bool:
    return bool(torch.isfinite(site["log_prob"]).all())
