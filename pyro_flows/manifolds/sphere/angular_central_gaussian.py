"""Direction of a normal vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from .geometry import SPHERE, check_ambient_dim, log_area, project_to_sphere


class AngularCentralGaussian(TorchDistribution):  # type: ignore[misc]
    r"""Angular central Gaussian: the direction of a normal vector with mean zero and covariance :math:`\Lambda = L L^\top`.

    .. math:: p(x) = \frac{\Gamma(n/2)}{2 \pi^{n/2}} |\Lambda|^{-1/2} (x^\top \Lambda^{-1} x)^{-n/2}

    It does not depend on the scale of L, and has the same density at antipodes.

    References:
        Tyler (1987), *Statistical analysis for the angular central Gaussian distribution on the sphere*,
        https://doi.org/10.1093/biomet/74.3.579

    Args:
        scale_tril: Cholesky factor L, ``(*, n, n)``.
        validate_args: Check arguments and values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If ``scale_tril`` is no such factor, where arguments are validated.

    Example:
        >>> acg = AngularCentralGaussian(torch.diag(torch.tensor([10.0, 1.0, 1.0])))
        >>> acg.sample((1000,))[:, 0].abs().mean().item() > 0.8
        True
    """

    arg_constraints = {"scale_tril": constraints.lower_cholesky}
    support = SPHERE
    has_rsample = True

    def __init__(self, scale_tril: Tensor, *, validate_args: bool | None = None) -> None:
        if scale_tril.dim() < 2 or scale_tril.shape[-1] != scale_tril.shape[-2]:
            raise ValueError(f"scale_tril must be square matrices (*, n, n), got shape {tuple(scale_tril.shape)}")
        check_ambient_dim(scale_tril.shape[-1], "the size of scale_tril")
        self.scale_tril = scale_tril
        super().__init__(scale_tril.shape[:-2], scale_tril.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> AngularCentralGaussian:
        """The same with another batch shape."""
        n = self.event_shape[0]
        new = AngularCentralGaussian(self.scale_tril.expand(*batch_shape, n, n), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, n)``, with gradient."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self.scale_tril.dtype, device=self.scale_tril.device)
        return project_to_sphere((self.scale_tril @ noise[..., None])[..., 0])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` with regard to area, at unit vectors ``(*, n)``."""
        if self._validate_args:
            self._validate_sample(value)
        n = self.event_shape[0]
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        factor, at = self.scale_tril.expand(*batch, n, n), value.expand(*batch, n)
        whitened = torch.linalg.solve_triangular(factor, at[..., None], upper=False)[..., 0]
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -log_area(n) - log_det - 0.5 * n * whitened.square().sum(-1).log()
