"""Maximum likelihood of a flow on data: the twin of ``fit`` for densities."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_flows.diagnostics.printed import Printed
from pyro_flows.distributions import FlowDistribution, FlowMixture
from pyro_flows.flows.registry import FlowFactory, build
from pyro_flows.manifolds.sphere import SPHERE
from pyro_flows.manifolds.torus import circles_of
from pyro_flows.model.seeding import seeded
from pyro_flows.nn import Standardised
from pyro_flows.transforms import CNF, Compose, ContextMap, FlowTransform, LowerCholeskyAffine, record_costs
from pyro_flows.transforms.actnorm import initialize_actnorms
from pyro_flows.transforms.supports import is_real

from .arguments import check_count, check_seed
from .checkpoint_folder import CheckpointFolder
from .digest import digest
from .flow_matching import ProbabilityPath, flow_matching_loss
from .free_form import free_form_loss
from .maximum_likelihood import LikelihoodRun, check_likelihood_options, maximise_likelihood
from .mixture_likelihood import expectation_maximisation, separate_members
from .noted_run import checkpoints, done_once, seconds_before, start_from

#: Rows that are scored at once.
_PART = 2048
#: Rows from which quartiles are taken.
_QUARTILES = 100_000
#: Rows from which ActNorm layers start.
_START = 2048


@dataclass
class DensityFit(Printed):
    """A flow that was fitted to data.

    Args:
        distribution: The density, in the units of the data; conditional, if the data had a context.
        run: Losses per row, in nats unless it is flow matching, and why training stopped.
        objective: What was minimised.
        seconds: Seconds that training took.
        held_out: Mean log-density of the rows held out, in nats, in the end.

    Example:
        See :func:`fit_density`.
    """

    distribution: FlowDistribution | FlowMixture = field(repr=False)
    run: LikelihoodRun = field(repr=False)
    objective: str = "likelihood"
    seconds: float = 0.0
    held_out: float = math.nan

    def __str__(self) -> str:
        run, event = self.run, tuple(self.distribution.event_shape)
        return (
            f"density of events {event} by {self.objective}: mean log-density {self.held_out:.4g} nats of rows held out, "
            f"after {run.best_epoch} of {len(run.losses)} epochs ({run.stop_reason}, {self.seconds:.0f} s)"
        )

    @property
    def losses(self) -> list[float]:
        """Mean loss of the training rows in each epoch: negative log-density in nats, or that of flow matching."""
        return self.run.losses

    @property
    def validation_losses(self) -> list[float]:
        """The same of the rows held out, at the start and after each epoch."""
        return self.run.validation_losses

    @property
    def stop_reason(self) -> str:
        """``"max_epochs"``, ``"no_progress"``, ``"max_time"`` or ``"interrupted"``."""
        return self.run.stop_reason

    def _at(self, context: Tensor | None) -> FlowDistribution | FlowMixture:
        wanted = 0 if isinstance(self.distribution, FlowMixture) else self.distribution.transform.context_dim
        if (context is None) != (wanted == 0):
            raise ValueError(f"context: the flow was fitted with context_dim={wanted}, got {'none' if context is None else 'one'}")
        if context is None or isinstance(self.distribution, FlowMixture):
            return self.distribution
        return self.distribution.condition(context)

    @torch.no_grad()
    def log_prob(self, data: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(*)`` in nats of points ``(*, D)`` or images, in parts, for their memory.

        Args:
            data: The points.
            context: Their contexts ``(*, C)``, if the flow has any.

        Raises:
            ValueError: If a shape does not fit, or there is no context where one is wanted.
        """
        self._at(context)
        event = tuple(self.distribution.event_shape)
        batch = torch.broadcast_shapes(data.shape[: data.dim() - len(event)], () if context is None else context.shape[:-1])
        if not batch or not batch.numel():
            return self._at(context).log_prob(data)
        data = data.expand(*batch, *event)
        contexts = [None] * len(data) if context is None else context.expand(*batch, -1).split(_PART)
        parts = zip(data.split(_PART), contexts, strict=False)
        return torch.cat([self._at(given).log_prob(part) for part, given in parts])

    @torch.no_grad()
    def sample(self, num_samples: int, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draws ``(num_samples, *, D)``, for each row of a context ``(*, C)``.

        Args:
            num_samples: Number of draws.
            context: Context, if the flow has any.
            seed: Makes them reproducible and leaves the global generators as they were.

        Raises:
            ValueError: If ``num_samples`` is not a positive integer, or the context does not fit.
        """
        check_count("num_samples", num_samples)
        check_seed(seed)
        with seeded(seed):
            return self._at(context).sample((num_samples,))  # type: ignore[no-any-return]


def fit_density(
    flow: str | FlowFactory | FlowTransform | FlowDistribution | FlowMixture,
    data: Tensor,
    context: Tensor | None = None,
    *,
    objective: Literal["likelihood", "em", "flow_matching", "free_form"] = "likelihood",
    path: ProbabilityPath = "linear",
    regularise: Mapping[str, float] | None = None,
    flow_options: Mapping[str, Any] | None = None,
    steep: bool | None = None,
    standardise: bool | None = None,
    validation: tuple[Tensor, ...] | None = None,
    validation_share: float = 0.1,
    lr: float | None = None,
    batch_size: int | None = None,
    max_epochs: int = 200,
    patience: int = 30,
    max_time: float | None = None,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | CheckpointFolder | None = None,
) -> DensityFit:
    r"""Fit a flow to data by maximum likelihood, :math:`\max_\theta \sum_n \log q_\theta(x_n \mid c_n)`.

    Data and contexts are standardised inside, and ActNorm layers start from the data; densities are those of the data in their own
    units. Adam on minibatches, a step size that warms up and decays along a cosine, an early stop by rows held out, and the state
    that did best on these in the end. Ctrl-C ends training at the best state so far.

    Args:
        flow: Name of a registered flow, callable ``(input_dim, context_dim) -> FlowTransform``, transform from noise to data, or
            distribution with a base of its own, or mixture of flows; the last three are trained in place. A flow of images by name
            or callable gets their shape ``(C, H, W)`` as ``input_dim``.
        data: The points, ``(N, D)``, at least 10; or images, ``(N, C, H, W)``.
        context: A row of context for each, ``(N, C)``, for a conditional density.
        objective: ``"likelihood"``; ``"em"`` for a mixture: at the start of every epoch the responsibilities of its components, and
            weights that are their means; in it, steps on the likelihood that they weigh; ``"flow_matching"`` for a flow whose
            innermost layer is a :class:`~pyro_flows.transforms.CNF`: a regression for its velocity, without solving for it, see
            :func:`flow_matching_loss`; or ``"free_form"`` where it is a :class:`~pyro_flows.transforms.FreeForm`, see
            :func:`free_form_loss`.
        path: Of flow matching, ``"linear"``, ``"variance_preserving"`` or ``"optimal_transport"``.
        regularise: Weights of ``"kinetic_energy"`` and ``"jacobian_norm"`` of continuous flows in the loss, such as 0.03 of each,
            which make them easier to solve; see :func:`~pyro_flows.transforms.record_costs`.
        flow_options: Keyword arguments of a registered flow.
        steep: Whether networks of a flow by name or factory start with weights for densities with edges, see
            :meth:`~pyro_flows.nn.ColumnMLP.start_steep`; None for whether data are plenty, at least 500 rows to train on for each
            variable. With fewer the smooth start overfits less.
        standardise: Whether to bring every variable to mean 0 and standard deviation 1 before the flow. By default points are, and
            numbers beside angles; images, data of surjections, and points on spheres, tori and simplices are not.
        validation: Rows to hold out, ``(data,)`` or ``(data, context)``, in place of a share of ``data``.
        validation_share: Share of the rows that is held out.
        lr: Largest step size of Adam; None for 0.003, or 0.01 of flow matching.
        batch_size: Rows per step; None for 256, or of flow matching, whose steps are cheap and noisy, a sixteenth of the rows from
            256 to 2,048.
        max_epochs: Passes over the data.
        patience: Epochs without progress on the rows held out before training stops.
        max_time: Seconds after which training ends; None for no limit.
        seed: Makes the result reproducible and leaves the global generators as they were.
        progress: Show a progress bar.
        checkpoint: Folder in which the run notes what it has done, and from which it goes on if it was killed and is called again
            with the same arguments; see :class:`~pyro_flows.infer.CheckpointFolder`. None for none.

    Returns:
        The density, and how training went.

    Raises:
        ValueError: If an argument is not as described, data are not finite, or a variable does not vary.
        ArithmeticError: If a tenth of the steps of an epoch is not finite.

    References:
        Papamakarios et al. (2021), *Normalizing flows for probabilistic modeling and inference*, https://arxiv.org/abs/1912.02762

    Example:
        >>> data = torch.randn(500, 2) @ torch.tensor([[1.0, 2.0], [0.0, 0.5]]) + 3.0
        >>> fit = fit_density("affine", data, max_epochs=20, seed=0, progress=False)
        >>> fit.sample(1000, seed=0).mean(0).sub(3.0).abs().max().item() < 0.3
        True
    """
    matching = objective == "flow_matching"
    lr = (1e-2 if matching else 3e-3) if lr is None else lr
    if batch_size is None:
        batch_size = min(max(256, len(data) // 16), 2048) if matching and isinstance(data, Tensor) and data.dim() else 256
    check_likelihood_options(lr, batch_size, max_epochs, patience, validation_share, max_time)
    check_seed(seed)
    if objective not in ("likelihood", "em", "flow_matching", "free_form"):
        raise ValueError(f'objective must be "likelihood", "em", "flow_matching" or "free_form", got {objective!r}')
    if objective == "em" and not isinstance(flow, FlowMixture):
        raise ValueError(f'objective="em" is for a FlowMixture, got {type(flow).__name__}')
    if objective in ("flow_matching", "free_form") and isinstance(flow, FlowMixture):
        raise ValueError(f"objective={objective!r} is for one flow, got a FlowMixture, which likelihood and EM train")
    if path != "linear" and not matching:
        raise ValueError(f'path is for objective="flow_matching", got path={path!r} with objective={objective!r}')
    weights = _checked_regularisers(regularise, objective)
    rows = _checked("data", (data,) if context is None else (data, context))
    held = None if validation is None else _checked("validation", validation, rows)

    def identity() -> dict[str, str]:
        return {
            "data": digest([rows, held]),
            "flow": flow if isinstance(flow, str) else type(flow).__name__,
            "options": digest(
                [objective, path, weights, flow_options, steep, standardise, validation_share, lr, batch_size, max_epochs, patience]
            ),
            "seed": str(seed),
        }

    with seeded(seed), checkpoints(checkpoint, identity) as folder:
        if isinstance(flow, torch.nn.Module):
            start_from("flow", flow)
        if held is None:
            order = torch.randperm(len(data), device=data.device)
            count = max(1, round(validation_share * len(data)))
            rows, held = tuple(part[order[count:]] for part in rows), tuple(part[order[:count]] for part in rows)
        if len(rows[0]) < 2:
            raise ValueError(f"data leave {len(rows[0])} rows to train on; hold out fewer, by validation_share={validation_share}")
        distribution = _distribution(flow, rows, dict(flow_options or {}), steep, standardise)
        for name, part in (("data", rows[0]), ("validation" if validation is not None else "data", held[0])):
            _check_support(name, part, distribution)
        if weights and not any(isinstance(module, CNF) for module in distribution.modules()):
            raise ValueError(f"regularise is for continuous flows, which solve an equation; leave it out for\n{distribution}")
        if bool((data == data.round()).all()) and _members(distribution)[0].transform.bijective:
            warnings.warn(
                "all data are whole numbers, of which a flow is no density: its likelihood grows without bound as it narrows to "
                "them; see flows.of_counts and flows.of_pixels",
                stacklevel=2,
            )
        for member in _members(distribution):
            initialize_actnorms(member.transform, rows[0][:_START], rows[1][:_START] if len(rows) > 1 else None)

        def loss(points: Tensor, *contexts: Tensor) -> Tensor:
            given = contexts and isinstance(distribution, FlowDistribution)
            at = distribution.condition(contexts[0]) if given else distribution  # type: ignore[operator]
            if not weights or not distribution.training:
                return -at.log_prob(points).mean()
            with record_costs() as costs:
                nll = -at.log_prob(points).mean()
            return nll + sum(weight * getattr(costs, name) for name, weight in weights.items())

        if isinstance(distribution, FlowMixture):
            done_once("separation", distribution, partial(separate_members, distribution, rows[0], lr))
        train, renew = rows, None
        if objective == "em" and isinstance(distribution, FlowMixture):
            train, loss, renew = expectation_maximisation(distribution, rows[0])
        elif objective == "flow_matching":
            loss = flow_matching_loss(distribution, path)  # type: ignore[arg-type]
        elif objective == "free_form":
            loss = free_form_loss(distribution)  # type: ignore[arg-type]

        began = time.monotonic() - seconds_before(folder)
        distribution.train()
        with tqdm(total=max_epochs, desc="fit_density", unit="epoch", disable=not progress, dynamic_ncols=True) as bar:
            run = maximise_likelihood(
                distribution,
                loss,
                train,
                held,
                lr=lr,
                batch_size=min(batch_size, len(rows[0])),
                max_epochs=max_epochs,
                patience=patience,
                limit=None if max_time is None else began + max_time,
                bar=bar,
                hint="lower lr, or look for points far from all others",
                renew=renew,
            )
        fit = DensityFit(distribution, run, objective, time.monotonic() - began)
        try:
            fit.held_out = float(fit.log_prob(*held).mean())
        except ArithmeticError as error:
            warnings.warn(f"the density of the rows held out could not be computed: {error}", stacklevel=2)
    return fit


def _checked_regularisers(regularise: Mapping[str, float] | None, objective: str) -> dict[str, float]:
    weights = dict(regularise or {})
    for name, weight in weights.items():
        if name not in ("kinetic_energy", "jacobian_norm"):
            raise ValueError(f'regularise must have weights of "kinetic_energy" and "jacobian_norm", got {name!r}')
        if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"regularise[{name!r}] must be a number that is not negative, got {weight!r}")
    if weights and objective != "likelihood":
        raise ValueError(f'regularise is for objective="likelihood", in which equations are solved; got {objective!r}')
    return weights


def _members(distribution: FlowDistribution | FlowMixture) -> list[FlowDistribution]:
    return list(distribution.members) if isinstance(distribution, FlowMixture) else [distribution]  # type: ignore[arg-type]


def _checked(name: str, rows: tuple[Tensor, ...], like: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
    least = 10 if like is None else 1
    for label, part in zip((name, "context" if like is None else f"{name}'s context"), rows, strict=False):
        if not isinstance(part, Tensor) or part.dtype not in (torch.float32, torch.float64):
            what = f"a tensor of {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(
                f"{label} must be a tensor of float32 or float64, got {what}; convert it by torch.as_tensor(…).float()"
            )
        if part.dim() < 2 or (part.dim() != 2 and "context" in label) or len(part) < least:
            raise ValueError(f"{label} must have shape (N, D) with N at least {least}, got {tuple(part.shape)}")
        bad = ~torch.isfinite(part).flatten(1).all(-1)
        if bool(bad.any()):
            raise ValueError(f"{label} has NaN or infinity in {int(bad.sum())} of {len(part)} rows; drop them")
    if len({(len(part), part.dtype) for part in rows}) > 1:
        raise ValueError(
            f"{name} and context must have the same rows and dtype, got "
            f"{' and '.join(f'{tuple(part.shape)} of {part.dtype}' for part in rows)}"
        )
    if any(part.shape[1] == 0 for part in rows):
        raise ValueError(
            f"{name} and context must have a column at least, got {[tuple(part.shape) for part in rows]}; leave it out"
        )
    kinds = lambda parts: [(tuple(part.shape[1:]), part.dtype) for part in parts]  # noqa: E731
    if like is not None and kinds(rows) != kinds(like):
        raise ValueError(f"{name} must have rows of the shapes and dtypes {kinds(like)}, as data and context, got {kinds(rows)}")
    return tuple(part.detach() for part in rows)


def data_are_plenty(rows: int, variables: int) -> bool:
    """Whether there are at least 500 rows for each variable, with which flows better start steep.

    Example:
        >>> data_are_plenty(500, 2)
        False
    """
    return rows >= 500 * variables


def _distribution(
    flow: str | FlowFactory | FlowTransform | FlowDistribution | FlowMixture,
    rows: tuple[Tensor, ...],
    options: dict[str, Any],
    steep: bool | None,
    standardise: bool | None,
) -> FlowDistribution | FlowMixture:
    data, event = rows[0], rows[0].shape[1:]
    if isinstance(flow, (FlowDistribution, FlowMixture)) and flow.batch_shape:
        raise ValueError(f"flow must have no batch shape, got {tuple(flow.batch_shape)}; fit one density at a time")
    context_dim = rows[1].shape[-1] if len(rows) > 1 else 0
    if isinstance(flow, FlowMixture):
        if options or steep is not None or standardise or context_dim or flow.event_shape != event:
            raise ValueError(
                f"flow is a mixture of events {tuple(flow.event_shape)}, fitted as it is to rows of that shape, here "
                f"{tuple(event)}, without context, flow_options, steep and standardise"
            )
        _location_and_scale("data", data.flatten(1))
        return flow
    if standardise and len(event) > 1:
        raise ValueError("standardise must be False for images; put LogitPreprocessing or ActNorm into the flow")
    base = flow.base if isinstance(flow, FlowDistribution) and not flow.has_default_base else None
    transform = flow.transform if isinstance(flow, FlowDistribution) else flow
    if isinstance(transform, FlowTransform):
        if options or steep is not None:
            raise ValueError(
                "flow_options and steep are for a flow by name or factory, got "
                f"flow_options={options!r}, steep={steep} for a flow that is made already"
            )
        if (transform.output_shape, transform.context_dim) != (event, context_dim):
            raise ValueError(
                f"flow gives events of shape {tuple(transform.output_shape)} with context_dim={transform.context_dim}; rows of "
                f"data have shape {tuple(event)} and those of the context {context_dim} columns"
            )
    else:
        shape = event[0] if len(event) == 1 else tuple(event)
        steep = data_are_plenty(len(data), event.numel() + context_dim) if steep is None else steep
        transform = build(transform, shape, context_dim, for_data=True, steep=steep, **options).to(data)
    on_lines = is_real(transform.codomain) and len(event) == 1 and transform.bijective
    circles = circles_of(transform.codomain) if transform.bijective else None
    if standardise and not on_lines and circles is None:
        raise ValueError(
            f"standardise must be False for a flow whose values are in {transform.codomain}"
            f"{'' if transform.bijective else ', by surjections'}; an ActNorm before its last layer starts from the data"
        )
    if standardise is not False and circles is not None and not all(circles):
        loc, scale = _location_and_scale("data", data)
        is_circle = torch.tensor(circles, device=data.device)
        lines = LowerCholeskyAffine(loc.masked_fill(is_circle, 0.0), scale.masked_fill(is_circle, 1.0))
        lines.domain = lines.codomain = transform.codomain
        transform = Compose([transform, lines])
    elif on_lines and standardise is not False:
        if context_dim:
            loc, scale = _location_and_scale("context", rows[1], constant_is_fine=True)
            transform = ContextMap(transform, Standardised(loc, scale), context_dim)
        transform = Compose([transform, LowerCholeskyAffine(*_location_and_scale("data", data))])
    return FlowDistribution(transform) if base is None else FlowDistribution(transform, base)


def _check_support(name: str, data: Tensor, distribution: FlowDistribution | FlowMixture) -> None:
    """Refuse data that the flow gives no density to, before anything is trained."""
    support = distribution.support
    outside = ~support.check(data).reshape(len(data), -1).all(-1)
    if bool(outside.any()):
        how = ""
        if circles_of(support) is not None:
            how = "; bring angles there by torch.remainder(x + torch.pi, 2 * torch.pi) - torch.pi"
        elif support is SPHERE:
            how = "; divide by their length, x / x.norm(dim=-1, keepdim=True)"
        raise ValueError(f"{name} must lie in {support}, and {int(outside.sum())} of {len(data)} rows do not{how}")


def _location_and_scale(name: str, rows: Tensor, constant_is_fine: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, or median and quartiles where a few far rows make nearly all of the deviation."""
    loc, scale = rows.mean(0), rows.std(0)
    if not constant_is_fine:
        low, middle, high = rows[:_QUARTILES].quantile(torch.tensor([0.25, 0.5, 0.75], dtype=rows.dtype, device=rows.device), dim=0)
        most = 3 * (high - low) / 1.349
        heavy = (most > 0) & (scale > most)
        loc, scale = torch.where(heavy, middle, loc), torch.where(heavy, most, scale)
    constant = scale <= torch.finfo(rows.dtype).eps * loc.abs()
    if constant_is_fine:
        return loc, torch.where(constant, torch.ones_like(scale), scale)
    if bool(constant.any()):
        columns = constant.nonzero().flatten().tolist()
        raise ValueError(f"{name} has columns {columns} that do not vary, and no density along them; drop them")
    return loc, scale
