"""A guide of plates at one call, as a distribution of the flat vector of all latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .auto_plate_flow import AutoPlateFlow


class PlateJoint:
    """The latents of all elements of one call of an :class:`AutoPlateFlow`, unconstrained and in one vector ``(D,)``.

    Args:
        guide: The guide.
        args: Arguments of the call.
        kwargs: Keyword arguments of the call.

    Attributes:
        latent_dim: Size D of the vector.

    Example:
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> joint = PlateJoint(AutoPlateFlow(model, {"data": 2}).setup(torch.zeros(3)), (torch.zeros(3),))
        >>> draws, log_q = joint.rsample_and_log_prob((5,))
        >>> draws.shape, log_q.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, guide: AutoPlateFlow, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        self.guide, self.args, self.kwargs = guide, tuple(args), dict(kwargs or {})
        with torch.no_grad():
            one, _ = guide.draw(1, self._look())
        self.shapes = {name: value.shape[1:] for name, value in one.items()}
        self.latent_dim = sum(shape.numel() for shape in self.shapes.values())

    def _look(self) -> Any:
        return self.guide.look(*self.args, **self.kwargs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, D)`` without gradient."""
        with torch.no_grad():
            return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws ``(*sample_shape, D)`` and their log-density ``(*sample_shape)``."""
        count = torch.Size(sample_shape).numel()
        values, log_q = self.guide.draw(count, self._look())
        draws = torch.cat([value.reshape(count, -1) for value in values.values()], -1)
        return draws.reshape(*sample_shape, -1), log_q.reshape(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(N,)`` of vectors ``(N, D)``."""
        pieces = value.split([shape.numel() for shape in self.shapes.values()], -1)
        sites = {
            name: piece.reshape(*value.shape[:-1], *shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        return self.guide.score(sites, self._look())
