"""Mixture of normals as a base, reparametrised also in its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .module_distribution import ModuleDistribution


def which_component(uniform: Tensor, weights: Tensor) -> Tensor:
    """Components ``(*)`` of a mixture of weights ``(K,)`` that numbers ``(*)`` uniform between 0 and 1 fall to.

    Example:
        >>> which_component(torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.5]))
        tensor([0, 1])
    """
    return (uniform.unsqueeze(-1) > weights.cumsum(-1)[:-1]).sum(-1)


class MixtureBase(ModuleDistribution):
    r"""Learnable mixture of diagonal normals.

    :math:`q_0(\epsilon) = \sum_k \pi_k \prod_i N(\epsilon_i; \mu_{ki}, \sigma_{ki}^2)`.

    A flow is a continuous map, and joins the modes of what it fits by bridges unless its base has modes of its own.

    A draw picks its component at random, and yet has the right gradient in all parameters, the weights included:
    with :math:`F_i(\epsilon_i \mid \epsilon_{<i})` the conditional distribution functions, :math:`d\epsilon/d\theta`
    solves the triangular system :math:`(\partial F/\partial\epsilon)\, d\epsilon/d\theta = -\partial F/\partial\theta`
    (implicit reparametrisation). That takes :math:`D^2 + KD` numbers a draw, and is right to first order: second
    derivatives through draws are not.

    At the start all weights are equal, and the mixture has mean 0 and variance 1 in every variable. The positions of
    the components come from torch's random generator.

    References:
        Figurnov, Mohamed, Mnih (2018), *Implicit reparameterization gradients*, https://arxiv.org/abs/1805.08498

    Args:
        input_dim: Number of variables D.
        num_components: Number of components K.
        spread: Standard deviation of the components' means at the start, at least 0 and below 1; without effect for one
            component.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If a number is not positive, or ``spread`` out of its bounds.

    Example:
        >>> base = MixtureBase(2, num_components=3)
        >>> base.rsample((5,)).sum().backward()
        >>> base.logits.grad.shape
        torch.Size([3])
    """

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, input_dim: int, num_components: int = 8, *, spread: float = 0.5, validate_args: bool | None = None) -> None:
        for name, number in (("input_dim", input_dim), ("num_components", num_components)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if not 0 <= spread < 1:
            raise ValueError(f"spread must be at least 0 and below 1, got {spread}")
        super().__init__((), (input_dim,), validate_args=validate_args)
        loc = torch.randn(num_components, input_dim)
        if num_components > 1:
            loc = loc - loc.mean(0)
            loc = loc * (spread / loc.square().mean(0).sqrt())
        else:
            loc, spread = torch.zeros_like(loc), 0.0
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full((num_components, input_dim), 0.5 * math.log1p(-(spread**2))))

    @property
    def weights(self) -> Tensor:
        """Weights of the components, ``(K,)``."""
        return self.logits.softmax(-1)

    @property
    def scale(self) -> Tensor:
        """Standard deviations of the components, ``(K, D)``."""
        return self.log_scale.exp()

    def extra_repr(self) -> str:
        return f"input_dim={self.event_shape[0]}, num_components={len(self.logits)}, batch_shape={tuple(self.batch_shape)}"

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, D)``, with gradient to weights, means and scales."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            loc, uniform = self.loc, torch.rand(shape[:-1], dtype=self.loc.dtype, device=self.loc.device)
            component = which_component(uniform, self.weights)
            noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
            value = loc[component] + self.scale[component] * noise
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            value = self._with_gradient(value)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(*)``, of ``value``, ``(*, D)``."""
        self._check_value(value)
        result = (self.logits.log_softmax(-1) + self._log_normals(value)[1].sum(-1)).logsumexp(-1)
        return result.expand(torch.broadcast_shapes(self.batch_shape, result.shape))

    def _log_normals(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised values and log-densities of every component and variable, both ``(*, K, D)``."""
        standard = (value.unsqueeze(-2) - self.loc) * (-self.log_scale).exp()
        return standard, -0.5 * standard.square() - self.log_scale - 0.5 * math.log(2 * math.pi)

    def _with_gradient(self, value: Tensor) -> Tensor:
        r"""Draws ``(*, D)`` with gradient :math:`-(\partial F/\partial\epsilon)^{-1}\, \partial F/\partial\theta`."""
        standard, log_normal = self._log_normals(value)
        before = nn.functional.pad(log_normal.cumsum(-1)[..., :-1], (1, 0))  # the variables that F_i is conditional on
        weight = (self.logits.log_softmax(-1).unsqueeze(-1) + before).softmax(-2)
        lower = 0.5 * torch.erfc(-standard * math.sqrt(0.5))
        upper = 0.5 * torch.erfc(standard * math.sqrt(0.5))
        # Above the median by the upper tail: F and F - 1 have the same derivatives, and 1 - F keeps its digits.
        above = (weight * lower).sum(-2, keepdim=True) > 0.5
        tail = torch.where(above, -upper, lower)
        cdf = (weight * tail).sum(-2)
        with torch.no_grad():
            density = (weight * log_normal.exp()).sum(-2)
            score = -standard * (-self.log_scale).exp()
            cross = torch.einsum("...ki,...kj->...ij", weight * (tail - cdf.unsqueeze(-2)), score)
            jacobian = (cross / density.unsqueeze(-1)).tril(-1)  # of F, its rows divided by its diagonal
        step = ((cdf.detach() - cdf) / density).unsqueeze(-1)
        return value + torch.linalg.solve_triangular(jacobian, step, upper=False, unitriangular=True).squeeze(-1)
