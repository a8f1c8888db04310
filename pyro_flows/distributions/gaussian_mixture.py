"""Fixed mixture of Gaussians with full covariances, the base of a guide of several modes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from .mixture import which_component
from .module_distribution import ModuleDistribution


class GaussianMixture(ModuleDistribution):
    r"""Fixed mixture :math:`q_0(\epsilon) = \sum_k \pi_k\, N(\epsilon; \mu_k, L_k L_k^\top)`.

    Nothing is learned here, which is why draws need no gradient: a flow over it moves and shapes its components, and
    :meth:`reweight` sets their weights.

    Args:
        weights: :math:`\pi_k`, ``(K,)``; they are made to sum to one.
        loc: :math:`\mu_k`, ``(K, D)``.
        scale_tril: :math:`L_k`, ``(K, D, D)``, lower triangular with a positive diagonal.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If shapes do not fit, a weight is not positive, or a diagonal is not positive and finite.

    References:
        Stimper, Schölkopf, Hernández-Lobato (2022), *Resampling base distributions of normalizing flows*,
        https://arxiv.org/abs/2110.15828, where such a base is compared with others

    Example:
        >>> base = GaussianMixture(torch.ones(2), torch.tensor([[-5.0], [5.0]]), torch.ones(2, 1, 1))
        >>> base.log_prob(torch.tensor([5.0]))
        tensor(-1.6121)
    """

    support = constraints.real_vector
    has_rsample = True
    log_weights: Tensor
    loc: Tensor
    scale_tril: Tensor
    inverse_tril: Tensor

    def __init__(self, weights: Tensor, loc: Tensor, scale_tril: Tensor, *, validate_args: bool | None = None) -> None:
        if loc.dim() != 2:
            raise ValueError(f"loc must have shape (K, D), got {tuple(loc.shape)}")
        count, dim = loc.shape
        if count < 1 or not loc.is_floating_point() or not bool(torch.isfinite(loc).all()):
            raise ValueError(f"loc must hold at least one finite floating-point location, got {tuple(loc.shape)} of {loc.dtype}")
        if scale_tril.shape != (count, dim, dim):
            raise ValueError(f"scale_tril must have shape ({count}, {dim}, {dim}), got {tuple(scale_tril.shape)}")
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
        if not bool((torch.isfinite(diagonal) & (diagonal > 0)).all()):
            raise ValueError("scale_tril must have positive finite diagonals")
        if bool(scale_tril.triu(1).any()) or not bool(torch.isfinite(scale_tril).all()):
            raise ValueError("scale_tril must be finite and lower triangular")
        super().__init__((), (dim,), validate_args=validate_args)
        self.register_buffer("log_weights", self._normalised(weights, count).to(loc))
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale_tril", scale_tril.detach().tril().clone())
        eye = torch.eye(dim, dtype=loc.dtype, device=loc.device).expand(count, dim, dim)
        self.register_buffer("inverse_tril", torch.linalg.solve_triangular(self.scale_tril, eye, upper=False))

    @staticmethod
    def _normalised(weights: Tensor, count: int) -> Tensor:
        if weights.shape != (count,):
            raise ValueError(f"weights must have shape ({count},), got {tuple(weights.shape)}")
        if not bool((torch.isfinite(weights) & (weights > 0)).all()):
            raise ValueError(f"weights must be positive and finite, got {weights.tolist()}")
        return weights.log().log_softmax(0)

    def extra_repr(self) -> str:
        return f"num_components={len(self.loc)}, input_dim={self.event_shape[0]}, batch_shape={tuple(self.batch_shape)}"

    @property
    def weights(self) -> Tensor:
        """Weights of the components, ``(K,)``."""
        return self.log_weights.exp()

    @torch.no_grad()
    def reweight(self, weights: Tensor) -> None:
        """Replace the weights, ``(K,)``, in place.

        Raises:
            ValueError: As the constructor.
        """
        self.log_weights.copy_(self._normalised(weights, len(self.loc)))

    @torch.no_grad()
    def sample_with_component(self, sample_shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Draws ``(*sample_shape, *batch_shape, D)`` and the component of each, ``(*sample_shape, *batch_shape)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape[:-1], dtype=self.loc.dtype, device=self.loc.device)
        component = which_component(uniform, self.weights)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc[component] + torch.einsum("...ij,...j->...i", self.scale_tril[component], noise), component

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, D)``; there is nothing that they could have a gradient in."""
        return self.sample_with_component(sample_shape)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(*)``, of ``value``, ``(*, D)``."""
        self._check_value(value)
        standard = torch.einsum("kij,...kj->...ki", self.inverse_tril, value.unsqueeze(-2) - self.loc)
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_normal = -0.5 * standard.square().sum(-1) - log_det - 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)
        result = (self.log_weights + log_normal).logsumexp(-1)
        return result.expand(torch.broadcast_shapes(self.batch_shape, result.shape))
