"""The path gradient of a step as one graph of tensor operations, without the cost of handlers, modules and autograd."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.distributions import FlowDistribution, StandardNormal
from pyro_flows.model import LogJoint
from pyro_flows.model.rewrites import LinAlgError
from pyro_flows.solvers.mode import for_compiler

from .path_gradient import LogDensity, PathGradient, path_gradient

#: Steps of one kind after which it is worth tracing, which takes as long as some hundred steps.
HOT = 150
_MOST_NODES = 20_000


class TracedGradient:
    """Path gradients of a guide, traced once a kind of step has come often.

    Model and guide run once under a tracer; what they did is kept as a graph, and from then on the graph is run. The first run of a
    graph is compared with model and guide themselves, and the graph given up where they differ. Nothing is traced where the model
    draws minibatches or runs once per draw, or where the guide solves for its inverse.

    Args:
        distribution: The guide over unconstrained latents.
        log_density: Log joint density of model and data.
        parameters: What gradients are taken to.
        learns: Whether parameters of the model are among them.
        objective: The objective.
        compile: Whether to compile graphs by ``torch.compile``, from the first step on.
        explain: Says which sites are not finite at given latents, for an error.

    Attributes:
        record: What was traced, in how many seconds, or why not.

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(1))
        >>> step = TracedGradient(q, lambda z: -0.5 * z.square().sum(-1), list(q.parameters()))
        >>> step(torch.randn(5, 1), 0.0).log_weights.shape, step.record
        (torch.Size([5]), ['not traced: the log-density is not that of a model'])
    """

    def __init__(
        self,
        distribution: FlowDistribution,
        log_density: LogDensity,
        parameters: Sequence[Tensor],
        learns: bool = False,
        objective: str = "path",
        compile: bool = False,
        explain: Callable[[Tensor], str] = lambda z: "",
    ) -> None:
        self._fixed: tuple[Any, ...] = (learns, objective)
        self._distribution, self._log_density, self._parameters = distribution, log_density, list(parameters)
        self._compile, self.explain = compile, explain
        self._seen: dict[str, int] = {}
        self._graphs: dict[str, Callable[[Tensor], Any] | None] = {}
        self._to_trace: set[str] = set()
        reason = _why_not(distribution, log_density)
        self.record: list[str] = [] if reason is None else [f"not traced: {reason}"]
        self._may = reason is None

    def __call__(self, noise: Tensor, alpha: float) -> PathGradient:
        """The path gradient at draws of the base."""
        key = f"{tuple(noise.shape)} {noise.dtype} {noise.device} {alpha}"
        if key in self._to_trace:  # as it was in the run that goes on here
            self._to_trace.discard(key)
            self._trace(key, noise, alpha)
        graph = self._graphs.get(key)
        if graph is None and self._may and key not in self._graphs:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._compile or self._seen[key] > HOT:
                return self._trace(key, noise, alpha)
        if graph is None:
            return self._directly(noise, alpha)
        try:
            with torch.no_grad():
                found = _unflattened(graph(noise))
        except LinAlgError:  # only this step: the model's own way leaves out the draws that have no factor
            return self._directly(noise, alpha)
        if isinstance(self._log_density, LogJoint):
            self._log_density.num_evaluations += len(noise)
        return found

    def halve(self, count: int) -> bool:
        """Run the model for half as many particles at once from now on, as memory ran out; whether that can be."""
        if not (isinstance(self._log_density, LogJoint) and self._log_density.halve(count)):
            return False
        self._graphs.clear()  # they run the model for all particles
        return True

    def state_dict(self) -> dict[str, Any]:
        """What was traced and how often steps came, as plain data."""
        return {
            "seen": self._seen,
            "traced": {key: graph is not None for key, graph in self._graphs.items()},
            "record": self.record,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as what :meth:`state_dict` was of: what had been traced is traced when it comes next."""
        self._seen, self.record = dict(state["seen"]), list(state["record"])
        self._graphs = {key: None for key, traced in state["traced"].items() if not traced}
        self._to_trace = {key for key, traced in state["traced"].items() if traced}

    def _directly(self, noise: Tensor, alpha: float) -> PathGradient:
        return path_gradient(self._distribution, self._log_density, self._parameters, noise, alpha, *self._fixed)

    def _trace(self, key: str, noise: Tensor, alpha: float) -> PathGradient:
        from torch.fx.experimental.proxy_tensor import make_fx  # takes long to import

        began = time.monotonic()
        expected = self._directly(noise, alpha)
        self._graphs[key] = None
        label = f"{'compiled' if self._compile else 'traced'} for {len(noise)} draws"
        if isinstance(self._log_density, LogJoint) and len(noise) > self._log_density.particles_at_once:
            self.record.append(f"not {label}: the model runs in parts, for its memory")
            return expected
        try:
            with for_compiler(self._compile), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph: Any = make_fx(lambda at: _flattened(self._directly(at, alpha)))(noise)
                graph.graph.eliminate_dead_code()
                graph.recompile()
                nodes = len(graph.graph.nodes)
                if nodes > _MOST_NODES:
                    self.record.append(f"not {label}: {nodes} operations are too many")
                    return expected
                with torch.no_grad():
                    graph = torch.compile(graph, dynamic=False) if self._compile else graph
                    found = _unflattened(graph(noise))
        except Exception as error:  # whatever a tracer or compiler says of a model that runs without them
            words = (str(error).strip().splitlines() or [""])[0]
            self.record.append(f"not {label}: {type(error).__name__}: {words}")
            return expected
        if not _same(found, expected):
            self.record.append(f"not {label}: the graph gives other numbers than the model")
            return expected
        self._graphs[key] = graph
        self.record.append(f"{label}: {nodes} operations, {time.monotonic() - began:.1f} s")
        return expected


def _why_not(distribution: FlowDistribution, log_density: LogDensity) -> str | None:
    """What keeps steps from being traced, in words; None if nothing does."""
    if not isinstance(log_density, LogJoint):
        return "the log-density is not that of a model"
    if log_density.structure.subsampled:
        return "the model draws minibatches"
    if log_density.path == "loop":
        return "the model runs once per draw"
    if log_density.rewritten:
        return "the model runs with rewrites"
    if not isinstance(distribution.base, StandardNormal):
        return "the base of the guide is no standard normal"
    if distribution.transform.eager_only:
        return "the guide solves an equation by steps that adapt to values"
    if distribution.transform.inverse_kind == "solved" and distribution.transform.cheap_direction != "both":
        return "the guide solves for its inverse"
    if any(module.training and isinstance(module, nn.modules.dropout._DropoutNd) for module in distribution.modules()):
        return "the guide draws random numbers (dropout)"
    return None


def _flattened(found: PathGradient) -> list[Tensor | None]:
    return [found.log_weights, found.usable, found.z, *found.gradients]


def _unflattened(flat: Sequence[Any]) -> PathGradient:
    log_weights, usable, z, *gradients = flat
    return PathGradient(log_weights, usable, z, tuple(gradients))


def _same(found: PathGradient, expected: PathGradient) -> bool:
    """Whether two gradients are the same to rounding: within a thousandth of their largest entries."""
    if not torch.equal(found.usable, expected.usable):
        return False
    pairs = [(found.z, expected.z), (found.log_weights[found.usable], expected.log_weights[expected.usable])]
    for a, b in zip(found.gradients, expected.gradients, strict=True):
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None:
            pairs.append((a, b))
    return all(bool(((a - b).abs() <= 1e-3 * (1e-3 + b.abs().max())).all()) for a, b in pairs if b.numel())
