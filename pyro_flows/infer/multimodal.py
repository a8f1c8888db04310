"""Several modes: a guide whose base has them, or one that was annealed into them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows.distributions import GaussianMixture
from pyro_flows.guides import AutoFlow
from pyro_flows.model.rewrites import LinAlgError
from pyro_flows.transforms import FlowTransform

from .annealing import anneal
from .descent import Training
from .gaussian import Density, Gaussian, LogDensity
from .ladder import GAUSSIAN_ESS, Train, deepen, default_flow, describe_rung, judge, spline_flow
from .modes import Survey, survey

#: Width of the density that annealing begins with, over that of all modes together.
WIDER = 1.2
#: Steps of annealing, at most.
ANNEALING = 800
#: Steps that must be left for another guide.
LEAST_STEPS = 300
#: Draws by which the weights of the components are set.
REWEIGHTED = 20_000


def cover_modes(
    guide: AutoFlow,
    log_density: LogDensity,
    starts: Tensor,
    train: Train,
    max_steps: int,
    num_particles: int,
    record: dict[str, Any],
    *,
    max_time: float = math.inf,
    progress: bool = False,
) -> tuple[Training, bool]:
    """Fit a guide of several modes in the place of one that misses some; keep it if its evidence lower bound is higher.

    Where climbs from ``starts`` come to the same few modes again and again, a mixture of Gaussians at these modes becomes the base
    of a flow: its weights are set by importance weights before and after training, for the gradient cannot move mass between modes.
    Where there are too many modes to list, or that was no better, a spline flow is trained on a density that goes from a wide
    Gaussian to the posterior, so that its mass divides as the modes do.

    Args:
        guide: The guide that misses modes; changed in place.
        log_density: Maps ``(N, D)`` to ``(N,)``.
        starts: Where to look for modes, ``(M, D)``.
        train: Trains the guide in place.
        max_steps: Steps in all, at most.
        num_particles: Draws per step of the annealing.
        record: Gets ``flow`` and what was tried.
        max_time: Seconds that the annealing may take.
        progress: Show a bar.

    Returns:
        What was done, and whether the new guide was kept.
    """
    record.setdefault("rungs", [])
    before, previous, flow = judge(guide, log_density).elbo, Kept.of(guide), record["flow"]
    found = survey(Density(log_density, guide.whitening.loc, num_particles), starts)
    count = f"{len(found.modes)} modes found" if found.complete else "more modes than can be listed"
    total, left = Training(), max_steps

    def undo() -> None:
        record["flow"] = flow
        previous.restore(guide)

    for several in ([True] if found.complete and len(found.modes) > 1 else []) + [False]:
        name = f"real_nvp over {len(found.modes)} modes" if several else "nsf_coupling, annealed"
        try:
            if several:
                name, done = _mixture(guide, log_density, found.modes, train, left, record)
            else:
                done = _annealed(guide, log_density, found, train, left, num_particles, max_time, progress)
        except KeyboardInterrupt:
            undo()
            raise
        except (ArithmeticError, LinAlgError) as error:
            undo()
            record["rungs"].append({"flow": name, "steps": 0, "reason": f"{count}: failed and undone, {error}"})
            continue
        total, left = total.then(done), left - done.steps
        judged = judge(guide, log_density)
        better = judged.elbo > before
        reason = f"{count}: {'kept' if better else 'no better than before, undone'}"
        record["rungs"].append(describe_rung(name, done.steps, judged, reason))
        if better:
            record["flow"] = name
            return total, True
        undo()
        if left < LEAST_STEPS or done.stop_reason in ("interrupted", "max_time"):
            break
    return total, False


def _mixture(
    guide: AutoFlow, log_density: LogDensity, modes: list[Gaussian], train: Train, max_steps: int, record: dict[str, Any]
) -> tuple[str, Training]:
    weights = torch.tensor([mode.elbo for mode in modes], dtype=torch.float64, device="cpu").softmax(0)
    loc, factors = torch.stack([mode.loc for mode in modes]), torch.stack([mode.scale_tril for mode in modes])
    scale_tril = _whiten(guide, weights, loc, factors @ factors.mT)
    centred = (loc - weights @ loc).mT
    like = guide.whitening.loc
    base = GaussianMixture(
        weights.to(like),
        torch.linalg.solve_triangular(scale_tril, centred, upper=False).mT.to(like),
        torch.linalg.solve_triangular(scale_tril, factors, upper=False).tril().to(like),
    )
    guide.set_flow("affine", base)
    _reweight(guide, log_density)
    judged = judge(guide, log_density)
    if judged.verdict == "good" and judged.ess_fraction >= GAUSSIAN_ESS:
        return "gaussian mixture", Training(stop_reason="the mixture of Gaussians at the modes is exact")
    record["rungs"].append(describe_rung("gaussian mixture", 0, judged, "its weights vary: a flow over it"))
    guide.set_flow(default_flow, base)
    record["flow"] = f"{'real_nvp' if guide.latent_dim > 1 else 'nsf_coupling'} over {len(modes)} modes"
    done = train(max_steps, 0.5)
    _reweight(guide, log_density)
    if done.stop_reason in ("converged", "weights constant") and max_steps - done.steps >= max_steps // 10:
        more = deepen(guide, log_density, train, max_steps - done.steps, done.steps, record)
        if more is not None:
            done = done.then(more)
            _reweight(guide, log_density)
    return record["flow"], done


def _annealed(
    guide: AutoFlow,
    log_density: LogDensity,
    found: Survey,
    train: Train,
    max_steps: int,
    num_particles: int,
    max_time: float,
    progress: bool,
) -> Training:
    with torch.no_grad():
        draws = guide.distribution.sample((len(found.ends),)).double().cpu()
    ends = found.ends[torch.isfinite(found.ends).all(-1)]
    low, high = ends.quantile(0.05, 0), ends.quantile(0.95, 0)
    # Midway between the outer modes, whose masses decide later, and as wide as they lie apart and each of them is.
    centre = 0.5 * (low + high)
    variance = WIDER**2 * ((0.5 * (high - low)).square() + draws.var(0))
    scale_tril = _whiten(guide, ends.new_ones(1), centre[None], variance.diag()[None])
    guide.set_flow(spline_flow)
    like = guide.whitening.loc
    wide = torch.distributions.MultivariateNormal(centre.to(like), scale_tril=scale_tril.to(like), validate_args=False)
    steps = min(ANNEALING, max_steps // 2)
    done = anneal(
        guide.distribution, log_density, wide.log_prob, num_particles=num_particles, num_steps=steps, max_time=max_time,
        progress=progress,
    )  # fmt: skip
    if done.stop_reason == "":
        done = done.then(train(max_steps - steps, 0.5))
    return done


def _whiten(guide: AutoFlow, weights: Tensor, loc: Tensor, covariances: Tensor) -> Tensor:
    """Whiten by the mean and covariance of a mixture, ``(K,)``, ``(K, D)`` and ``(K, D, D)``; returns the factor."""
    mean = weights @ loc
    apart = loc - mean
    covariance = torch.einsum("k,kij->ij", weights, covariances + apart[:, :, None] * apart[:, None, :])
    scale_tril = torch.linalg.cholesky(covariance)
    guide.set_coordinates(None)
    guide.whitening.set(mean.to(guide.whitening.loc), scale_tril.to(guide.whitening.loc))
    return scale_tril


@torch.no_grad()
def _reweight(guide: AutoFlow, log_density: LogDensity) -> None:
    """Give each component the mass that importance weights say it has."""
    base = guide.distribution.base
    if not isinstance(base, GaussianMixture):
        return
    noise, component = base.sample_with_component((REWEIGHTED,))
    z, log_det = guide.distribution.transform.forward_and_log_det(noise)
    log_p = torch.cat([log_density(part) for part in z.split(1024)])
    log_weights = (log_p - base.log_prob(noise) + log_det).double()
    shares = log_weights.nan_to_num(nan=-math.inf, posinf=-math.inf).softmax(0)
    masses = torch.zeros(len(base.loc), dtype=torch.float64, device=shares.device).index_add(0, component, shares)
    if bool(torch.isfinite(masses).all()):
        base.reweight(masses.clamp_min(1e-6))


@dataclass(frozen=True)
class Kept:
    """A guide's distribution, to be put back.

    Example:
        >>> guide = AutoFlow(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)), "affine").setup()
        >>> kept = Kept.of(guide)
        >>> guide.set_flow("nice")
        >>> kept.restore(guide)
        >>> type(guide.flow).__name__
        'AffineTril'
    """

    flow: FlowTransform
    base: Any
    loc: Tensor
    scale_tril: Tensor
    coordinates: FlowTransform | None

    @staticmethod
    def of(guide: AutoFlow) -> Kept:
        whitening, base = guide.whitening, guide.get_base_dist()
        base = copy.deepcopy(base) if guide.has_own_base else None
        return Kept(copy.deepcopy(guide.flow), base, whitening.loc.clone(), whitening.scale_tril.clone(), guide.coordinates)

    def __call__(self, input_dim: int, context_dim: int = 0) -> FlowTransform:
        return copy.deepcopy(self.flow)

    def restore(self, guide: AutoFlow) -> None:
        guide.set_coordinates(self.coordinates)
        guide.whitening.set(self.loc, self.scale_tril)
        guide.set_flow(self, self.base)
