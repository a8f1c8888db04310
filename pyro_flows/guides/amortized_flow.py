"""AmortizedFlow: one conditional flow from whole data sets to all latents of a Pyro model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_flows.distributions import FlowDistribution, FlowMixture
from pyro_flows.flows.registry import FlowFactory, build, get
from pyro_flows.model.held_parameters import with_plain_parameters
from pyro_flows.model.intervals import WithinInterval, flat_transform
from pyro_flows.model.latents import FlatLatents
from pyro_flows.model.seeding import seeded
from pyro_flows.model.simulate import Simulations, SimulationTarget, draw, read_target
from pyro_flows.model.simulator import generators_kept
from pyro_flows.model.sites import is_circular
from pyro_flows.model.structure import LatentSite, ModelStructure
from pyro_flows.transforms import RegressionFlow, TruncatedRegression
from pyro_flows.transforms.lower_cholesky_affine import LowerCholeskyAffine

from .amortized_member import AmortizedMember
from .flat_guide import FlatGuide
from .typicality import Typicality

Observations = Mapping[str, Tensor] | Tensor
_PILOT = 1000
_PILOT_RUNS = 100


class AmortizedFlow(FlatGuide):
    r"""Guide :math:`q(z \mid x)` for whole data sets: trained once, it gives the posterior of any data of the model's shape.

    A conditional flow over all continuous latents sees the standardised observations, or what an encoder makes of them. Around it
    is a regression that is truncated to the bounds of the priors (:class:`~pyro_flows.transforms.RegressionFlow`); other supports
    are reached by ``biject_to``. So no mass lies outside a support. Standardisation is taken from draws of the model at
    :meth:`setup`, is saved with the guide, and stays.

    Train it with :func:`~pyro_flows.infer.fit_amortized` on draws of the model, which needs no density; or by ``SVI`` on given
    data; or first one and then the other. ``guide(*args)``, with the arguments of the model and the data among them, draws the
    latents as Pyro sites. :meth:`sample`, :meth:`log_prob` and :meth:`condition` take many data sets at once. Data that are far
    from the simulations are warned about, see :meth:`p_value`.

    Args:
        model: A Pyro model whose data can be drawn, or a :class:`~pyro_flows.model.SimulatorModel`.
        encoder: Module from the standardised observations to features ``(N, C)``; None for the observations themselves.
        flow: Name of a registered flow or a callable ``(input_dim, context_dim) -> FlowTransform``.
        observed: Names of the observed sites; None for those that are observed in the call of :meth:`setup`.
        encoder_input: ``"vector"`` if the encoder takes all observations as one vector ``(N, P)``; ``"sites"`` if it takes one
            argument ``(N, *site shape)`` for each observed site, in the order of the model.
        num_members: Number of flows, each with a copy of the encoder, whose mixture is the guide.
        flow_options: Keyword arguments of a registered flow, such as ``{"num_layers": 8}``.

    Raises:
        ValueError: If an argument is not as described; at :meth:`setup`, if the model has no data or no continuous latent, cannot
        be
            drawn from, or has a support that depends on another latent.

    References:
        Papamakarios, Murray (2016), *Fast ε-free inference of simulation models with Bayesian conditional density estimation*,
        https://arxiv.org/abs/1605.06376;
        Radev, Mertens, Voss, Ardizzone, Köthe (2020), *BayesFlow*, https://arxiv.org/abs/2003.06281

    Example:
        >>> def model(y=None):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
        >>> guide = AmortizedFlow(model, observed=["y"]).setup()
        >>> guide.sample(torch.zeros(5, 3), 10)["mean"].shape
        torch.Size([10, 5])
    """

    members: nn.ModuleList
    standard: LowerCholeskyAffine
    target: SimulationTarget | None
    structure: ModelStructure
    latent_dim: int
    observed_shapes: dict[str, torch.Size]
    observation_mean: Tensor
    observation_scale: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module | None = None,
        flow: str | FlowFactory = "nsf_coupling",
        *,
        observed: Sequence[str] | None = None,
        encoder_input: str = "vector",
        num_members: int = 1,
        flow_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(model):
            raise ValueError(f"model must be callable, got {type(model).__name__}")
        if encoder is not None and not isinstance(encoder, nn.Module):
            raise ValueError(f"encoder must be a torch.nn.Module or None, got {type(encoder).__name__}")
        if encoder_input not in ("vector", "sites"):
            raise ValueError(f"encoder_input must be 'vector' or 'sites', got {encoder_input!r}")
        if isinstance(observed, str):
            raise ValueError(f"observed must be a list of names such as [{observed!r}], got the name {observed!r}")
        if not isinstance(num_members, int) or isinstance(num_members, bool) or num_members < 1:
            raise ValueError(f"num_members must be a positive integer, got {num_members!r}")
        if isinstance(flow, str):
            get(flow)
        super().__init__(model)
        self._raw_model = (model,)
        self._given_encoder = (encoder,)  # in a tuple, for the members hold the copies that are trained
        self._flow, self._flow_options = flow, dict(flow_options or {})
        self._observed = None if observed is None else tuple(observed)
        self._encoder_input, self.num_members = encoder_input, num_members
        self._seen: Tensor | None = None
        self._renew_name()

    # Setting up

    def setup(self, *args: Any, **kwargs: Any) -> AmortizedFlow:
        """Read the model, draw from it to standardise latents and observations, and build all parameters.

        Args:
            args: Arguments of the model; the data may be among them, or None in their place where ``observed`` was given.
            kwargs: Keyword arguments of the model.

        Returns:
            This guide.

        Raises:
            ValueError: If the model does not suit this guide; the message names the site.
        """
        if self.prototype_trace is None:
            target = self.read(*args, **kwargs)
            with generators_kept():
                pyro.set_rng_seed(0)
                pilot = draw(target, _PILOT_RUNS)
                if pilot.path in ("vmap", "plate"):
                    pilot = draw(target, _PILOT)
            self.setup_on(pilot, target)
        return self

    def read(self, *args: Any, **kwargs: Any) -> SimulationTarget:
        """What of the model is latent and what is data, see :func:`~pyro_flows.model.simulate`; sets nothing up.

        Args:
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If the model does not suit this guide; the message names the site.
        """
        if self.model is None:
            raise ValueError("this guide was copied or unpickled without its model; build it anew with the model")
        return read_target(self.model, args, kwargs, self._observed)

    def setup_on(self, simulations: Simulations, target: SimulationTarget) -> None:
        """Standardise by simulations, and build all parameters.

        Args:
            simulations: Draws of the model.
            target: What :meth:`read` returned.

        Raises:
            ValueError: If a support depends on another latent, or the encoder does not return a finite row per data set.
        """
        self._set_target(target)
        like = torch.zeros((), dtype=self.structure.dtype, device=self.structure.device)
        self._check_supports(simulations)
        flat = FlatLatents(self.structure).unconstrain(simulations.latents)
        self.standard = LowerCholeskyAffine(flat.mean(0), _positive_scale(flat))
        vector = self._vector(simulations.observations, like)
        self.register_buffer("observation_mean", vector.mean(0))
        self.register_buffer("observation_scale", _positive_scale(vector))
        self.typicality = nn.ModuleList([Typicality(vector.shape[-1], like), Typicality(self.latent_dim, like)])
        lower, upper = self._bounds(like)
        lower, upper = ((bound - self.standard.loc) / self.standard.scale_tril.diagonal() for bound in (lower, upper))
        encoder = self._given_encoder[0]
        members = []
        for _ in range(self.num_members):
            own = None if encoder is None else copy.deepcopy(encoder).to(like)
            features = self._encode(own, self.standardised(simulations.observations)[:2])
            regression = TruncatedRegression(lower, upper, features.shape[-1])
            flow = build(self._flow, self.latent_dim, features.shape[-1] + regression.num_outside, **self._flow_options)
            members.append(AmortizedMember(own, RegressionFlow(flow.to(like), regression), self.standard))
        self.members = nn.ModuleList(members)

    def setup_from(
        self, parts: Sequence[Any], observation_mean: Tensor, observation_scale: Tensor, target: SimulationTarget
    ) -> None:
        """Take parts that were trained before, in the place of :meth:`setup`.

        Args:
            parts: What :attr:`parts` was then.
            observation_mean: The mean of observations then, ``(P,)``.
            observation_scale: Their standard deviations, ``(P,)``.
            target: What :meth:`read` returned.

        Raises:
            ValueError: If they are those of another model.
        """
        self._set_target(target)
        standard, *members, first, second = parts
        size = sum(shape.numel() for shape in self.observed_shapes.values())
        if standard.input_dim != self.latent_dim or observation_mean.shape != (size,) or observation_scale.shape != (size,):
            raise ValueError(
                f"parts are those of a guide of {standard.input_dim} latent numbers and {len(observation_mean)} observed ones, the "
                f"model has {self.latent_dim} and {size}"
            )
        self.standard = standard
        self.register_buffer("observation_mean", observation_mean)
        self.register_buffer("observation_scale", observation_scale)
        self.typicality = nn.ModuleList([first, second])
        self.members = nn.ModuleList(members)

    @property
    def parts(self) -> list[nn.Module]:
        """What it is made of once it is set up: standardisation, members and the tests of typicality."""
        return [self.standard, *self.members, *self.typicality]

    def _set_target(self, target: SimulationTarget) -> None:
        structure = target.structure
        sites = tuple(replace(site, transform=flat_transform(site)) for site in structure.sites)
        self.structure, self.target = replace(structure, sites=sites), target
        self.latent_dim = structure.dim
        self.observed_shapes = dict(target.observed)
        self._read_sites(target, sites)

    def _read_sites(self, target: SimulationTarget, sites: Sequence[LatentSite]) -> None:
        """Set what Pyro's guides and :class:`FlatGuide` need: a trace of the latents, their plates and transforms."""
        data = {name: target.structure.observed[name] for name in self.observed_shapes}
        given = poutine.condition(target.model, data={**data, **target.structure.initial})
        with torch.no_grad(), generators_kept():
            trace = poutine.block(poutine.trace(with_plain_parameters(given)).get_trace)(*target.args, **target.kwargs)
        names = {site.name for site in sites}
        for name, node in list(trace.nodes.items()):
            if node["type"] == "param" or (node["type"] == "sample" and name not in names):
                trace.remove_node(name)
        for name in names:
            trace.nodes[name]["is_observed"] = False
        self.prototype_trace = trace
        stacks = {name: [f for f in trace.nodes[name]["cond_indep_stack"] if f.vectorized] for name in trace.nodes if name in names}
        self._prototype_frames = {frame.name: frame for stack in stacks.values() for frame in stack}
        self._cond_indep_stacks = stacks
        self._transforms = {site.name: site.transform for site in sites}
        self._unconstrained_shapes = {site.name: site.transform.inv(trace.nodes[site.name]["value"]).shape for site in sites}
        self._circular = [name for name in names if is_circular(trace.nodes[name]["fn"])]

    def _check_supports(self, simulations: Simulations) -> None:
        for site in self.structure.sites:
            value = simulations.latents[site.name]
            inside = torch.isfinite(value) if site.name in self._circular else site.support.check(value)
            if not bool(inside.all()):
                raise ValueError(
                    f"latent site {site.name!r} has values outside {site.support} in other draws, so that its support depends on "
                    f"another latent; write it as a fixed support that is shifted and scaled by pyro.deterministic"
                )

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the flat vector, ``(D,)`` each."""
        lower, upper = like.new_full((self.latent_dim,), -torch.inf), like.new_full((self.latent_dim,), torch.inf)
        for site in self.structure.sites:
            if isinstance(site.transform, WithinInterval):
                lower[site.start : site.stop] = site.transform.lower.to(like).expand(site.shape).reshape(-1)
                upper[site.start : site.stop] = site.transform.upper.to(like).expand(site.shape).reshape(-1)
        return lower, upper

    @property
    def like(self) -> Tensor:
        return self.standard.loc

    # Observations

    def observations(self, given: Observations) -> dict[str, Tensor]:
        """Observations by site, ``(*, site shape)`` each, checked.

        Args:
            given: A value per observed site, or a tensor where there is one such site.

        Raises:
            ValueError: If a site is missing, unknown, of another shape than at :meth:`setup`, or not finite.
        """
        if self.prototype_trace is None:
            raise ValueError("the guide is not set up; call guide.setup(*args, **kwargs) or fit_amortized first")
        shapes = self.observed_shapes
        if isinstance(given, Tensor):
            if len(shapes) > 1:
                raise ValueError(f"observations must be a dictionary with a value for each of {list(shapes)}, got one tensor")
            given = {next(iter(shapes)): given}
        if set(given) != set(shapes):
            raise ValueError(f"observations must hold the sites {list(shapes)}, got {list(given)}")
        values = {}
        for name, shape in shapes.items():
            value = torch.as_tensor(given[name], device=self.like.device).to(self.like.dtype)
            if value.shape[value.dim() - len(shape) :] != shape or value.dim() < len(shape):
                expected = ", ".join(["*", *map(str, shape)])
                raise ValueError(f"observations[{name!r}] has shape {tuple(value.shape)}, expected ({expected}) as at setup")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"observations[{name!r}] has {int((~torch.isfinite(value)).sum())} entries that are not finite")
            values[name] = value
        return values

    def _vector(self, observations: Mapping[str, Tensor], like: Tensor) -> Tensor:
        parts = []
        for name, shape in self.observed_shapes.items():
            value = observations[name].to(like)
            parts.append(value.reshape(*value.shape[: value.dim() - len(shape)], -1))
        batch = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
        return torch.cat([part.expand(*batch, -1) for part in parts], -1)

    def standardised(self, observations: Observations) -> Tensor:
        """Standardised observations as one vector, ``(*, P)``.

        Args:
            observations: As for :meth:`sample`.

        Raises:
            ValueError: If they do not fit the model.
        """
        vector = self._vector(self.observations(observations), self.like)
        return (vector - self.observation_mean) / self.observation_scale

    def _encode(self, encoder: nn.Module | None, vector: Tensor) -> Tensor:
        """Features ``(*, C)`` of standardised observations ``(*, P)``."""
        if encoder is None:
            return vector
        flat = vector.reshape(-1, vector.shape[-1])
        if self._encoder_input == "vector":
            features = encoder(flat)
        else:
            sizes = [shape.numel() for shape in self.observed_shapes.values()]
            parts = flat.split(sizes, -1)
            features = encoder(*[p.reshape(-1, *shape) for p, shape in zip(parts, self.observed_shapes.values(), strict=True)])
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(flat):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"encoder must return features ({len(flat)}, C), a row for each data set, got {found}")
        if not bool(torch.isfinite(features).all()):
            rows = int((~torch.isfinite(features).all(-1)).sum())
            raise ValueError(f"encoder returned NaN or infinity for {rows} of {len(flat)} data sets whose observations are finite")
        return features.reshape(*vector.shape[:-1], -1)

    def features(self, member: int, vector: Tensor) -> Tensor:
        """What a member's encoder makes of standardised observations.

        Args:
            member: Number of the member.
            vector: Standardised observations, ``(*, P)``.

        Returns:
            Features, ``(*, C)``.

        Raises:
            ValueError: If the encoder does not return a finite row per data set.
        """
        return self._encode(self.member(member).encoder, vector)

    def member(self, number: int) -> AmortizedMember:
        """One of the flows.

        Args:
            number: Its number, from 0.
        """
        return self.members[number]  # type: ignore[return-value]

    def p_value(self, observations: Observations) -> Tensor:
        r"""How typical data are of the simulations, see :class:`~pyro_flows.guides.Typicality`.

        Twice the smaller of two p-values: of the data themselves, and of the latents that the regression inside of the guide
        predicts from them, which tell when many observations say together what none says alone. Data that follow the model have a
        p-value below :math:`\alpha` with probability at most :math:`\alpha`. At :attr:`untypical_level` :meth:`sample` and calls of
        the guide warn.

        Args:
            observations: As for :meth:`sample`.

        Returns:
            P-values ``(*)``.

        Raises:
            ValueError: If the guide was not trained on simulations, or the observations do not fit the model.
        """
        vector = self.standardised(observations)
        if not self._knows_simulations:
            raise ValueError("the guide knows no simulations to compare with; train it with fit_amortized")
        return self._p_value(vector)

    @property
    def _knows_simulations(self) -> bool:
        return all(part.is_set for part in self.typicality)  # type: ignore[union-attr]

    @property
    def untypical_level(self) -> float:
        """The p-value at which data are called untypical: 0.001, or the smallest that so few simulations allow."""
        return float(max(0.001, *(2 * part.smallest for part in self.typicality)))  # type: ignore[operator, union-attr, arg-type]

    @torch.no_grad()
    def _summaries(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """What typicality is judged by: standardised observations ``(*, P)``, and predicted latents ``(*, D)``."""
        return vector, self.member(0).flow.regression.location(self.features(0, vector))

    def _p_value(self, vector: Tensor) -> Tensor:
        found = [part.p_value(rows) for part, rows in zip(self.typicality, self._summaries(vector), strict=True)]  # type: ignore[operator]
        return (2 * torch.minimum(*found)).clamp_max(1.0)

    def set_typicality(self, observations: Observations) -> None:
        """Take simulated data as what is typical; training does so at its end.

        Args:
            observations: At least 20 data sets ``(S, site shape)``, of which 4,000 at most are used.
        """
        for part, rows in zip(self.typicality, self._summaries(self.standardised(observations)), strict=True):
            part.set(rows)  # type: ignore[operator]

    @torch.no_grad()
    def _warn_if_untypical(self, vector: Tensor) -> None:
        if not self._knows_simulations or (self._seen is not None and torch.equal(self._seen, vector)):
            return
        self._seen = vector.detach().clone()  # said once for the same data
        p_values = self._p_value(vector)
        low = p_values <= self.untypical_level
        if bool(low.any()):
            warnings.warn(
                f"{int(low.sum())} of {low.numel()} data sets lie far from all simulations (smallest p-value "
                f"{float(p_values.min()):.2g}): the model cannot make such data, or its prior makes them too rarely, and the guide "
                f"extrapolates there. Do not trust these posteriors; see guide.p_value",
                stacklevel=3,
            )

    # Posteriors

    def condition(self, observations: Observations) -> FlowDistribution | FlowMixture:
        """Posterior of the flat latents, event shape ``(D,)``, with the data sets as batch shape.

        Args:
            observations: As for :meth:`sample`.

        Raises:
            ValueError: If they do not fit the model, or the encoder returns NaN.
        """
        return self._posterior(self.standardised(observations))

    def _posterior(self, vector: Tensor) -> FlowDistribution | FlowMixture:
        members: Any = self.members  # Pyro registers the parameters of what it hands out
        found = [member.distribution.condition(self._encode(member.encoder, vector)) for member in members]
        return found[0] if len(found) == 1 else FlowMixture(found, learn_weights=False)

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int = 1000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Posterior draws for one data set or many.

        Args:
            observations: A value ``(*, site shape)`` per observed site, or a tensor where there is one such site.
            num_samples: Number of draws S.
            seed: Makes them reproducible and leaves the global generators as they were.

        Returns:
            A value ``(S, *, site shape)`` per latent site.

        Raises:
            ValueError: If the observations do not fit the model.
        """
        if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
            raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
        vector = self.standardised(observations)
        self._warn_if_untypical(vector)
        with seeded(seed):
            return self.constrain(self._posterior(vector).sample((num_samples,)))[0]

    def log_prob(self, values: Mapping[str, Tensor], observations: Observations) -> Tensor:
        """Posterior log-density of site values, in the constrained space of the model.

        Args:
            values: A value ``(*, site shape)`` per latent site, whose batch shape broadcasts with that of the data sets.
            observations: As for :meth:`sample`.

        Returns:
            Log-density, ``(*)``; minus infinity on an edge that unconstrained coordinates do not reach.

        Raises:
            ValueError: If values or observations do not fit the model.
        """
        return self._log_prob(self.condition(observations), values)

    # Pyro's interface

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents given the data of this call, with the arguments of the model.

        Returns:
            A value per latent site.

        Raises:
            ValueError: If the call has no data, or data of another shape than at :meth:`setup`.
        """
        self.setup(*args, **kwargs)
        vector = self.standardised(self._read_observations(args, kwargs))
        self._warn_if_untypical(vector)
        latent = pyro.sample(f"_{self._pyro_name}_latent", self._posterior(vector), infer={"is_auxiliary": True})
        return self._sample_sites(latent, self._create_plates(*args, **kwargs))

    def _read_observations(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """The data that a call of the model observes."""
        if self.model is None:
            raise ValueError("this guide was copied or unpickled without its model; use guide.sample(observations)")
        model = poutine.condition(self.model, data=self.structure.initial)
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
        missing = [name for name in self.observed_shapes if name not in trace.nodes or not trace.nodes[name]["is_observed"]]
        if missing:
            raise ValueError(f"sites {missing} have no data in this call; pass them, or use guide.sample(observations)")
        return {name: trace.nodes[name]["value"] for name in self.observed_shapes}

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.update(target=None, _seen=None)
        return state


def _positive_scale(rows: Tensor) -> Tensor:
    """Standard deviations ``(D,)`` of rows, 1 where they are all the same."""
    scale = rows.std(0)
    return torch.where(scale > 1e-6 * (1e-6 + rows.abs().mean(0)), scale, torch.ones_like(scale))
