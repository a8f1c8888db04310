"""Training of a flow over a flat vector: path gradients of several objectives, and the best state kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_flows.distributions import FlowDistribution
from pyro_flows.model.memory import is_out_of_memory

from .descent import Callback, Schedule, Step, Training, descend
from .path_gradient import LogDensity
from .traced_gradient import TracedGradient


def train(
    distribution: FlowDistribution,
    log_density: LogDensity,
    extra_parameters: Sequence[nn.Parameter] = (),
    *,
    num_particles: int,
    max_steps: int,
    max_time: float | None,
    schedule: Schedule,
    progress: bool,
    callback: Callback | None = None,
    explain: Callable[[Tensor], str] = lambda z: "",
    full_density: LogDensity | None = None,
    objective: str = "path",
    compile: bool = False,
) -> Training:
    """Maximise the ELBO of ``distribution`` by path gradients, in place.

    Args:
        distribution: The guide over unconstrained latents, event shape ``(D,)``.
        log_density: Log joint density of model and data, ``(N, D)`` to ``(N,)``.
        extra_parameters: Parameters of the model, trained too.
        num_particles: Draws per step.
        max_steps: Steps at most.
        max_time: Seconds at most; None for no limit.
        schedule: Step sizes and stop rule.
        progress: Show a bar.
        callback: Called as ``callback(step, loss)`` after each step.
        explain: Says which sites are not finite at given latents, for the error.
        full_density: Log joint density with all data, where ``log_density`` takes minibatches.
        objective: One of :data:`OBJECTIVES`.
        compile: Whether to compile steps, see :class:`TracedGradient`.

    Returns:
        What was done.

    Raises:
        ArithmeticError: If too many steps had a loss or gradient that is not finite.

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(1))
        >>> done = train(q, lambda z: -0.5 * (z - 1).square().sum(-1), num_particles=64, max_steps=400, max_time=None,
        ...              schedule=Schedule(), progress=False)
        >>> abs(q.rsample((1000,)).mean().item() - 1) < 0.2
        True
    """
    modules = nn.ModuleList([distribution, nn.ParameterList(extra_parameters)])
    learns = bool(extra_parameters)
    parameters = [*distribution.parameters(), *extra_parameters]
    gradient = TracedGradient(distribution, log_density, parameters, learns, objective, compile=compile, explain=explain)

    def take(decaying: bool) -> Step:
        # A model learns parameters by the bound on its evidence, and minibatches are unbiased for that alone.
        bound_only = learns or full_density is not None
        count = num_particles * schedule.growth if decaying else num_particles
        alpha = schedule.alpha if decaying and not bound_only else 0.0
        return take_step(gradient, distribution.base.rsample((count,)), alpha, parameters)

    def settle(states: Sequence[dict[str, Tensor]]) -> None:
        margin = 1.0 if objective != "path" else 0.05 if schedule.alpha else 0.0
        _keep_better(distribution, full_density or log_density, modules, states, num_particles * schedule.growth, margin)

    done = descend(
        take,
        modules,
        settle,
        max_steps=max_steps,
        max_time=max_time,
        schedule=schedule,
        progress=progress,
        callback=callback,
        parameters=parameters,
        memory=gradient,
    )
    done.traces = gradient.record
    return done


def take_step(gradient: TracedGradient, noise: Tensor, alpha: float, parameters: Sequence[nn.Parameter]) -> Step:
    """Add one path gradient to those of the parameters; none, and a loss of NaN, where more than a tenth of the draws are lost, or
    a flow could not be solved.

    Args:
        gradient: Of the guide.
        noise: Draws of its base.
        alpha: Power of the importance weights that draws have.
        parameters: Those of the gradient, in its order.

    Example:
        See :func:`train`.
    """
    try:
        found = gradient(noise, alpha)
    except ArithmeticError as error:  # a solver that did not get through
        why = f" ({error})"
        return Step(math.nan, math.nan, len(noise), len(noise), lambda: why)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error) and gradient.halve(len(noise)):
            return take_step(gradient, noise, alpha, parameters)
        raise
    dropped = len(noise) - int(found.usable.sum())
    if dropped > 0.1 * len(noise):
        return Step(math.nan, math.nan, len(noise), dropped, lambda: gradient.explain(found.z))
    for parameter, value in zip(parameters, found.gradients, strict=True):
        if value is not None:
            parameter.grad = value if parameter.grad is None else parameter.grad + value
    kept = found.log_weights[found.usable]
    return Step(-float(kept.mean()), float(kept.std()), len(noise), dropped, lambda: gradient.explain(found.z))


@torch.no_grad()
def _keep_better(
    distribution: FlowDistribution,
    log_density: LogDensity,
    modules: nn.Module,
    states: Sequence[dict[str, Tensor]],
    chunk: int,
    margin: float = 0.0,
) -> None:
    """Go back to the best of some states where the last one has an ELBO that is lower by a margin, in nats, on the same noise.

    The margin is what other objectives than the ELBO may cost of it.
    """
    noise = distribution.base.sample((min(2048, 8 * chunk),))

    def elbo() -> float:
        total = 0.0
        for part in noise.split(chunk):
            try:
                z, log_det = distribution.transform.forward_and_log_det(part)
            except ArithmeticError:  # a flow that cannot be solved
                return math.nan
            total += float((log_density(z).double() + log_det.double() - distribution.base.log_prob(part).double()).sum())
        return total / len(noise)

    best, best_state = elbo() + margin, copy.deepcopy(modules.state_dict())
    for state in states:
        modules.load_state_dict(state)
        value = elbo()
        if value > best or (math.isnan(best) and not math.isnan(value)):
            best, best_state = value, state
    modules.load_state_dict(best_state)
