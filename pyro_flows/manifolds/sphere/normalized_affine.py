"""Affine maps of the ambient space, brought back to the sphere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.transforms.context_parameters import ContextParameters
from pyro_flows.transforms.triangular import matvec, strictly_lower_index, triangular_solve, unpack

from .base import SphereTransform


class NormalizedAffine(SphereTransform):
    r"""Normalised affine map :math:`y = M (x + a) / |M (x + a)|` with :math:`|a| < 1`.

    .. math:: \log R = \log|\det M| + \log(1 + a^\top x) - n \log|M (x + a)|

    With :math:`w = M^{-1} y` the inverse is :math:`x = s w - a`,
    :math:`s = \big(w^\top a + \sqrt{(w^\top a)^2 + |w|^2 (1 - |a|^2)}\big) / |w|^2`. The matrix is
    :math:`L (U + \mathrm{diag}(e^s))` with log-scales s that sum to zero, as the map does not depend on its scale, and
    :math:`a = r / \sqrt{1 + |r|^2}` for a raw r. Starts at the identity.

    References:
        Tyler (1987), *Statistical analysis for the angular central Gaussian distribution on the sphere*,
        https://doi.org/10.1093/biomet/74.3.579, for a = 0 and a uniform x

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the network of the context.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> x = torch.tensor([0.0, 0.6, 0.8])
        >>> NormalizedAffine(3)(x).detach()
        tensor([0.0000, 0.6000, 0.8000])
    """

    translates = True
    stretches = True
    index: Tensor

    def __init__(self, input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(input_dim, context_dim)
        packed = input_dim * (input_dim - 1) // 2
        values = {"raw_shift": torch.zeros(input_dim)} if self.translates else {}
        if self.stretches:
            values |= {"log_diagonal": torch.zeros(input_dim), "lower": torch.zeros(packed), "upper": torch.zeros(packed)}
        self.params = ContextParameters(values, context_dim, hidden_dims)
        self.register_buffer("index", strictly_lower_index(input_dim), persistent=False)

    def shift(self, context: Tensor | None = None) -> Tensor:
        """The vector a, ``(n,)`` or ``(*, n)``."""
        raw = self.params(context)[0]
        return raw * torch.rsqrt(1 + raw.square().sum(-1, keepdim=True))

    def matrix(self, context: Tensor | None = None) -> Tensor:
        """The matrix M, ``(n, n)`` or ``(*, n, n)``."""
        lower, upper, log_diagonal = self._factors(context)
        eye = torch.eye(self.input_dim, dtype=lower.dtype, device=lower.device)
        return (lower + eye) @ (upper + torch.diag_embed(log_diagonal.exp()))

    def _factors(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        log_diagonal, lower, upper = self.params(context)[-3:]
        log_diagonal = log_diagonal - log_diagonal.mean(-1, keepdim=True)
        return unpack(lower, self.index), unpack(upper, self.index.mT), log_diagonal

    def on_sphere(self, at: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        a = self.shift(context) if self.translates else torch.zeros_like(at[..., :1])
        if inverse:
            return self._inverted(at, a, context)
        moved = at + a
        if self.stretches:
            lower, upper, log_diagonal = self._factors(context)
            moved = matvec(upper, moved) + log_diagonal.exp() * moved
            moved = matvec(lower, moved) + moved
        length = moved.norm(dim=-1)
        return moved / length[..., None], (a * at).sum(-1).log1p() - self.input_dim * length.log()

    def _inverted(self, y: Tensor, a: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        w = y
        if self.stretches:
            lower, upper, log_diagonal = self._factors(context)
            w = triangular_solve(lower, w, upper=False, unit_diagonal=True)
            w = triangular_solve(upper + torch.diag_embed(log_diagonal.exp()), w, upper=True)
        squared, inner = w.square().sum(-1), (w * a).sum(-1)
        root = (inner.square() + squared * (1 - a.square().sum(-1))).sqrt()
        # Both signs of the inner product without cancellation.
        s = torch.where(inner > 0, (inner + root) / squared, (1 - a.square().sum(-1)) / (root - inner.clamp(max=0.0)))
        x = s[..., None] * w - a
        x = x / x.norm(dim=-1, keepdim=True)
        # M (x + a) = s y, so that its length is s.
        return x, self.input_dim * s.log() - (a * x).sum(-1).log1p()


class NormalizedLinear(NormalizedAffine):
    r"""Normalised linear map :math:`y = M x / |M x|`, :math:`\log R = \log|\det M| - n \log|M x|`.

    It takes the uniform distribution to the angular central Gaussian of :math:`M M^\top`. Antipodes stay antipodes. The rest as
    :class:`NormalizedAffine`.

    References:
        Tyler (1987), *Statistical analysis for the angular central Gaussian distribution on the sphere*,
        https://doi.org/10.1093/biomet/74.3.579

    Example:
        >>> NormalizedLinear(3)(torch.tensor([0.0, 0.6, 0.8])).detach()
        tensor([0.0000, 0.6000, 0.8000])
    """

    translates = False


class NormalizedTranslation(NormalizedAffine):
    r"""Normalised translation :math:`y = (x + c) / |x + c|` with :math:`|c| < 1`.

    :math:`\log R = \log(1 + c^\top x) - n \log|x + c|`: mass moves towards c. The rest as :class:`NormalizedAffine`.

    Example:
        >>> translation = NormalizedTranslation(2)
        >>> with torch.no_grad():
        ...     _ = translation.params.raw_shift.copy_(torch.tensor([0.0, 0.75]))
        >>> translation.shift().detach(), translation(torch.tensor([1.0, 0.0])).detach()
        (tensor([0.0000, 0.6000]), tensor([0.8575, 0.5145]))
    """

    stretches = False
