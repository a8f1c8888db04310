"""Sylvester flow: several hidden units in orthogonal directions, with an inverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..nn.arguments import check_positive
from ..solvers import sech_squared, tanh_root
from .context_parameters import ContextParameters
from .core import FlowTransform
from .reflections import reflect
from .triangular import matvec, strictly_lower_index, unpack


class Sylvester(FlowTransform):
    r"""Sylvester map :math:`y = x + Q R \tanh(\tilde R Q^\top x + b)`.

    :math:`Q` holds the first ``M`` columns of a product of Householder reflections, :math:`R` and :math:`\tilde R` are
    upper triangular; :math:`\log|\det dy/dx| = \sum_i \log(1 + c_i \, \mathrm{sech}^2 v_i)` with
    :math:`v = \tilde R Q^\top x + b` and :math:`c_i = r_{ii} \tilde r_{ii}`. It is invertible for :math:`c_i > -1`,
    which holds by construction: the raw :math:`r_{ii}` is multiplied by :math:`\sigma(\operatorname{arsinh}(a_i / 2))`
    where :math:`a_i` is the raw product (see :class:`Planar`). :math:`R` starts at zero: the identity.

    The inverse works on :math:`z = Q^\top x`. From the last coordinate to the first, each is the root of one scalar
    equation :math:`v_i + c_i \tanh v_i = t_i`, where :math:`t_i` holds what the later ones gave: ``M`` scalar solves,
    gradients through the solutions.

    References:
        van den Berg, Hasenclever, Tomczak, Welling (2018), *Sylvester normalizing flows for variational inference*,
        https://arxiv.org/abs/1803.05649

    Args:
        input_dim: Number ``D`` of variables.
        context_dim: Size ``C`` of the context; 0 for none.
        num_units: Number ``M`` of hidden units, at most ``D``; default: ``D``.
        num_reflections: Number of Householder reflections; default: ``M``, which reaches every :math:`Q`.
        hidden_dims: Hidden layers of the network from the context to the offsets of all parameters.

    Raises:
        ValueError: If ``num_units`` is not in ``1 … D`` or ``num_reflections`` is not positive.

    Example:
        >>> sylvester = Sylvester(3, num_units=2)
        >>> sylvester(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 2.0, 3.0]
    """

    cheap_direction = "forward"
    inverse_kind = "solved"

    index: Tensor

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        num_units: int | None = None,
        num_reflections: int | None = None,
        hidden_dims: Sequence[int] = (64,),
    ) -> None:
        super().__init__(input_dim, context_dim)
        num_units = input_dim if num_units is None else num_units
        check_positive(num_units=num_units)
        if num_units > input_dim:
            raise ValueError(f"num_units must be in 1 … {input_dim} (input_dim), got {num_units}")
        num_reflections = num_units if num_reflections is None else num_reflections
        check_positive(num_reflections=num_reflections)
        self.num_units = num_units
        packed = num_units * (num_units - 1) // 2
        self.params = ContextParameters(
            {
                "vectors": torch.randn(num_reflections, input_dim) / input_dim**0.5,
                "outer": torch.zeros(packed),
                "outer_diagonal": torch.zeros(num_units),
                "inner": torch.zeros(packed),
                "inner_diagonal": torch.ones(num_units),
                "bias": torch.zeros(num_units),
            },
            context_dim,
            hidden_dims,
        )
        self.register_buffer("index", strictly_lower_index(num_units).mT.contiguous(), persistent=False)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`y` of shape ``(*, D)`` and the log-determinant of shape ``(*)``."""
        vectors, outer, outer_diagonal, inner, inner_diagonal, bias, c = self._constrained(context)
        z = self._project(x, vectors)
        v = matvec(inner, z) + inner_diagonal * z + bias
        h = torch.tanh(v)
        y = x + self._embed(matvec(outer, h) + outer_diagonal * h, vectors)
        return y, torch.log1p(c * sech_squared(v)).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return :math:`x` of shape ``(*, D)`` and the log-determinant of the inverse, shape ``(*)``."""
        vectors, outer, outer_diagonal, inner, inner_diagonal, bias, c = self._constrained(context)
        target = self._project(y, vectors)
        z = h = v = target[..., :0]  # of the coordinates done so far, the last of all at the end
        for i in reversed(range(self.num_units)):
            here = slice(i, i + 1)
            rest = target[..., here] - (outer[..., i, i + 1 :] * h).sum(-1, keepdim=True)
            shift = bias[..., here] + (inner[..., i, i + 1 :] * z).sum(-1, keepdim=True)
            v_i = tanh_root(c[..., here], inner_diagonal[..., here] * rest + shift)
            h_i = torch.tanh(v_i)
            v = torch.cat([v_i, v], -1)
            h = torch.cat([h_i, h], -1)
            z = torch.cat([rest - outer_diagonal[..., here] * h_i, z], -1)
        x = y - self._embed(matvec(outer, h) + outer_diagonal * h, vectors)
        return x, -torch.log1p(c * sech_squared(v)).sum(-1)

    def _project(self, x: Tensor, vectors: Tensor) -> Tensor:
        return reflect(x, vectors, transpose=True)[..., : self.num_units]

    def _embed(self, z: Tensor, vectors: Tensor) -> Tensor:
        return reflect(pad(z, (0, self.input_dim - self.num_units)), vectors)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, ...]:
        vectors, outer, outer_diagonal, inner, inner_diagonal, bias = self.params(context)
        log_slope = torch.asinh(0.5 * outer_diagonal * inner_diagonal)
        outer_diagonal = outer_diagonal * torch.sigmoid(log_slope)
        return (
            vectors,
            unpack(outer, self.index),
            outer_diagonal,
            unpack(inner, self.index),
            inner_diagonal,
            bias,
            torch.expm1(log_slope),
        )
