"""How typical a data set is of the simulations that a guide was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.nn.recorded import Recorded

_MOST_ROWS = 2000
_MOST_COMPONENTS = 32
_NEIGHBOURS = 5
_LINEAR = 3.0  # deviations up to which a variable keeps its scale


class Typicality(Recorded, nn.Module):
    r"""Conformal test of data against simulations, by the distance to their nearest neighbours.

    Half of the simulations are neighbours, the others are calibration. Every variable is first put to
    :math:`\mathrm{asinh}((x - m) / 3 s)` with its median :math:`m` and median deviation :math:`s`, lest a few wild simulations set
    the scale. The score of a data set is its distance, in whitened coordinates, to the fifth nearest neighbour; beyond 32
    variables, in the 32 leading principal components and in the norm of what these leave. Its p-value is
    :math:`(1 + \#\{\text{calibration scores at least as large}\}) / (1 + n)`. A data set that follows the model has a p-value of at
    most :math:`\alpha` with probability at most :math:`\alpha`, whatever the model. It can be far from the simulations where the
    model is wrong, and also where the prior is.

    References:
        Vovk, Gammerman, Shafer (2005), *Algorithmic learning in a random world*, https://doi.org/10.1007/b106715;
        Schmitt, Bürkner, Köthe, Radev (2023), *Detecting model misspecification in amortized Bayesian inference with neural
        networks*, https://arxiv.org/abs/2112.08866

    Args:
        num_variables: Number of standardised variables P of a data set.
        like: A tensor of the dtype and on the device to use.

    Example:
        >>> typicality = Typicality(2, torch.zeros(()))
        >>> typicality.set(torch.randn(400, 2))
        >>> bool(typicality.p_value(torch.tensor([9.0, 9.0])) < 0.01)
        True
    """

    components: Tensor
    median: Tensor
    deviation: Tensor
    centre: Tensor
    rest_scale: Tensor
    neighbours: Tensor
    calibration: Tensor

    def __init__(self, num_variables: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("median", like.new_zeros(num_variables))
        self.register_buffer("deviation", like.new_ones(num_variables))
        self.register_buffer("components", like.new_zeros(num_variables, 0))
        self.register_buffer("centre", like.new_zeros(num_variables))
        self.register_buffer("rest_scale", like.new_ones(()))
        self.register_buffer("neighbours", like.new_zeros(0, 0))
        self.register_buffer("calibration", like.new_zeros(0))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in list(self._buffers.items()):  # their sizes depend on the simulations
            found = state_dict.get(prefix + name)
            if buffer is not None and found is not None and found.shape != buffer.shape and name != "centre":
                self._buffers[name] = buffer.new_empty(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[arg-type]

    @property
    def is_set(self) -> bool:
        """Whether there are simulations to compare with."""
        return len(self.calibration) > 0

    @property
    def smallest(self) -> float:
        """The smallest p-value that so many simulations allow."""
        return 1 / (1 + len(self.calibration))

    @torch.no_grad()
    def set(self, data: Tensor) -> None:
        """Take simulations, ``(S, P)``, of which at most 4,000 are used.

        Raises:
            ValueError: If there are fewer than 20.
        """
        if len(data) < 4 * _NEIGHBOURS:
            raise ValueError(f"at least {4 * _NEIGHBOURS} simulations are needed, got {len(data)}")
        data = data[: 2 * _MOST_ROWS]
        self.median = data.median(0).values
        deviation = 1.4826 * (data - self.median).abs().median(0).values
        self.deviation = torch.where(deviation > 0, deviation, data.std(0).clamp_min(1e-6))
        data = self._tamed(data)
        centre = data.mean(0)
        _, values, vectors = torch.linalg.svd(data - centre, full_matrices=False)
        scales = values / len(data) ** 0.5
        kept = (scales > 1e-4 * scales.max().clamp_min(1e-30)) & (torch.arange(len(scales), device=data.device) < _MOST_COMPONENTS)
        self.centre = centre
        self.components = (vectors[kept] / scales[kept, None]).T.contiguous()
        self.rest_scale = torch.ones_like(self.rest_scale)
        rest = self._coordinates(data)[:, -1]
        self.rest_scale = rest.std().clamp_min(1e-3)
        coordinates = self._coordinates(data)
        half = len(data) // 2
        self.neighbours = coordinates[:half]
        self.calibration = self._distance(coordinates[half:]).sort().values

    def _tamed(self, data: Tensor) -> Tensor:
        return torch.asinh((data - self.median) / (_LINEAR * self.deviation))

    def _coordinates(self, data: Tensor) -> Tensor:
        """Whitened components and the norm of the rest, ``(*, K + 1)``."""
        centred = data - self.centre
        whitened = centred @ self.components
        back = torch.linalg.pinv(self.components)
        rest = torch.linalg.vector_norm(centred - whitened @ back, dim=-1, keepdim=True)
        return torch.cat([whitened, rest / self.rest_scale], -1)

    def _distance(self, coordinates: Tensor) -> Tensor:
        flat = coordinates.reshape(-1, coordinates.shape[-1])
        found = torch.cdist(flat, self.neighbours).kthvalue(_NEIGHBOURS, dim=-1).values
        return found.reshape(coordinates.shape[:-1])

    @torch.no_grad()
    def p_value(self, data: Tensor) -> Tensor:
        """The p-values ``(*)`` of data sets ``(*, P)``."""
        distance = self._distance(self._coordinates(self._tamed(data)))
        larger = len(self.calibration) - torch.searchsorted(self.calibration, distance.contiguous())
        return (1 + larger).to(data) / (1 + len(self.calibration))
