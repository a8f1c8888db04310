"""Importance weights of an amortised guide at one data set, where the model has a density."""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.guides.amortized_flow import AmortizedFlow, Observations
from pyro_flows.guides.flow_guide import check_exact_density
from pyro_flows.model import LogJoint
from pyro_flows.model.simulator import SimulatorModel

from .arguments import check_count, check_seed


def weighted_draws(
    guide: AmortizedFlow, observations: Observations, num_samples: int, seed: int | None
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Draws of an amortised guide with their log-densities under the model and under the guide.

    Args:
        guide: The guide, trained in this process.
        observations: One data set, as for :meth:`AmortizedFlow.sample`.
        num_samples: Number S of draws.
        seed: Makes them reproducible.

    Returns:
        Draws by site ``(S, site shape)``, the same unconstrained ``(S, D)``, and log-densities ``(S,)`` of the model, data
        included, and of the guide, both in the constrained space of the model, in float64.

    Raises:
        ValueError: If the model is a simulator without density, the guide came without its model, or there are several data sets.

    Example:
        >>> def model(y=None):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = pf.AmortizedFlow(model, observed=["y"]).setup()
        >>> weighted_draws(guide, torch.tensor(1.0), 5, 0)[2].shape
        torch.Size([5])
    """
    check_count("num_samples", num_samples, 2)
    check_seed(seed)
    check_exact_density(guide)
    values = guide.observations(observations)
    batches = {name: tuple(value.shape[: value.dim() - len(guide.observed_shapes[name])]) for name, value in values.items()}
    if any(batches.values()):
        raise ValueError(f"observations must be one data set, whose weights are to be taken; got batch shapes {batches}")
    target = guide.target
    if target is None:
        raise ValueError(
            "the guide was copied or unpickled without its model, which weights need; train or set up a guide of the model"
        )
    if isinstance(target.model, SimulatorModel):
        raise ValueError("a simulator has no density, so that there are no importance weights; check the guide by simulations")
    log_joint = LogJoint(poutine.condition(target.model, data=values), target.args, target.kwargs)
    draws = guide.sample(observations, num_samples, seed=seed)
    with torch.no_grad():
        log_q = guide.log_prob(draws, observations)
        latents = log_joint.latents.unconstrain(draws)
        log_det = log_joint.latents.constrain(latents)[1]
        log_p = torch.cat([log_joint(part) for part in latents.split(1024)]) - log_det
    return draws, latents, log_p.double(), log_q.double()
