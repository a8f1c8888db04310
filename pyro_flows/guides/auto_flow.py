"""AutoFlow: one normalizing flow over all continuous latents of a Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from pyro_flows.distributions import FlowDistribution
from pyro_flows.flows.registry import FlowFactory, build, get
from pyro_flows.transforms import Compose, FlowTransform
from pyro_flows.transforms.lower_cholesky_affine import LowerCholeskyAffine

from .automatic_guide import AutomaticGuide, fork_generators
from .flat_guide import FlatGuide


class AutoFlow(AutomaticGuide, FlatGuide, AutoContinuous):  # type: ignore[misc]
    r"""Automatic guide :math:`q(z) = q_0(f^{-1}(z))\,|\det \partial f^{-1}/\partial z|` over all continuous latents.

    The unconstrained latents are :math:`z = \mu + L\, f_\theta(\epsilon)`: a flow :math:`f_\theta`, at the identity when training
    starts, in coordinates that are whitened by a fixed location and scale. These start at ``init_loc_fn`` and ``init_scale``.
    Discrete sites that are enumerated (``infer={"enumerate": "parallel"}``) are left to ``TraceEnum_ELBO``. A VonMises site, which
    Pyro declares real, is taken as a circle, and a site of unit vectors as a sphere; either is cut opposite the place where the
    joint density at setup is highest.

    Works with every Pyro ELBO, vectorised particles, ``Predictive``, ``NeuTraReparam``.

    Args:
        model: A Pyro model.
        flow: Name of a registered flow (see :func:`pyro_flows.flows.names`) or a callable
            ``(input_dim, context_dim) -> FlowTransform``.
        init_loc_fn: Per-site initialisation, as for Pyro's guides. A site whose prior cannot be sampled starts at the centre
            of its support.
        init_scale: Standard deviation of the unconstrained latents at the start. Must be positive.
        base: Distribution of :math:`\epsilon` with event shape ``(D,)``, or a callable ``D -> distribution``; standard normal
            by default.
        flow_options: Keyword arguments of a registered flow, such as ``{"num_layers": 8}``.
        create_plates: As for Pyro's guides: returns the plates of the call, for subsampling.

    Raises:
        ValueError: If an argument is not as described; at :meth:`setup`, if the model has no continuous latent, a discrete one
            that is not enumerated, or a latent local to a subsampled plate.

    References:
        Rezende, Mohamed (2015), *Variational inference with normalizing flows*, https://arxiv.org/abs/1505.05770

    Example:
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> guide = AutoFlow(model, flow="affine").setup()
        >>> sorted(guide())
        ['scale', 'x']
    """

    distribution: FlowDistribution
    latent_dim: int

    def __init__(
        self,
        model: Callable[..., Any],
        flow: str | FlowFactory = "real_nvp",
        *,
        init_loc_fn: Callable[[Any], Tensor] = init_to_median,
        init_scale: float = 0.1,
        base: dist.Distribution | Callable[[int], dist.Distribution] | None = None,
        flow_options: Mapping[str, Any] | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if isinstance(flow, str):
            get(flow)  # an unknown name is said now, not at setup
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        self._flow = flow
        self._flow_options = dict(flow_options or {})
        self._given_base = (base,)  # in a tuple, for a module would be registered twice
        self._call_shapes: Any = None

    # Setting up

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            self._read_sites(args, kwargs)
            loc = torch.cat([value.reshape(-1) for value in self._start().values()])
        self._whiten_and_build(LowerCholeskyAffine(loc, torch.full_like(loc, self._init_scale)))
        self._call_shapes = _shapes(args, kwargs)

    def _whiten_and_build(self, whitening: LowerCholeskyAffine, *after: FlowTransform) -> None:
        """Make the distribution from the flow and the base as they were given."""
        flow = build(self._flow, self.latent_dim, **self._flow_options)
        base = self._given_base[0]
        if callable(base) and not isinstance(base, dist.Distribution):
            base = base(self.latent_dim)
        self.distribution = FlowDistribution(Compose([flow.to(whitening.loc), whitening, *after]), base)

    def set_flow(
        self,
        flow: str | FlowFactory,
        base: dist.Distribution | Callable[[int], dist.Distribution] | None = None,
        *,
        flow_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Put another flow and base in the place of those it has, with the whitening as it is; after :meth:`setup`.

        Optimisers that hold parameters of the old flow do not train the new one.

        Args:
            flow: As for the guide.
            base: As for the guide.
            flow_options: As for the guide.

        Raises:
            ValueError: If the flow's name is not known, or the guide is not set up.

        Example:
            >>> guide = AutoFlow(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)), "affine").setup()
            >>> guide.set_flow("nsf_coupling")
            >>> len(guide.flow.parts)
            7
        """
        if self.prototype_trace is None:
            raise ValueError("the guide is not set up and has no flow to replace; call guide.setup(*args, **kwargs) first")
        self._flow, self._given_base, self._flow_options = flow, (base,), dict(flow_options or {})
        self._whiten_and_build(*self._fixed())

    def set_coordinates(self, transform: FlowTransform | None) -> None:
        """Put a fixed transform behind the whitening, in whose input the posterior is simpler; after :meth:`setup`.

        Args:
            transform: From coordinates of one's choice to the unconstrained latents, such as
                :class:`~pyro_flows.transforms.NonCentring`; None for none.

        Raises:
            ValueError: If the transform is not of the guide's dimension, or the guide is not set up.

        Example:
            >>> from pyro_flows.transforms import Permutation
            >>> guide = AutoFlow(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)), "affine").setup()
            >>> guide.set_coordinates(Permutation(torch.tensor([1, 0])))
            >>> len(guide.get_transform().parts)
            3
        """
        if self.prototype_trace is None:
            raise ValueError("the guide is not set up; call guide.setup(*args, **kwargs) first")
        if transform is not None and not isinstance(transform, FlowTransform):
            raise ValueError(f"transform must be a FlowTransform or None, got {type(transform).__name__}")
        if transform is not None and transform.input_dim != self.latent_dim:
            raise ValueError(f"transform has {transform.input_dim} variables and the guide {self.latent_dim} latent dimensions")
        parts = [self.flow, self.whitening, *([] if transform is None else [transform.to(self.whitening.loc)])]
        self.distribution = FlowDistribution(Compose(parts), self.distribution.base if self.has_own_base else None)

    def _fixed(self) -> tuple[Any, ...]:
        """The fixed transforms: the whitening, and what is behind it."""
        return tuple(self.distribution.transform.parts[1:])  # type: ignore[union-attr, index]

    def _check_call(self, args: Any, kwargs: Any) -> None:
        """Read the model again when the arguments have other shapes, and refuse latents of another shape."""
        shapes = _shapes(args, kwargs)
        if shapes == self._call_shapes or self.model is None:
            return
        model = poutine.block(self.model, self._prototype_hide_fn)
        with torch.no_grad(), fork_generators():  # a run that goes on from a checkpoint draws what it would have drawn
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
        found = {name: tuple(site["value"].shape) for name, site in trace.iter_stochastic_nodes() if name not in self._observed}
        known = {name: tuple(site["value"].shape) for name, site in self.prototype_trace.iter_stochastic_nodes()}
        for name in [*known, *found]:
            if known.get(name) != found.get(name):
                at_setup = f"had shape {known[name]} at setup" if name in known else "was not there at setup"
                now = f"has {found[name]} in this call" if name in found else "is not there in this call"
                raise ValueError(
                    f"latent site {name!r} {at_setup} and {now}; {type(self).__name__} needs the same latents in every call"
                )
        self._call_shapes = shapes

    @property
    def flow(self) -> FlowTransform:
        """The learnable flow, from noise to whitened latents."""
        return self.distribution.transform.parts[0]  # type: ignore[no-any-return, union-attr, index]

    @property
    def whitening(self) -> LowerCholeskyAffine:
        """The fixed map from whitened latents to unconstrained ones, or to the coordinates that stand for these."""
        return self.distribution.transform.parts[1]  # type: ignore[no-any-return, union-attr, index]

    @property
    def like(self) -> Tensor:
        return self.whitening.loc

    @property
    def coordinates(self) -> FlowTransform | None:
        """The transform behind the whitening (see :meth:`set_coordinates`), None if there is none."""
        after = self._fixed()[1:]
        return after[0] if after else None

    @property
    def has_own_base(self) -> bool:
        """Whether a base was given, rather than the standard normal taken."""
        return self._given_base[0] is not None

    # Pyro's interface

    def get_base_dist(self) -> dist.Distribution:
        """Distribution of the noise, event shape ``(D,)``."""
        return self.distribution.base

    def get_transform(self, *args: Any, **kwargs: Any) -> FlowTransform:
        """Transform from noise to the unconstrained latents, both ``(*, D)``.

        Raises:
            ValueError: If a latent lives on a circle or sphere and no arguments are given, as ``NeuTraReparam`` does.
        """
        if self._cut and not args and not kwargs:
            raise ValueError(
                f"sites {self._cut} live on circles or spheres, which NeuTraReparam does not know; use NUTS on the model itself"
            )
        return self.distribution.transform

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """Distribution of the unconstrained latents, event shape ``(D,)``."""
        return self.distribution

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draw the unconstrained latents as an auxiliary Pyro site."""
        name = f"_{self._pyro_name}_latent"
        return pyro.sample(name, self.get_posterior(*args, **kwargs), infer={"is_auxiliary": True})

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents, with the arguments of the model.

        Returns:
            A value per latent site.

        Raises:
            ValueError: If the model's latents have another shape than at :meth:`setup`.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._check_call(args, kwargs)
        latent = self.sample_latent(*args, **kwargs)
        return self._sample_sites(latent, self._create_plates(*args, **kwargs))

    # Draws and densities

    def log_prob(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Log-density of the guide at given site values, in the constrained space of the model.

        Args:
            values: A value ``(*, site shape)`` for every latent site; batch shapes broadcast.
            args: Arguments of the model, needed only before :meth:`setup`.
            kwargs: Keyword arguments of the model.

        Returns:
            Log-density, ``(*)``; minus infinity on the edge of a support.

        Raises:
            ValueError: If a site is missing, unknown, of the wrong shape or dtype, or outside its support.
        """
        self.setup(*args, **kwargs)
        return self._log_prob(self.distribution, values)

    @torch.no_grad()
    def median(self, *args: Any, num_samples: int = 10_000, **kwargs: Any) -> dict[str, Tensor]:
        """Median of every latent site, from draws.

        Args:
            args: Arguments of the model, needed only before :meth:`setup`.
            num_samples: Number of draws.
            kwargs: Keyword arguments of the model.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, num_samples=num_samples, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 10_000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of every latent site, from draws; taken marginally in unconstrained coordinates, as Pyro's are.

        Args:
            quantiles: Probabilities between 0 and 1, ``(Q,)``.
            args: Arguments of the model, needed only before :meth:`setup`.
            num_samples: Number of draws.
            kwargs: Keyword arguments of the model.

        Returns:
            Values ``(Q, site shape)`` per site.

        Raises:
            ValueError: If a probability is outside [0, 1].
        """
        self._check_draws(num_samples)
        self.setup(*args, **kwargs)
        probs = self._probabilities(quantiles, self.like)
        latent = self.distribution.sample((num_samples,))
        return self.constrain(torch.quantile(latent, probs, dim=0))[0]


def _shapes(args: Any, kwargs: Any) -> Any:
    def shape(value: Any) -> Any:
        return tuple(value.shape) if isinstance(value, Tensor) else type(value) if not isinstance(value, int) else value

    return tuple(map(shape, args)), tuple(sorted((key, shape(value)) for key, value in kwargs.items()))
