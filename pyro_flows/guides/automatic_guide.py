"""Reading the model of an automatic guide: its latents, their transforms and plates, and where they start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from pyro_flows.model.circle import find_centre
from pyro_flows.model.held_parameters import with_plain_parameters
from pyro_flows.model.sites import InitToSupport, is_circular, is_cut, is_enumerated, site_support, site_transform
from pyro_flows.model.sphere import find_direction
from pyro_flows.model.structure import check_latents

from .flow_guide import FlowGuide


class AutomaticGuide(FlowGuide):
    """A guide that reads its latents from the model when it is set up.

    Args:
        model: A Pyro model.
        init_loc_fn: Per-site initialisation, as for Pyro's guides.
        init_scale: Standard deviation of the unconstrained latents at the start. Must be positive.
        create_plates: As for Pyro's guides.

    Raises:
        ValueError: If an argument is not as described.
    """

    #: Whether latents local to a subsampled plate are all right.
    takes_local_latents = False

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Callable[[Any], Tensor],
        init_scale: float,
        create_plates: Callable[..., Any] | None,
    ) -> None:
        if not callable(model):
            raise ValueError(f"model must be callable, got {type(model).__name__}")
        if not (isinstance(init_scale, (int, float)) and init_scale > 0):
            raise ValueError(f"init_scale must be a positive number, got {init_scale!r}")
        if not callable(init_loc_fn):
            raise ValueError(f"init_loc_fn must be callable, got {type(init_loc_fn).__name__}; see pyro.infer.autoguide.init_to_*")
        self.init_loc_fn = InitToSupport(init_loc_fn)
        AutoGuide.__init__(self, InitMessenger(self.init_loc_fn)(model), create_plates=create_plates)
        self._raw_model = (model,)
        self._init_scale = float(init_scale)
        self._renew_name()

    # Setting up

    def setup(self, *args: Any, **kwargs: Any) -> Self:
        """Read the model and build all parameters, before the first step.

        Args:
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.

        Returns:
            This guide.

        Raises:
            ValueError: If the model does not suit this guide; the message names the site.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
            self._create_plates(*args, **kwargs)
        return self

    @staticmethod
    def _prototype_hide_fn(site: dict[str, Any]) -> bool:
        return bool(AutoGuide._prototype_hide_fn(site) or is_enumerated(site))

    def _read_sites(self, args: Any, kwargs: Any) -> None:
        """Read the model: its latent sites, their transforms, plates and unconstrained shapes."""
        if self.model is None:
            raise ValueError("this guide was copied or unpickled without its model before setup; build it anew with the model")
        self._read_prototype(args, kwargs)
        sites = list(self.prototype_trace.iter_stochastic_nodes())
        check_latents(sites, type(self).__name__, allow_local=self.takes_local_latents)
        self._centre_charts(sites, args, kwargs)
        self._unconstrained_shapes = {name: self._transforms[name].inv(site["value"]).shape for name, site in sites}
        self._cond_indep_stacks = {name: [frame for frame in site["cond_indep_stack"] if frame.vectorized] for name, site in sites}
        self.latent_dim = sum(shape.numel() for shape in self._unconstrained_shapes.values())
        if self.latent_dim == 0:
            raise ValueError(f"latent sites {[name for name, _ in sites]} are all empty; there is nothing to approximate")

    def _read_prototype(self, args: Any, kwargs: Any) -> None:
        # As AutoGuide does, but loops by pyro.plate are no obstacle: their sites have names of their own.
        trace = poutine.block(poutine.trace(with_plain_parameters(self.model)).get_trace)(*args, **kwargs)
        self._observed = frozenset(name for name, site in trace.nodes.items() if site["type"] == "sample" and site["is_observed"])
        hidden = [
            name
            for name, site in trace.nodes.items()
            if site["type"] == "param" or (site["type"] == "sample" and self._prototype_hide_fn(site))
        ]
        for name in hidden:
            trace.remove_node(name)
        self.prototype_trace = trace
        if self.master is not None:
            self.master()._check_prototype(trace)
        frames = [frame for _, site in trace.iter_stochastic_nodes() for frame in site["cond_indep_stack"] if frame.vectorized]
        self._prototype_frames = {frame.name: frame for frame in frames}

    def _centre_charts(self, sites: Sequence[tuple[str, dict[str, Any]]], args: Any, kwargs: Any) -> None:
        """Cut circles and spheres opposite the mass, which starts at their centres, and take the other transforms as they are."""
        values = {name: site["value"] for name, site in sites}
        charts = {}
        for name, site in sites:
            if not is_cut(site["fn"]):
                continue

            def log_density(value: Tensor, name: str = name) -> Tensor:
                model = poutine.condition(self._raw_model[0], data={**values, name: value})
                with fork_generators(), pyro.validation_enabled(False):
                    torch.manual_seed(0)
                    return poutine.block(poutine.trace(model).get_trace)(*args, **kwargs).log_prob_sum()  # type: ignore[no-any-return]

            find = find_centre if is_circular(site["fn"]) else find_direction
            values[name] = site["value"] = find(log_density, site["value"])
            charts[name] = site_transform(site["fn"], values[name])
        self._transforms = {name: charts.get(name) or site_transform(site["fn"]) for name, site in sites}
        self._cut = list(charts)
        # Registered as modules, so that a state_dict tells where these are cut.
        self._chart_modules = torch.nn.ModuleList(getattr(chart, "base_transform", chart) for chart in charts.values())

    @property
    def charts(self) -> dict[str, Any]:
        """The transforms of sites on circles and spheres, by name."""
        return {name: self._transforms[name] for name in self._cut}

    def _start(self) -> dict[str, Tensor]:
        """Where the latents start, unconstrained, by site."""
        values = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            value = self._transforms[name].inv(site["value"].detach())
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"init_loc_fn gave site {name!r} a value on the edge of its support: {site['value'].reshape(-1)[:5].tolist()}; "
                    f"start inside the support {site_support(site['fn'])}"
                )
            values[name] = value
        dtypes = {value.dtype for value in values.values()}
        if len(dtypes) > 1:
            raise ValueError(f"latent sites have different dtypes {sorted(map(str, dtypes))}; give all priors one dtype")
        return values


def fork_generators() -> AbstractContextManager[None]:
    """Leave torch's random number generators as they were, those of the CPU and of the current CUDA device once it is in use.

    Example:
        >>> with fork_generators():
        ...     first = torch.rand(())
        >>> bool(torch.rand(()) == first)
        True
    """
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if in_use else [])
