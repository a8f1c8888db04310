"""Flow along the gradient of a potential, by the exponential map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.nn.arguments import check_positive
from pyro_flows.solvers import damped_newton, log_abs_det
from pyro_flows.transforms.context_parameters import ContextParameters

from .base import SphereTransform


class ExponentialMap(SphereTransform):
    r"""Exponential-map flow :math:`y = \exp_x(v)`, along the gradient of a sum of radial potentials.

    .. math:: v = (I - x x^\top) g, \quad g = \sum_k \alpha_k e^{\beta_k (\mu_k^\top x - 1)} \mu_k, \quad
        y = \cos|v|\,x + \frac{\sin|v|}{|v|} v

    with unit vectors :math:`\mu_k`, :math:`\beta_k > 0`, :math:`\alpha_k \ge 0` and :math:`\sum_k \alpha_k \le 1`, for which it
    is a bijection. Mass moves towards the :math:`\mu_k`. The Jacobian is in closed form, of the extension
    :math:`x \mapsto |x| f(x / |x|)`, whose determinant is the volume ratio. The inverse is solved by Newton steps, with implicit
    gradients. It starts near the identity.

    References:
        Sei (2013), *A Jacobian inequality for gradient maps on the sphere and its application to directional statistics*,
        https://arxiv.org/abs/0906.0874;
        Rezende et al. (2020), *Normalizing flows on tori and spheres*, https://arxiv.org/abs/2002.02428, section 2.3.3

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.
        num_components: Number of potentials.
        hidden_dims: Hidden layers of the network of the context.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> flow = ExponentialMap(3)
        >>> x = torch.tensor([0.0, 0.6, 0.8])
        >>> torch.allclose(flow.inv(flow(x)), x, atol=1e-6)
        True
    """

    inverse_kind = "solved"
    cheap_direction = "forward"

    def __init__(
        self, input_dim: int, context_dim: int = 0, *, num_components: int = 8, hidden_dims: Sequence[int] = (64,)
    ) -> None:
        super().__init__(input_dim, context_dim)
        check_positive(num_components=num_components)
        self.num_components = num_components
        values = {
            "centres": torch.randn(num_components, input_dim),
            "raw_sharpness": torch.zeros(num_components),
            # Of a softmax with a class that does nothing: 2 % in all at the start.
            "raw_weights": torch.full((num_components,), -4.0) - torch.tensor(float(num_components)).log(),
        }
        self.params = ContextParameters(values, context_dim, hidden_dims)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, num_components={self.num_components}"

    def on_sphere(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        centres, raw_sharpness, raw_weights = self.params(context)
        centres = centres / centres.norm(dim=-1, keepdim=True)
        sharpness = raw_sharpness.exp()
        weights = torch.cat([raw_weights, torch.zeros_like(raw_weights[..., :1])], -1).softmax(-1)[..., :-1]

        def value_and_jacobian(x: Tensor) -> tuple[Tensor, Tensor]:
            length = x.norm(dim=-1, keepdim=True)
            value, jacobian = _step(x / length, centres, sharpness, weights)
            return length * value, jacobian

        if not inverse:
            value, jacobian = _step(at, centres, sharpness, weights)
            return value, log_abs_det(jacobian)
        x = damped_newton(value_and_jacobian, at, at.detach(), value=lambda x: value_and_jacobian(x)[0])
        x = x / x.norm(dim=-1, keepdim=True)
        return x, -log_abs_det(_step(x, centres, sharpness, weights)[1])


def _step(x: Tensor, centres: Tensor, sharpness: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Values at unit vectors ``(*, n)``, and the Jacobian ``(*, n, n)`` of the extension of degree one."""
    cosines = (centres @ x[..., None])[..., 0]
    pull = weights * (sharpness * (cosines - 1)).exp()
    g = (pull[..., None] * centres).sum(-2)
    curvature = centres.mT @ ((pull * sharpness)[..., None] * centres)
    along = (x * g).sum(-1, keepdim=True)
    v = g - along * x
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    of_v = curvature - x[..., :, None] * (g + (curvature @ x[..., None])[..., 0])[..., None, :] - along[..., None] * eye
    squared = v.square().sum(-1, keepdim=True)
    cos, sinc, slope = _rotation(squared)
    value = cos * x + sinc * v
    # d cos|v| = -sinc (v . dv), d sinc|v| = slope (v . dv)
    of_length = (of_v.mT @ v[..., None])[..., 0]
    of_value = cos[..., None] * eye + sinc[..., None] * of_v + (slope * v - sinc * x)[..., :, None] * of_length[..., None, :]
    tangential = of_value - (of_value @ x[..., None]) * x[..., None, :]
    return value, tangential + value[..., :, None] * x[..., None, :]


def _rotation(squared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r""":math:`\cos r`, :math:`\sin r / r` and :math:`(r \cos r - \sin r) / r^3`, from :math:`r^2`, smooth at zero."""
    small = squared < 1e-2
    safe = torch.where(small, torch.ones_like(squared), squared)
    r = safe.sqrt()
    cos, sinc = r.cos(), r.sin() / r
    slope = (cos - sinc) / safe
    s = torch.where(small, squared, torch.zeros_like(squared))
    cos_ = 1 - s / 2 * (1 - s / 12 * (1 - s / 30 * (1 - s / 56)))
    sinc_ = 1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72)))
    slope_ = -1 / 3 * (1 - s / 10 * (1 - s / 28 * (1 - s / 54)))
    return torch.where(small, cos_, cos), torch.where(small, sinc_, sinc), torch.where(small, slope_, slope)
