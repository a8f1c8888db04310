"""The flat vector of unconstrained latents and the site values that it stands for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from .structure import ModelStructure


class FlatLatents:
    """Maps between unconstrained vectors ``(*, D)`` and values of the latent sites.

    Args:
        structure: What :func:`read_model` found.

    Example:
        >>> from pyro_flows.model import read_model
        >>> def model():
        ...     pyro.sample("s", dist.LogNormal(0.0, 1.0))
        >>> values, log_det = FlatLatents(read_model(model)).constrain(torch.zeros(5, 1))
        >>> values["s"].shape, log_det.shape
        (torch.Size([5]), torch.Size([5]))
    """

    def __init__(self, structure: ModelStructure) -> None:
        self.structure = structure

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        r"""Site values ``(*, site shape)`` and :math:`\log|\det|` of the map ``(*)`` for ``z`` of shape ``(*, D)``."""
        batch = z.shape[:-1]
        values: dict[str, Tensor] = {}
        total = z.new_zeros(batch)
        for site in self.structure.sites:
            unconstrained = z[..., site.start : site.stop].reshape(batch + site.unconstrained_shape)
            value = site.transform(unconstrained)
            log_det = site.transform.log_abs_det_jacobian(unconstrained, value)
            total = total + sum_rightmost(log_det, log_det.dim() - len(batch))
            values[site.name] = value
        return values, total

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained vectors ``(*, D)`` for values ``(*, site shape)``."""
        parts = []
        for site in self.structure.sites:
            value = values[site.name]
            batch = value.shape[: value.dim() - len(site.shape)]
            parts.append(site.transform.inv(value).reshape(*batch, -1))
        return torch.cat(parts, -1)
