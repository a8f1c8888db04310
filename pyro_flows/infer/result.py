"""``Fit``: what came out of a fit, and what can be asked of it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_flows.diagnostics import (
    Diagnosis,
    Loo,
    Pit,
    Report,
    Sensitivity,
    diagnose,
    from_groups,
    psis,
    psis_resample,
    to_inference_data,
    usable_log_weights,
)
from pyro_flows.distributions import GaussianMixture
from pyro_flows.guides import AutoFlow, AutoPlateFlow
from pyro_flows.guides.flow_guide import check_exact_density
from pyro_flows.guides.plate_joint import PlateJoint
from pyro_flows.model import LogJoint, predictive, read_model
from pyro_flows.model.held_parameters import HeldParameters
from pyro_flows.model.seeding import seeded

from .arguments import check_count, check_seed
from .fit_checks import checked_draws, leave_one_out_of, power_scaled, predictive_shares
from .fit_report import report_of
from .neural_transport import neural_transport

if TYPE_CHECKING:
    from .descent import Training


class Fit:
    """A trained guide with the model and data that it was trained on. Made by :func:`pyro_flows.fit`.

    Attributes:
        guide: The guide, usable in plain Pyro.
        losses: Negative ELBO estimate of every step, in nats.
        stop_reason: Why training ended.
        record: Paths and choices taken, and why: ``start``, the Gaussian that training began with, of all in ``starts`` with their
            ELBOs, and the sites that are ``non_centred`` in it; ``rungs``, the guides that were tried and what became of them; the
            ``flow`` that was kept; ``missed_modes``; the ``path`` by which the model is evaluated and its ``path_reasons``; the
            ``steps``, those ``skipped`` because they were not finite, the ``draws`` of training and those ``dropped`` from a step.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(2.0, 1.0))
        >>> result = pf.fit(model, guide="affine", max_steps=300, seed=0, progress=False)
        >>> result.sample(5, seed=1)["x"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        guide: AutoFlow | AutoPlateFlow,
        log_joint: LogJoint | None,
        training: Training,
        record: dict[str, Any],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.guide = guide
        self._log_joint = log_joint
        self._joint: PlateJoint | None = None
        self.losses = training.losses
        self.stop_reason = training.stop_reason
        self.record = record
        # What the model has learnt stays with the fit, whatever becomes of Pyro's store.
        names = record.get("model_parameters", [])
        self._model = HeldParameters(model, names) if names else model
        self._args, self._kwargs = args, kwargs
        if log_joint is not None:
            log_joint.model = self._model

    def __repr__(self) -> str:
        keys = ("flow", "dim", "start", "path", "steps", "stop_reason")
        return f"Fit({', '.join(f'{key}={self.record.get(key)!r}' for key in keys)})"

    @property
    def log_joint(self) -> LogJoint:
        """Log joint density of latents and all the data.

        Raises:
            ValueError: If the guide is one of plates, and the model draws minibatches of its local latents at the arguments of the
                fit.
        """
        if self._log_joint is None:
            structure = read_model(self._model, self._args, self._kwargs, allow_local=True).with_charts(self.guide.charts)
            if structure.local_sites:
                raise ValueError(
                    f"plates {list(structure.subsampled)} draw minibatches at the arguments of the fit, so that there is no "
                    f"verdict on all the data; call fit with arguments at which the plates are whole, and give those of the "
                    f"steps by minibatches="
                )
            self._log_joint = LogJoint(self._model, self._args, self._kwargs, structure)
            self.record.setdefault("dim", structure.dim)
        return self._log_joint

    @property
    def _q(self) -> Any:
        """The guide as a distribution of flat unconstrained vectors."""
        if isinstance(self.guide, AutoFlow):
            return self.guide.distribution
        if self._joint is None:
            _ = self.log_joint  # refuses minibatches
            self._joint = PlateJoint(self.guide, self._args, self._kwargs)
        return self._joint

    @property
    def _chunk(self) -> int:
        """Draws for which the model is run at once."""
        structure = self.log_joint.structure
        width = max([structure.dim, *(value.numel() for value in structure.observed.values())])
        return max(16, min(4096, 8_000_000 // width))

    def _latents(self, num_samples: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Unconstrained draws ``(S, D)`` and their log-density under the guide ``(S,)``."""
        check_count("num_samples", num_samples)
        check_seed(seed)
        q = self._q  # made at first use, with random numbers of its own
        with seeded(seed), torch.no_grad():
            return q.rsample_and_log_prob((num_samples,))  # type: ignore[no-any-return]

    def _weighted(self, num_samples: int, seed: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Draws, and log-densities in float64 under the model (joint with the data) and under the guide."""
        check_exact_density(self.guide)
        latents, log_q = self._latents(num_samples, seed)
        with torch.no_grad():
            log_p = torch.cat([self.log_joint.full(chunk) for chunk in latents.split(self._chunk)])
        return latents, log_p.double(), log_q.double()

    @torch.no_grad()
    def _values(self, latents: Tensor) -> dict[str, Tensor]:
        chunks = [self.log_joint.constrained(chunk) for chunk in latents.split(self._chunk)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def sample(self, num_samples: int, seed: int | None = None) -> dict[str, Tensor]:
        """Draws from the guide, latent and deterministic sites, in the model's own space.

        Args:
            num_samples: Number S of draws.
            seed: Makes them reproducible and leaves the global generators as they were.

        Returns:
            A tensor ``(S, site shape)`` per site.

        Raises:
            ValueError: If ``num_samples`` is not a positive integer.
        """
        return self._values(self._latents(num_samples, seed)[0])

    def diagnose(self, num_samples: int = 10_000, seed: int | None = 0, posterior: Mapping[str, Tensor] | None = None) -> Diagnosis:
        """Whether to trust the fit, from importance weights of draws of its own.

        Shifts of means and sds are looked at in unconstrained coordinates and in the model's own.

        Args:
            num_samples: Number of draws.
            seed: Seed of these draws.
            posterior: Draws of the posterior ``(M, site shape)`` by latent site, such as those of a long MCMC run; they give the
                evidence upper bound, which sees what the guide misses altogether.

        Returns:
            Figures, verdict and advice.

        Raises:
            ValueError: If ``posterior`` lacks a site, has one of another shape, or values outside its support.
        """
        check_count("num_samples", num_samples, 2)
        return self._judge(*self._weighted(num_samples, seed), posterior)

    def _judge(self, latents: Tensor, log_p: Tensor, log_q: Tensor, posterior: Mapping[str, Tensor] | None = None) -> Diagnosis:
        """The diagnosis from draws and their log-densities."""
        diagnosis = diagnose(
            log_p,
            log_q,
            draws=self._both_coordinates(latents),
            stop_reason=self.stop_reason,
            posterior_log_weights=None if posterior is None else self._posterior_log_weights(posterior),
        )
        missed = self.record.get("missed_modes") or []
        if missed:
            missing = math.log(sum(math.exp(mode["log_evidence"] - missed[0]["log_evidence"]) for mode in missed))
            share = 1 / (1 + math.exp(min(diagnosis.log_evidence - missed[0]["log_evidence"] - missing, 700.0)))
            diagnosis = replace(
                diagnosis,
                verdict="poor",
                advice=f"The guide misses at least {share:.0%} of the posterior, at {len(missed)} places where it has no draws "
                "(fit.record['missed_modes']). Fit from each of them (init=) and compare the evidence.",
            )
        if "missed_modes" not in self.record:
            minibatches = "plates draw minibatches" if self.log_joint.structure.subsampled else "the fit was interrupted"
            why = self.record.get("missed_modes_not_sought", minibatches)
            diagnosis = replace(diagnosis, advice=f"{diagnosis.advice} Modes that the guide misses were not looked for: {why}.")
        if diagnosis.num_nonfinite and self.log_joint.raised:
            words, times = self.log_joint.raised.most_common(1)[0]
            note = f" It raised {words} ({times:,} times, with training): draws where it does count as impossible."
            diagnosis = replace(diagnosis, advice=diagnosis.advice + note)
        if isinstance(self.guide, AutoPlateFlow) and diagnosis.verdict != "good":
            note = (
                f" The weights are those of all {latents.shape[1]} latents together, stricter than for any one of them; where no "
                f"latent is outside of a plate, evaluate_nll(..., plate=name) weighs element by element. What helps a guide of "
                f"plates: a smaller step with more patience (schedule=Schedule(lr=3e-3, patience=20)), wider rows or a better "
                f"encoder."
            )
            diagnosis = replace(diagnosis, advice=diagnosis.advice + note)
        learnt = self.record["model_parameters"]
        if diagnosis.verdict == "good" and learnt and self.stop_reason in ("max_steps", "max_time", "interrupted"):
            note = f" Training ended by {self.stop_reason}: the model's parameters {learnt} may not have converged, which weights "
            diagnosis = replace(diagnosis, advice=diagnosis.advice + note + "do not show.")
        return diagnosis

    @torch.no_grad()
    def _both_coordinates(self, latents: Tensor) -> Tensor:
        """Latents ``(S, D)`` beside their values in the model's own space where these differ, ``(S, K)``, float64."""
        values = self.log_joint.latents.constrain(latents)[0]
        own = [value.double().reshape(len(latents), -1) for value in values.values()]
        columns = [latents.double()]
        for site, flat in zip(self.log_joint.structure.sites, own, strict=True):
            free = latents[:, site.start : site.stop].double()
            if flat.shape != free.shape or not torch.equal(flat, free):
                columns.append(
                    flat.nan_to_num(0.0, 1e150, -1e150).clamp(-1e150, 1e150)
                )  # what overflows has a variance all the same
        return torch.cat(columns, 1)

    @torch.no_grad()
    def _posterior_log_weights(self, posterior: Mapping[str, Tensor]) -> Tensor:
        """Log-weights at draws that are given."""
        if not isinstance(posterior, Mapping):
            raise ValueError(f"posterior must be a dictionary of draws by latent site, got {type(posterior).__name__}")
        try:
            latents = self.guide.unconstrain(posterior, *self._args, **self._kwargs)
        except ValueError as error:
            raise ValueError(f"posterior: {error}") from error
        if latents.dim() != 2 or len(latents) < 2:
            raise ValueError(
                f"posterior must hold draws (M, site shape) with M of at least 2, got batch {tuple(latents.shape[:-1])}"
            )
        chunks = [(self.log_joint.full(part), self._q.log_prob(part)) for part in latents.split(self._chunk)]
        return torch.cat([log_p.double() - log_q.double() for log_p, log_q in chunks])

    def resample(self, num_samples: int, *, num_proposals: int | None = None, seed: int | None = None) -> dict[str, Tensor]:
        """Draws by importance resampling with Pareto-smoothed weights, which corrects what error the guide has.

        Args:
            num_samples: Number of draws, taken with replacement.
            num_proposals: Number of draws of the guide to choose from; by default ten times as many, at least 10,000.
            seed: Makes them reproducible.

        Returns:
            A tensor ``(num_samples, site shape)`` per site. Draws at which the model has no log-density are never among them.

        Raises:
            ValueError: If a number is no positive integer, or no draw has any posterior density.
        """
        check_count("num_samples", num_samples)
        proposals = max(10 * num_samples, 10_000) if num_proposals is None else num_proposals
        check_count("num_proposals", proposals, 2)
        latents, log_p, log_q = self._weighted(proposals, seed)
        return self._values(latents[self._indices(usable_log_weights(log_p, log_q, latents)[0], num_samples, seed)])

    @staticmethod
    def _indices(log_weights: Tensor, num_samples: int, seed: int | None) -> Tensor:
        generator = torch.Generator(device="cpu")
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return psis_resample(psis(log_weights).log_weights, num_samples, generator)

    def predict(
        self, num_samples: int, *args: Any, resample: str | None = None, seed: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Posterior predictive draws of the observed sites, with the deterministic ones.

        Args:
            num_samples: Number S of draws.
            args: Arguments of the model, such as new covariates, with None in place of the data where it takes that; those of
                the fit if none are given. A guide of plates draws the latents of the elements of these arguments, new ones by its
                encoder.
            resample: ``"psis"`` draws latents by their Pareto-smoothed weights, as :meth:`resample` does, which corrects what
                error the guide has; with None they are the guide's.
            seed: Makes them reproducible.
            kwargs: Arguments of the model by name; those of the fit, with these in place, if no ``args`` are given.

        Returns:
            A tensor ``(S, site shape)`` per observed and deterministic site.

        Raises:
            ValueError: If an argument is not as described, or the model raises.
        """
        check_count("num_samples", num_samples)
        check_seed(seed)
        if resample not in (None, "psis"):
            raise ValueError(f"resample must be None or 'psis', got {resample!r}")
        others = bool(args or kwargs)
        if not args:
            args, kwargs = self._with_arguments(kwargs)
        if isinstance(self.guide, AutoPlateFlow) and others:
            if resample is not None:
                raise ValueError("resample: draws for elements of other arguments have no weights; leave it out")
            drawn = [p.name for p in self.guide.look(*args, **kwargs).calls.values() if not p.given and p.count != p.size]
            if drawn:
                raise ValueError(
                    f"plates {drawn} draw minibatches at these arguments, and latents of one would meet the data of another; give "
                    f"arguments at which the plates are whole, or pass their indices"
                )
            with seeded(seed):
                values = self.guide.sample(num_samples, *args, **kwargs)
        elif resample is not None:
            drawn_values = self.resample(num_samples, seed=seed)
            values = {site.name: drawn_values[site.name] for site in self.log_joint.structure.sites}
        else:
            latents, _ = self._latents(num_samples, seed)
            with torch.no_grad():
                values = self.log_joint.latents.constrain(latents)[0]
        return predictive(self._model, values, args, kwargs, seed=seed, deterministic=True)

    def _with_arguments(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the fit, with those in place that are given by name."""
        try:
            bound = inspect.signature(self._model).bind(*self._args, **self._kwargs)
        except (TypeError, ValueError):  # a callable that has no signature
            return self._args, {**self._kwargs, **given}
        named = {name for name in given if name in bound.arguments}
        bound.arguments.update({name: given[name] for name in named})
        return bound.args, {**bound.kwargs, **{name: value for name, value in given.items() if name not in named}}

    def refine_mcmc(
        self,
        num_samples: int = 1000,
        *,
        num_chains: int = 4,
        warmup_steps: int = 300,
        target_accept: float = 0.8,
        kernel: str = "nuts",
        seed: int | None = 0,
        progress: bool = True,
        dims: Mapping[str, list[str]] | None = None,
        coords: Mapping[str, Any] | None = None,
    ) -> Any:
        r"""Draws of the posterior itself, by MCMC in the latent space of the flow (neural transport).

        The flow makes the posterior easy for Hamiltonian Monte Carlo; what error the flow has, the chains correct. Their R-hat and
        effective sample size, from arviz, mean what they always mean.

        Args:
            num_samples: Draws per chain after warm-up, at least 4.
            num_chains: Number of chains.
            warmup_steps: Steps that adapt step size and mass, and are thrown away.
            target_accept: Acceptance probability to which the step size is adapted.
            kernel: ``"nuts"``, or ``"hmc"`` with trajectories of length :math:`\pi/2`, which takes fewer gradients and trusts the
                flow more.
            seed: Makes the draws reproducible.
            progress: Show a progress bar.
            dims: Names of dimensions per site; by default those of the plates.
            coords: Coordinates of named dimensions.

        Returns:
            Arviz data, ``(num_chains, num_samples)`` draws of every site, with ``sample_stats.diverging`` and ``sample_stats.lp``,
            and the number of gradients taken in the attribute ``num_gradients``.

        Raises:
            ValueError: If an argument is not as described, the model's plates draw minibatches, or the guide is a flow over several
                modes.

        References:
            Hoffman et al. (2019), *NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural transport*,
            https://arxiv.org/abs/1903.03704
        """
        for name, value, least in (
            ("num_samples", num_samples, 4),
            ("num_chains", num_chains, 1),
            ("warmup_steps", warmup_steps, 1),
        ):
            check_count(name, value, least)
        if not (isinstance(target_accept, (int, float)) and 0 < target_accept < 1):
            raise ValueError(f"target_accept must lie between 0 and 1, got {target_accept!r}")
        check_seed(seed)
        if self.log_joint.structure.subsampled:
            plates = list(self.log_joint.structure.subsampled)
            raise ValueError(f"plates {plates} draw minibatches, which give a chain no density; fit with all the data")
        if isinstance(self.guide, AutoPlateFlow):
            raise ValueError(
                "a guide of plates gives no map to a latent space for chains; fit an AutoFlow, or run NUTS on the model"
            )
        if isinstance(self.guide.get_base_dist(), GaussianMixture):
            raise ValueError(
                "the guide has several modes, between which a chain does not move, though its R-hat may look good; "
                "take fit.resample, which weights them rightly"
            )
        with seeded(seed):
            chains = neural_transport(
                self.guide.distribution,
                self.log_joint,
                num_samples=num_samples,
                num_chains=num_chains,
                warmup_steps=warmup_steps,
                target_accept=target_accept,
                kernel=kernel,
                progress=progress,
            )
        flat = chains.latents.flatten(0, 1)
        with torch.no_grad():
            log_p = torch.cat([self.log_joint(part) for part in flat.split(self._chunk)])
            log_likelihood = self.log_joint.log_likelihood(flat)
        shape = (num_chains, num_samples)

        def by_chain(values: Mapping[str, Tensor]) -> dict[str, Any]:
            return {name: value.detach().cpu().reshape(shape + value.shape[1:]).numpy() for name, value in values.items()}

        return from_groups(
            {
                "posterior": by_chain(self._values(flat)),
                "log_likelihood": by_chain(log_likelihood),
                "sample_stats": by_chain({"lp": log_p, "diverging": chains.diverging.flatten()}),
                "observed_data": {k: v.detach().cpu().numpy() for k, v in self.log_joint.structure.observed.items()},
            },
            coords=coords,
            dims={**self.log_joint.structure.named_dims, **(dims or {})},
            attrs={"inference_library": "pyro_flows", "kernel": kernel, "num_gradients": chains.num_gradients},
        )

    def loo(self, num_samples: int = 10_000, *, seed: int | None = 0) -> Loo:
        """Leave-one-out cross-validation of the posterior, the guide corrected by its weights; see
        :func:`~pyro_flows.diagnostics.loo`.

        Every element of every observed site is one observation.

        Args:
            num_samples: Number of draws.
            seed: Of the draws.

        Raises:
            ValueError: If the model has no data, or its plates draw minibatches.

        Example:
            >>> def model(y):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(y)):
            ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            >>> done = pf.fit(model, torch.tensor([1.0, 2.0, 3.0]), guide="affine", max_steps=100, seed=0, progress=False)
            >>> done.loo(2000).pointwise.shape
            torch.Size([3])
        """
        check_count("num_samples", num_samples, 100)
        return leave_one_out_of(self, checked_draws(self, num_samples, seed))

    def pit(self, num_samples: int = 4000, *, leave_one_out: bool = True, site: str | None = None, seed: int | None = 0) -> Pit:
        """Share of the predictive distribution below each observation, uniform if predictions are right; see
        :func:`~pyro_flows.diagnostics.pit`.

        Args:
            num_samples: Number of draws.
            leave_one_out: Whether each element of an observed site is predicted from the others alone.
            site: An observed site; None for all of them together. Components of vectors are looked at one by one.
            seed: Of the draws.

        Raises:
            ValueError: If the model has no such site, or its plates draw minibatches.

        Example:
            >>> def model(y):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(y)):
            ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            >>> done = pf.fit(model, 5 * torch.randn(50), guide="affine", max_steps=100, seed=0, progress=False)
            >>> print(done.pit(2000).sentence.split(" (")[0])
            Predictions are too narrow
        """
        check_count("num_samples", num_samples, 100)
        return predictive_shares(self, checked_draws(self, num_samples, seed), leave_one_out, site, seed)

    def prior_sensitivity(self, num_samples: int = 4000, *, seed: int | None = 0) -> Sensitivity:
        """Whether conclusions hang on the prior: how the posterior changes as prior or likelihood get a little stronger.

        Draws are resampled by their weights, and arviz computes the sensitivities. The prior is that of the latents which hang on
        no others: what a hierarchical model says of its effects is part of the model, not of what was believed before.

        Args:
            num_samples: Number of draws.
            seed: Of the draws.

        Raises:
            ValueError: If the model has no data, or its plates draw minibatches.

        Example:
            >>> def model(y):
            ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
            ...     pyro.sample("y", dist.Normal(x, 10.0), obs=y)
            >>> done = pf.fit(model, torch.tensor(3.0), guide="affine", max_steps=300, seed=0, progress=False)
            >>> done.prior_sensitivity().matters
            ['x']
        """
        check_count("num_samples", num_samples, 100)
        return power_scaled(self, num_samples, seed)

    def report(
        self, path: str | Path | None = None, *, num_samples: int | None = None, title: str | None = None, seed: int | None = 0
    ) -> Report:
        """All that a referee would ask, in one file for a browser: verdict, training, posterior, predictions, prior, settings.

        The file needs nothing else, no network either. ``print`` of what is returned gives the same as text. What cannot be
        answered for a model is left out, and the reason stands in its place.

        Args:
            path: The file, such as ``"report.html"``; None to write none.
            num_samples: Draws that it rests on; by default 10,000, fewer where a draw is large.
            title: Its title; by default the name of the model.
            seed: Of the draws.

        Returns:
            The report; ``print`` it, or :meth:`~pyro_flows.diagnostics.Report.save` it later.

        Raises:
            ValueError: If the folder of ``path`` does not exist, or ``num_samples`` is below 100.

        Example:
            >>> def model(y):
            ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
            ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
            >>> done = pf.fit(model, torch.tensor(1.0), guide="affine", max_steps=300, seed=0, progress=False)
            >>> print(str(done.report(num_samples=1000)).splitlines()[0])
            Posterior of model: good
        """
        if num_samples is not None:
            check_count("num_samples", num_samples, 100)
        check_seed(seed)
        if path is not None and not Path(path).parent.is_dir():
            raise ValueError(f"path must be a file in a folder that exists, got {path}; make {Path(path).parent} first")
        if path is not None and Path(path).is_dir():
            raise ValueError(f"path must be a file, such as report.html, got the folder {path}")
        found = report_of(self, num_samples, title, seed)
        if path is not None:
            found.save(path)
        return found

    def save(self, path: str | Path, *, draws: int = 0, overwrite: bool = False) -> Path:
        """Save the fit in a folder, without pickle; ``pf.load(path, model, *args)`` brings it back. See
        :func:`~pyro_flows.infer.save`.

        Args:
            path: The folder, made by this call in one that exists.
            draws: Number of draws that are written to ``draws.nc``, for arviz; none if 0.
            overwrite: Whether a folder of a fit may be replaced.

        Returns:
            The path.

        Raises:
            ValueError: If there is something at the path, or the guide holds what a file cannot describe.

        Example:
            See :func:`~pyro_flows.infer.load`.
        """
        from .saved import save  # which needs this class

        return save(self, path, draws=draws, overwrite=overwrite)

    def to_arviz(
        self,
        num_samples: int = 4000,
        *,
        resample: str | None = None,
        predict: bool = True,
        seed: int | None = 0,
        dims: Mapping[str, list[str]] | None = None,
        coords: Mapping[str, Any] | None = None,
    ) -> Any:
        """The fit as arviz data: ``InferenceData`` under arviz 0.x, ``DataTree`` under 1.x.

        Args:
            num_samples: Number of draws.
            resample: ``"psis"`` to draw by Pareto-smoothed importance resampling from ten times as many; None for
                draws of the guide.
            predict: Add posterior predictive draws.
            seed: Seed of the draws.
            dims: Names of dimensions per site; by default those of the plates.
            coords: Coordinates of named dimensions.

        Returns:
            Groups ``posterior``, ``log_likelihood``, ``posterior_predictive``, ``observed_data`` and ``sample_stats``, with the
            settings of the fit as attributes. A model whose plates draw minibatches has the first and the last: what the others
            would hold belongs to random rows.

        Raises:
            ValueError: If ``resample`` is neither None nor ``"psis"``.
        """
        if resample not in (None, "psis"):
            raise ValueError(f"resample must be None or 'psis', got {resample!r}")
        check_count("num_samples", num_samples)
        latents, log_p, log_q = self._weighted(num_samples * (10 if resample else 1), seed)
        log_weight = usable_log_weights(log_p, log_q, latents)[0]
        if resample:
            keep = self._indices(log_weight, num_samples, seed)
            latents, log_p, log_q, log_weight = latents[keep], log_p[keep], log_q[keep], log_weight[keep]
        attributes = {
            key: value if isinstance(value, (str, int, float)) else json.dumps(value) for key, value in self.record.items()
        }
        attributes["resample"] = str(resample)
        minibatch = bool(self.log_joint.structure.subsampled)
        predict = predict and not minibatch
        with torch.no_grad():
            log_likelihood = {} if minibatch else self.log_joint.log_likelihood(latents)
            values = self.log_joint.latents.constrain(latents)[0]
        return to_inference_data(
            self._values(latents),
            log_likelihood=log_likelihood,
            posterior_predictive=predictive(self._model, values, self._args, self._kwargs, seed=seed) if predict else None,
            observed_data={} if minibatch else dict(self.log_joint.structure.observed),
            log_p=log_p,
            log_q=log_q,
            log_weight=log_weight,
            attrs=attributes,
            dims={**self.log_joint.structure.named_dims, **(dims or {})},
            coords=coords,
        )
