"""Neural transport: MCMC in the latent space of a trained flow."""

from __future__ import annotations

import multiprocessing
import warnings
from dataclasses import dataclass

import torch
from pyro.infer import HMC, MCMC, NUTS
from torch import Tensor

from pyro_flows.distributions import FlowDistribution
from pyro_flows.guides.flow_guide import check_exact_density

from .gaussian import LogDensity


@dataclass(frozen=True)
class Chains:
    """What the chains drew.

    Args:
        latents: Unconstrained latents of the model, ``(C, S, D)``.
        diverging: Which draws ended a divergent trajectory, ``(C, S)``, bool.
        num_gradients: Gradients of the log-density taken, warm-up included.

    Example:
        >>> Chains(torch.zeros(4, 10, 2), torch.zeros(4, 10, dtype=torch.bool), 100).latents.shape
        torch.Size([4, 10, 2])
    """

    latents: Tensor
    diverging: Tensor
    num_gradients: int


def neural_transport(
    distribution: FlowDistribution,
    log_density: LogDensity,
    *,
    num_samples: int = 1000,
    num_chains: int = 4,
    warmup_steps: int = 300,
    target_accept: float = 0.8,
    kernel: str = "nuts",
    progress: bool = True,
) -> Chains:
    r"""Run chains on :math:`\epsilon` with density :math:`p(f(\epsilon))\,|\det \partial f/\partial\epsilon|`, and map them by f.

    Where the flow is exact this is the base, a standard normal: no funnels and no correlations, whatever the posterior. Where
    it is not, the chains are right all the same, for any f that is invertible. They begin at draws of the base.

    Pyro runs chains in processes of their own where there are more cores than chains, and one after another otherwise.

    Args:
        distribution: The trained guide over unconstrained latents, event shape ``(D,)``.
        log_density: Log joint density, ``(N, D)`` to ``(N,)``.
        num_samples: Draws per chain after warm-up.
        num_chains: Number of chains.
        warmup_steps: Steps that adapt step size and mass, and are thrown away.
        target_accept: Acceptance probability to which the step size is adapted, between 0 and 1.
        kernel: ``"nuts"``, or ``"hmc"`` with trajectories of length :math:`\pi/2`, between whose ends a standard normal forgets
            where it was; that takes fewer gradients and trusts the flow more.
        progress: Show a progress bar.

    Returns:
        Draws, divergences, and the number of gradients taken.

    Raises:
        ValueError: If ``kernel`` is not known, or the flow's log-determinant is not exact.

    References:
        Hoffman, Sountsov, Dillon, Langmore, Tran, Vasudevan (2019), *NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using
        neural transport*, https://arxiv.org/abs/1903.03704

    Example:
        >>> from pyro_flows import flows
        >>> q = FlowDistribution(flows.affine(1))
        >>> chains = neural_transport(q, lambda z: -0.5 * (z - 5).square().sum(-1), num_samples=100, num_chains=2,
        ...                           warmup_steps=100, progress=False)
        >>> abs(float(chains.latents.mean()) - 5) < 1
        True
    """
    check_exact_density(distribution)
    if kernel not in ("nuts", "hmc"):
        raise ValueError(f"kernel must be 'nuts' or 'hmc', got {kernel!r}")
    count = multiprocessing.Value("q", 0)
    # The kernel differentiates by the noise alone.
    wanted = [parameter for parameter in distribution.parameters() if parameter.requires_grad]

    def potential(values: dict[str, Tensor]) -> Tensor:
        with count.get_lock():
            count.value += 1
        z, log_det = distribution.transform.forward_and_log_det(values["noise"][None])
        return -(log_density(z) + log_det)[0]

    options = {"potential_fn": potential, "target_accept_prob": target_accept}
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        noise = distribution.base.sample(torch.Size((num_chains,)))
        chosen = NUTS(**options) if kernel == "nuts" else HMC(trajectory_length=0.5 * torch.pi, **options)
        start = {"noise": noise if num_chains > 1 else noise[0]}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="num_chains=.* is more than available_cpu")
            mcmc = MCMC(
                chosen, num_samples, warmup_steps, initial_params=start, num_chains=num_chains, disable_progbar=not progress
            )
            mcmc.run()
        noise = mcmc.get_samples(group_by_chain=True)["noise"]
        with torch.no_grad():
            latents = distribution.transform.forward_and_log_det(noise)[0]
        diverging = torch.zeros(num_chains, num_samples, dtype=torch.bool, device="cpu")
        for chain, steps in enumerate(mcmc.diagnostics()["divergences"].values()):
            diverging[chain, [step for step in steps if 0 <= step < num_samples]] = True
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
    return Chains(latents, diverging, int(count.value))
