"""Training of an amortised guide on simulations: maximum likelihood of the latents given the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_flows.diagnostics import Diagnosis, diagnose, psis, psis_resample, usable_log_weights
from pyro_flows.guides.amortized_flow import AmortizedFlow, Observations
from pyro_flows.model.latents import FlatLatents
from pyro_flows.model.seeding import seeded
from pyro_flows.model.simulate import Simulations, SimulationTarget, draw

from .amortized_verdict import weighted_draws
from .arguments import check_count, check_seed
from .checkpoint_folder import CheckpointFolder
from .digest import digest
from .flow_matching import flow_matching_loss
from .maximum_likelihood import check_likelihood_options, maximise_likelihood
from .noted_run import checkpoints, current_folder, remembered, seconds_before, start_from


@dataclass
class AmortizedFit:
    r"""How the training of an amortised guide went.

    Args:
        simulations: What it was trained on.
        losses: Mean of :math:`-\log q(z \mid x)`, or the loss of flow matching, over the training rows, per member and epoch.
        validation_losses: The same over the rows held out, at the start and after each epoch, per member.
        best_epochs: Epoch whose state each member has; 0 for the regression that training starts from.
        skipped: Steps left out because their loss or gradient was not finite.
        stop_reason: ``"max_epochs"``, ``"no_progress"``, ``"max_time"`` or ``"interrupted"``, of the last member.
        seconds: Seconds that training took, simulations not counted.
        fresh: Whether training rows were drawn anew for every epoch.
        guide: The guide.

    Example:
        >>> AmortizedFit(Simulations({"x": torch.zeros(1)}, {"y": torch.zeros(1)})).skipped
        0
    """

    simulations: Simulations = field(repr=False)
    losses: list[list[float]] = field(default_factory=list, repr=False)
    validation_losses: list[list[float]] = field(default_factory=list, repr=False)
    best_epochs: list[int] = field(default_factory=list)
    skipped: int = 0
    stop_reason: str = "max_epochs"
    seconds: float = 0.0
    fresh: bool = False
    guide: AmortizedFlow | None = field(default=None, repr=False)

    def diagnose(self, observations: Observations, num_samples: int = 4000, *, seed: int | None = 0) -> Diagnosis:
        """Whether to trust the posterior of one data set, from importance weights: for models that have a density.

        Args:
            observations: The data set, as for :meth:`AmortizedFlow.sample`.
            num_samples: Number of draws.
            seed: Seed of these draws.

        Returns:
            Figures, verdict and advice.

        Raises:
            ValueError: If the model is a simulator without density, or there are several data sets.

        Example:
            >>> def model(y=None):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            >>> guide = pf.AmortizedFlow(model, observed=["y"])
            >>> fit = pf.fit_amortized(guide, num_simulations=2000, max_epochs=1, seed=0, progress=False)
            >>> fit.diagnose(torch.tensor(0.5)).ess_fraction > 0.9
            True
        """
        _, latents, log_p, log_q = weighted_draws(self._trained, observations, num_samples, seed)
        diagnosis = diagnose(log_p, log_q, draws=latents.double())
        if diagnosis.verdict == "good":
            return diagnosis
        better = "" if self.fresh else ", by draws that are new in every epoch (fresh=True)"
        advice = (
            f"The guide is not exact at these data. Train longer or on more simulations{better}, with an encoder of what matters "
            f"in the data, or by the ELBO on them (SVI with the guide)."
        )
        if diagnosis.verdict == "reweight":
            advice = f"Take fit.resample(observations, n), which corrects the draws by their weights. {advice}"
        return replace(diagnosis, advice=advice)

    def resample(self, observations: Observations, num_samples: int = 1000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of the posterior of one data set by importance resampling, out of ten times as many of the guide.

        Args:
            observations: The data set, as for :meth:`AmortizedFlow.sample`.
            num_samples: Number S of draws, taken with replacement.
            seed: Makes them reproducible.

        Returns:
            A value ``(S, site shape)`` per latent site.

        Raises:
            ValueError: As :meth:`diagnose`.

        Example:
            See :meth:`diagnose`.
        """
        check_count("num_samples", num_samples)
        draws, latents, log_p, log_q = weighted_draws(self._trained, observations, max(10 * num_samples, 10_000), seed)
        generator = torch.Generator(device="cpu")
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        chosen = psis_resample(psis(usable_log_weights(log_p, log_q, latents)[0]).log_weights, num_samples, generator)
        return {name: value[chosen.to(value.device)] for name, value in draws.items()}

    @property
    def _trained(self) -> AmortizedFlow:
        if self.guide is None:
            raise ValueError("this record has no guide; take the one that fit_amortized returned")
        return self.guide


def fit_amortized(
    guide: AmortizedFlow,
    *args: Any,
    simulations: Simulations | None = None,
    num_simulations: int = 10_000,
    fresh: bool | None = None,
    warm_start: bool = False,
    objective: Literal["likelihood", "flow_matching"] = "likelihood",
    lr: float | None = None,
    batch_size: int = 256,
    max_epochs: int = 200,
    patience: int = 30,
    validation_share: float = 0.1,
    max_time: float | None = None,
    num_workers: int = 1,
    max_failed: float = 0.2,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | CheckpointFolder | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> AmortizedFit:
    r"""Train an amortised guide on draws of its model, by the forward divergence.

    It minimises :math:`E_{p(x)}\,\mathrm{KL}(p(z \mid x) \| q(z \mid x))`, that is, it maximises the likelihood of the latents.

    Each member is fitted to its own split of the simulations. It starts at the best truncated linear Gaussian, then Adam trains all
    of it, with a step size that warms up and decays along a cosine. It ends with the state that did best on the rows held out, the
    start included. Ctrl-C ends training at the best state so far.

    Args:
        guide: The guide; set up anew on the simulations unless ``warm_start``.
        args: Arguments of the model; the data may be among them, or None in their place.
        simulations: What to train on; None to draw ``num_simulations`` from the model.
        num_simulations: Number of draws where there are no ``simulations``; in every epoch, if they are fresh.
        fresh: Whether to draw the training rows anew for every epoch, so that there is no overfitting; the rows held out stay. None
            for doing so where no ``simulations`` are given and the model makes all draws at once.
        warm_start: Whether to go on from the guide's parameters and standardisation, as after training by the ELBO.
        objective: ``"likelihood"``; or ``"flow_matching"``, for a guide whose flow is continuous (``flow="cnf"``): a regression for
            its velocity, many times faster than likelihood, which solves for it; the regression around the flow stays as it starts.
        lr: Largest step size of Adam; None for 0.003, or 0.01 of flow matching.
        batch_size: Rows per step.
        max_epochs: Passes over the training rows.
        patience: Epochs without progress on the rows held out before training stops.
        validation_share: Share of the simulations that is held out.
        max_time: Seconds of training after which the members end at their best states; None for no limit.
        num_workers: Processes for a simulator; -1 for one per core.
        max_failed: Share of the simulations that may fail, see :func:`~pyro_flows.model.simulate`.
        seed: Makes the result reproducible and leaves the global generators as they were.
        progress: Show a progress bar.
        checkpoint: Folder in which the run notes what it has done, and from which it goes on if it was killed and is called again
            with the same arguments; see :class:`~pyro_flows.infer.CheckpointFolder`. None for none.
        kwargs: Keyword arguments of the model.

    Returns:
        Losses, the simulations, and why training stopped.

    Raises:
        ValueError: If an argument is not as described, the model cannot be simulated, or the simulations do not fit the guide.
        ArithmeticError: If a tenth of the steps is not finite.

    References:
        Papamakarios, Murray (2016), https://arxiv.org/abs/1605.06376;
        Greenberg, Nonnenmacher, Macke (2019), *Automatic posterior transformation for likelihood-free inference*,
        https://arxiv.org/abs/1905.07488;
        Dax, Wildberger, Buchholz, Green, Macke, Schölkopf (2023), *Flow matching for scalable simulation-based inference*,
        https://arxiv.org/abs/2305.17161

    Example:
        >>> def model(y=None):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
        >>> guide = pf.AmortizedFlow(model, observed=["y"])
        >>> fit = fit_amortized(guide, num_simulations=500, max_epochs=2, seed=0, progress=False)
        >>> bool((guide.sample(torch.ones(3), 1000, seed=0)["mean"].mean() - 0.75).abs() < 0.15)
        True
    """
    _check_arguments(guide, simulations, seed)
    if objective not in ("likelihood", "flow_matching"):
        raise ValueError(f'objective must be "likelihood" or "flow_matching", got {objective!r}')
    lr = (1e-2 if objective == "flow_matching" else 3e-3) if lr is None else lr
    check_likelihood_options(lr, batch_size, max_epochs, patience, validation_share, max_time)
    given = None if simulations is None else [simulations.latents, simulations.observations]

    def identity() -> dict[str, str]:
        return {
            "arguments": digest([args, kwargs]),
            "simulations": digest([given, num_simulations, fresh, max_failed]),
            "options": digest([objective, warm_start, validation_share, lr, batch_size, max_epochs, patience]),
            "seed": str(seed),
        }

    with seeded(seed), checkpoints(checkpoint, identity):
        target = guide.read(*args, **dict(kwargs or {}))
        if simulations is None:
            options: dict[str, Any] = {"num_workers": num_workers, "max_failed": max_failed, "progress": progress}
            drawn = remembered("simulations", lambda: vars(draw(target, num_simulations, **options)), target.structure.device)
            simulations = Simulations(**drawn)
            if fresh is None:
                fresh = simulations.path in ("vmap", "plate")
        if not warm_start or guide.prototype_trace is None:
            guide.setup_on(simulations, target)
        start_from("guide", guide)
        return _train(
            guide,
            simulations,
            target if fresh else None,
            objective,
            lr=lr,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            validation_share=validation_share,
            max_time=max_time,
            progress=progress,
            from_regression=not warm_start,
        )


def _check_arguments(guide: Any, simulations: Any, seed: Any) -> None:
    if not isinstance(guide, AmortizedFlow):
        raise ValueError(f"guide must be an AmortizedFlow, got {type(guide).__name__}; pf.fit trains other guides")
    if simulations is not None and not isinstance(simulations, Simulations):
        raise ValueError(f"simulations must be what pf.simulate returns, or None, got {type(simulations).__name__}")
    check_seed(seed)


def _train(
    guide: AmortizedFlow,
    simulations: Simulations,
    target: SimulationTarget | None,
    objective: str,
    *,
    max_epochs: int,
    max_time: float | None,
    validation_share: float,
    from_regression: bool,
    progress: bool,
    **options: Any,
) -> AmortizedFit:
    began = time.monotonic() - seconds_before(current_folder())
    flat, vector = _rows(guide, simulations)
    held_out = max(1, round(validation_share * len(flat)))
    if len(flat) - held_out < 2:
        raise ValueError(f"simulations hold {len(flat)} draws, too few to train on and to hold some out; give more")
    done = AmortizedFit(simulations, fresh=target is not None, guide=guide)
    with tqdm(total=guide.num_members * max_epochs, desc="fit_amortized", unit="epoch", disable=not progress) as bar:
        for i in range(guide.num_members):
            order = torch.randperm(len(flat), device=flat.device)
            train, held = order[held_out:], order[:held_out]
            if from_regression:
                with torch.no_grad():
                    features = guide.features(i, vector[train])
                guide.member(i).flow.initialize(guide.standard.inverse_and_log_det(flat[train])[0], features)
            run = maximise_likelihood(
                guide.member(i),
                _loss_of(guide, i, objective),
                (flat[train], vector[train]),
                (flat[held], vector[held]),
                max_epochs=max_epochs,
                limit=None if max_time is None else began + max_time * (i + 1) / guide.num_members,
                bar=bar,
                hint="lower lr, or look for simulated data of very different magnitudes, which standardisation does not bring "
                "together: take their logarithms in the model",
                renew=None if target is None else _renewal(guide, target, len(train)),
                **options,
            )
            done.losses.append(run.losses)
            done.validation_losses.append(run.validation_losses)
            done.best_epochs.append(run.best_epoch)
            done.skipped += run.skipped
            done.stop_reason = run.stop_reason
            if done.stop_reason == "interrupted":
                break
    if len(vector) >= 20:
        guide.set_typicality(simulations.observations)
    done.seconds = time.monotonic() - began
    return done


def _loss_of(guide: AmortizedFlow, number: int, objective: str) -> Callable[[Tensor, Tensor], Tensor]:
    if objective == "flow_matching":
        matching = flow_matching_loss(guide.member(number).distribution)
        return lambda flat, vector: matching(flat, guide.features(number, vector))

    def loss(flat: Tensor, vector: Tensor) -> Tensor:
        posterior = guide.member(number).distribution.condition(guide.features(number, vector))
        return -posterior.log_prob(flat).mean()

    return loss


def _renewal(guide: AmortizedFlow, target: SimulationTarget, count: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: _rows(guide, draw(target, count))


def _rows(guide: AmortizedFlow, simulations: Simulations) -> tuple[Tensor, Tensor]:
    """Flat latents ``(S, D)`` and standardised observations ``(S, P)``."""
    expected = {site.name: tuple(site.shape) for site in guide.structure.sites}
    found = {name: tuple(value.shape[1:]) for name, value in simulations.latents.items()}
    if found != expected:
        raise ValueError(f"simulations have latents of the shapes {found}, the guide expects {expected}")
    flat = FlatLatents(guide.structure).unconstrain(simulations.latents)
    if not bool(torch.isfinite(flat).all()):
        raise ValueError(f"{int((~torch.isfinite(flat).all(-1)).sum())} simulations have latents on the edge of their support")
    return flat, guide.standardised(simulations.observations)
