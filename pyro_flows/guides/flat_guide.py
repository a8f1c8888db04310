"""What guides over one flat vector of all latents have in common: names and copies, site values and their densities."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Self

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor

from pyro_flows.model.sites import site_support
from pyro_flows.transforms.core import forget_pyro_links

from .site_delta import SiteDelta

_INSTANCES = itertools.count()


class FlatGuide(AutoGuide):  # type: ignore[misc]
    """A guide whose latents are one vector ``(D,)``, that a transform per site takes to the model's values.

    A subclass sets ``prototype_trace``, ``_transforms``, ``_unconstrained_shapes``, ``_cond_indep_stacks`` and ``_circular`` when
    it reads the model, ``_raw_model`` when it is made, and has :attr:`like`. Every instance, copies included, has a name of its
    own.
    """

    prototype_trace: Any
    create_plates: Any
    _raw_model: tuple[Any, ...]
    _transforms: dict[str, Any]
    _unconstrained_shapes: dict[str, torch.Size]
    _cond_indep_stacks: dict[str, list[Any]]
    _circular: list[str]

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the latents."""
        raise NotImplementedError

    # Names and copies

    def _renew_name(self) -> None:
        # Pyro keeps the parameters of two modules of one name in one place, and only the first would train.
        self._pyro_name = f"{type(self).__name__}${next(_INSTANCES)}"

    def __getstate__(self) -> dict[str, Any]:
        forget_pyro_links(self)
        state = self.__dict__.copy()
        state.update(_model=(None,), _raw_model=(None,), master=None, create_plates=None, plates={})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._renew_name()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new.__dict__.update(_model=self._model, _raw_model=self._raw_model, create_plates=self.create_plates)
        return new

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load parameters and buffers, as every module does, after ``setup``.

        Raises:
            ValueError: If the guide has not been set up, and so has none.
        """
        if self.prototype_trace is None:
            raise ValueError("this guide has no parameters yet; call guide.setup with the arguments of the model first")
        return super().load_state_dict(state_dict, *args, **kwargs)

    # Sites

    def _sample_sites(self, latent: Tensor, plates: Mapping[str, Any]) -> dict[str, Tensor]:
        """Hand every site its part of a drawn flat vector, with the Jacobian that belongs to it."""
        result = {}
        for site, unconstrained in self._unpack_latent(latent):
            name, event_dim = site["name"], site["fn"].event_dim
            transform = self._transforms[name]
            value = transform(unconstrained)
            log_density: Tensor | float = 0.0
            if poutine.get_mask() is not False:
                log_det = transform.log_abs_det_jacobian(unconstrained, value)
                log_density = -sum_rightmost(log_det, log_det.dim() - value.dim() + event_dim)
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, SiteDelta(value, log_density=log_density, event_dim=event_dim))
        return result

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        start = 0
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            shape = self._unconstrained_shapes[name]
            event_dim = site["fn"].event_dim + len(shape) - site["value"].dim()
            full = torch.broadcast_shapes(shape, latent.shape[:-1] + (1,) * event_dim)
            yield site, latent[..., start : start + shape.numel()].view(full)
            start += shape.numel()

    # Values and densities

    def constrain(self, latent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        r"""Site values of unconstrained latents.

        Args:
            latent: Unconstrained latents, ``(*, D)``.

        Returns:
            A dictionary of values ``(*, site shape)`` and :math:`\log|\det|` of the map, ``(*)``.
        """
        values: dict[str, Tensor] = {}
        total = latent.new_zeros(latent.shape[:-1])
        start = 0
        for name, shape in self._unconstrained_shapes.items():
            unconstrained = latent[..., start : start + shape.numel()].reshape(latent.shape[:-1] + shape)
            transform = self._transforms[name]
            values[name] = transform(unconstrained)
            log_det = transform.log_abs_det_jacobian(unconstrained, values[name])
            total = total + sum_rightmost(log_det, log_det.dim() - total.dim())
            start += shape.numel()
        return values, total

    def _log_prob(self, posterior: Any, values: Mapping[str, Tensor]) -> Tensor:
        """Log-density ``(*)`` of site values under a distribution of the flat vector; minus infinity on the edge of a support."""
        latent, log_det = self._unconstrain(values)
        edge = ~torch.isfinite(latent).all(-1)
        inside = torch.where(edge.unsqueeze(-1), torch.zeros_like(latent), latent)
        log_prob = posterior.log_prob(inside) - torch.where(edge, torch.zeros_like(log_det), log_det)
        return torch.where(edge, torch.full_like(log_prob, -torch.inf), log_prob)

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained latents ``(*, D)`` of site values ``(*, site shape)``, whose batch shapes broadcast.

        Raises:
            ValueError: If a site is missing, unknown, of the wrong shape or dtype, or outside its support.
        """
        return self._unconstrain(values)[0]

    def _unconstrain(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if set(values) != set(self._unconstrained_shapes):
            known = set(self._unconstrained_shapes)
            apart = {"missing": known - set(values), "unknown": set(values) - known}
            wrong = [f"{sorted(names)} {what}" for what, names in apart.items() if names]
            raise ValueError(f"values must hold the sites {sorted(known)}, got {sorted(values)}: {', '.join(wrong)}")
        dtype, device = self.like.dtype, self.like.device
        parts, log_dets = [], []
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            shape, value, transform = site["value"].shape, values[name], self._transforms[name]
            if not isinstance(value, Tensor):
                value = torch.as_tensor(value, dtype=dtype, device=device)
            if value.dtype != dtype:
                raise ValueError(f"values[{name!r}] has dtype {value.dtype}, the guide has {dtype}; convert one of them")
            if value.shape[value.dim() - len(shape) :] != shape:
                expected = ", ".join(["*", *map(str, shape)])
                raise ValueError(f"values[{name!r}] has shape {tuple(value.shape)}, expected ({expected})")
            support = site_support(site["fn"])
            fits = torch.isfinite(value) if name in self._circular else support.check(value)
            if not bool(fits.all()) or bool(torch.isnan(value).any()):
                raise ValueError(f"values[{name!r}] must lie in the support {support}, got {value.reshape(-1)[:5].tolist()}")
            batch = value.shape[: value.dim() - len(shape)]
            unconstrained = transform.inv(value)
            log_det = transform.log_abs_det_jacobian(unconstrained, value)
            log_dets.append(sum_rightmost(log_det, log_det.dim() - len(batch)))
            parts.append(unconstrained.reshape(*batch, -1))
        try:
            batch = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
        except RuntimeError as error:
            shapes = {name: tuple(torch.as_tensor(value).shape) for name, value in values.items()}
            raise ValueError(f"values: the batch shapes of the sites do not broadcast, got the shapes {shapes}") from error
        total = torch.stack([log_det.expand(batch) for log_det in log_dets]).sum(0)
        return torch.cat([part.expand(*batch, -1) for part in parts], -1), total
