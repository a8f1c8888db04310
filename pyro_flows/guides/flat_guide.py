"""What guides over one flat vector of all latents have in common: site values and their densities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from .flow_guide import FlowGuide
from .site_delta import SiteDelta


class FlatGuide(FlowGuide):
    """A guide whose latents are one vector ``(D,)``, that a transform per site takes to the model's values.

    A subclass has :attr:`like` and what :class:`FlowGuide` needs.
    """

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the latents."""
        raise NotImplementedError

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

    def unconstrain(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Unconstrained latents ``(*, D)`` of site values ``(*, site shape)``, whose batch shapes broadcast.

        Args:
            values: A value for every latent site.
            args: Arguments of the model, needed only before ``setup``.
            kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If a site is missing, unknown, of the wrong shape or dtype, or outside its support.
        """
        self.setup(*args, **kwargs)
        return self._unconstrain(values)[0]

    def _unconstrain(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        self._check_names(values)
        parts, log_dets = [], []
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            unconstrained, log_det = self._unconstrain_site(name, values[name], self.like)
            batch = log_det.shape[: log_det.dim() - len(site["fn"].batch_shape)]
            log_dets.append(sum_rightmost(log_det, log_det.dim() - len(batch)))
            parts.append(unconstrained.reshape(*batch, -1))
        try:
            batch = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
        except RuntimeError as error:
            shapes = {name: tuple(torch.as_tensor(value).shape) for name, value in values.items()}
            raise ValueError(f"values: the batch shapes of the sites do not broadcast, got the shapes {shapes}") from error
        total = torch.stack([log_det.expand(batch) for log_det in log_dets]).sum(0)
        return torch.cat([part.expand(*batch, -1) for part in parts], -1), total
