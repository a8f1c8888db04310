"""Free-form flow: two networks that are trained to be each other's inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..nn.tangent_mlp import TangentMLP
from ..solvers import damped_newton, log_abs_det
from .core import FlowTransform
from .supports import is_real

#: Points ``(*, D)`` to values ``(*, D)`` and the Jacobian ``(*, D, D)``.
Lifted = Callable[[Tensor], tuple[Tensor, Tensor]]


class FreeForm(FlowTransform):
    r"""Free-form flow: a decoder :math:`y = g(x; c)` of any form, and an encoder :math:`f` trained to be its inverse.

    .. math:: g(x; c) = x + u(x; c), \quad f(y; c) = y + w(y; c), \quad
        \log\Big|\det \frac{\partial g}{\partial x}\Big| \text{ by the Jacobian, in } O(D^3),

    with bounded networks u and w, which are zero at the start. Nothing forces g to be one to one; training does, by
    :func:`~pyro_flows.infer.free_form_loss`, which needs no determinant and no inverse. What is given out is exact for the decoder:
    its inverse is found by damped Newton steps from where the encoder says it is, with implicit gradients, and raises where these
    do not converge. Where the decoder folds, the inverse is that nearest to the encoder, and the density that of one fold: look at
    ``pf.diagnostics.audit_inverse``.

    References:
        Draxler, Sorrenson, Zimmermann, Rousselot, Köthe (2024), *Free-form flows: Make any architecture a normalizing flow*,
        https://arxiv.org/abs/2310.16624

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of both networks; one at least.

    Raises:
        ValueError: If an argument is not as described.
        ArithmeticError: In the inverse, in eager mode, if it is not found. Elsewhere it is NaN.

    Example:
        >>> flow = FreeForm(2)
        >>> flow.inv(flow(torch.ones(2))).tolist()
        [1.0, 1.0]
    """

    inverse_kind = "solved"
    cheap_direction = "forward"

    def __init__(self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64)) -> None:
        super().__init__(input_dim, context_dim)
        seen = self._num_seen
        self.decoder = TangentMLP(seen, input_dim, context_dim, hidden_dims)
        self.encoder = TangentMLP(seen, input_dim, context_dim, hidden_dims)

    @property
    def _num_seen(self) -> int:
        """Numbers by which networks see a point."""
        return self.input_dim

    def pushed(self, network: TangentMLP, x: Tensor, v: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""The map of a network, extended to all of :math:`R^D`, and what becomes of tangents; where it is one to one, the map is.

        Args:
            network: ``decoder`` or ``encoder``.
            x: Points ``(*, D)``.
            v: Tangents ``(*, K, D)``.
            context: Context ``(*, context_dim)``.
        """
        seen, tangents = self._seen(x, v)
        value, moved = network.pushed(seen, tangents, context)
        return x + value, v + moved

    def lifted(self, network: TangentMLP, context: Tensor | None = None) -> Lifted:
        """The same map with its Jacobian ``(*, D, D)``, as a function of points."""

        def value_and_jacobian(x: Tensor) -> tuple[Tensor, Tensor]:
            eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(*x.shape, -1)
            value, rows = self.pushed(network, x, eye, context)
            return value, rows.mT

        return value_and_jacobian

    def _seen(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What networks see of points ``(*, D)`` and tangents ``(*, K, D)``."""
        return x, v

    def tangents(self, x: Tensor) -> Tensor:
        """Random tangents ``(*, D)`` at points, of one length, whose covariance is the identity of the tangent space."""
        noise = torch.randn_like(x)
        return noise * (math.sqrt(x.shape[-1]) / noise.norm(dim=-1, keepdim=True))

    def gap(self, a: Tensor, b: Tensor) -> Tensor:
        """Difference ``(*, D)`` of points."""
        return a - b

    def arrived(self, x: Tensor) -> Tensor:
        """Points ``(*, D)`` as they are given out."""
        return x

    def _taken(self, x: Tensor, name: str) -> Tensor:
        """Points as they are taken."""
        return x

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        value, jacobian = self.lifted(self.decoder, context)(self._taken(x, "x"))
        return self.arrived(value), log_abs_det(jacobian)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        y = self._taken(y, "y")
        decoded = self.lifted(self.decoder, context)
        with torch.no_grad():
            start = self.lifted(self.encoder, context)(y)[0]
        x = damped_newton(decoded, y, start, value=lambda x: self.pushed(self.decoder, x, x[..., None, :][..., :0, :], context)[0])
        return self.arrived(x), -log_abs_det(decoded(x)[1])

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As for every transform; of vectors from the Jacobian, without an inverse."""
        if not is_real(self.domain):
            return super().forward_with_score(x, score, context)
        x, context = self._check(x, context, "forward_with_score")
        y, log_det = self.forward_and_log_det(x, context)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            jacobian = self.lifted(self.decoder, context)(at)[1]
            (slope,) = torch.autograd.grad(log_abs_det(jacobian).sum(), at)
        found = torch.linalg.solve(jacobian.detach().mT, (score.detach() - slope)[..., None])[..., 0]
        return y, log_det, found
