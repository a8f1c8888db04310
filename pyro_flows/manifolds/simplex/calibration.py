"""Calibration transforms of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.transforms.context_parameters import ContextParameters
from pyro_flows.transforms.core import FlowTransform
from pyro_flows.transforms.triangular import matvec, strictly_lower_index, triangular_solve, unpack

from .geometry import SIMPLEX, check_on_simplex, helmert


class _SimplexTransform(FlowTransform):
    """A bijection of the simplex by its logarithms."""

    domain = SIMPLEX
    codomain = SIMPLEX

    def __init__(self, num_components: int, context_dim: int) -> None:
        if not isinstance(num_components, int) or isinstance(num_components, bool) or num_components < 2:
            raise ValueError(f"num_components must be an integer of at least 2, got {num_components!r}")
        super().__init__(num_components, context_dim)


class Calibration(_SimplexTransform):
    r"""Calibration :math:`q = \mathrm{softmax}(\log p / a + c)` with a temperature :math:`a > 0` and a shift c.

    .. math:: \log R = (1 - n) \log a + \sum_i \log q_i - \sum_i \log p_i

    Compositions and inverses are of the same kind, so that stacking these adds nothing. With ``shift=False`` it is temperature
    scaling. Starts at the identity. A classifier is recalibrated by the likelihood of labels, ``-log q[label]`` minimised by an
    optimiser, or ``Categorical(probs=calibration(p))`` in a Pyro model; ``fit_density`` is for densities of proportions.

    References:
        Guo, Pleiss, Sun, Weinberger (2017), *On calibration of modern neural networks*, https://arxiv.org/abs/1706.04599

    Args:
        num_components: Number n of components, at least 2.
        context_dim: Size of the context; 0 for none.
        shift: Whether there is a c.
        hidden_dims: Hidden layers of the network of the context.

    Raises:
        ValueError: If an argument is not as described, or a point is off the simplex or has an exact zero.

    Example:
        >>> Calibration(3)(torch.tensor([0.2, 0.3, 0.5])).detach()
        tensor([0.2000, 0.3000, 0.5000])
    """

    def __init__(
        self, num_components: int, context_dim: int = 0, *, shift: bool = True, hidden_dims: Sequence[int] = (64,)
    ) -> None:
        super().__init__(num_components, context_dim)
        values = {"log_temperature": torch.zeros(1)} | ({"shift": torch.zeros(num_components)} if shift else {})
        self.params = ContextParameters(values, context_dim, hidden_dims)

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_a, *rest = self.params(context)
        return log_a, rest[0] - rest[0].mean(-1, keepdim=True) if rest else torch.zeros_like(log_a)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return q of shape ``(*, n)`` and the log-ratio of volumes, ``(*)``."""
        log_a, c = self._parts(context)
        log_p = check_on_simplex(x, "x").log()
        log_q = (log_p * (-log_a).exp() + c).log_softmax(-1)
        return log_q.exp(), (1 - self.input_dim) * log_a[..., 0] + (log_q - log_p).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return p of shape ``(*, n)`` and the log-ratio of volumes of the inverse, ``(*)``."""
        log_a, c = self._parts(context)
        log_q = check_on_simplex(y, "y").log()
        log_p = ((log_q - c) * log_a.exp()).log_softmax(-1)
        return log_p.exp(), (self.input_dim - 1) * log_a[..., 0] + (log_p - log_q).sum(-1)


class GeneralizedCalibration(_SimplexTransform):
    r"""Generalised calibration :math:`q = \mathrm{softmax}(A^{-1} \log p + c)` with :math:`A \mathbf{1} = \lambda \mathbf{1}`.

    .. math:: \log R = \log|\lambda| - \log|\det A| + \sum_i \log q_i - \sum_i \log p_i

    The condition makes it a map of the simplex. λ changes nothing and is one:
    :math:`A^{-1} = V^\top W V + \mathbf{1}\mathbf{1}^\top / n` with an orthonormal basis V of the vectors that sum to zero and a
    learnable invertible W in LU form. Compositions and inverses are of the same kind (:meth:`after`). Starts at the identity.

    References:
        Kull et al. (2019), *Beyond temperature scaling: obtaining well-calibrated multi-class probabilities with Dirichlet
        calibration*, https://arxiv.org/abs/1910.12656

    Args:
        num_components: Number n of components, at least 2.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the network of the context.

    Raises:
        ValueError: If an argument is not as described, or a point is off the simplex or has an exact zero.

    Example:
        >>> GeneralizedCalibration(3)(torch.tensor([0.2, 0.3, 0.5])).detach()
        tensor([0.2000, 0.3000, 0.5000])
    """

    index: Tensor
    row_order: Tensor
    signs: Tensor

    def __init__(self, num_components: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__(num_components, context_dim)
        m = num_components - 1
        packed = m * (m - 1) // 2
        values = {
            "shift": torch.zeros(m), "log_diagonal": torch.zeros(m), "lower": torch.zeros(packed), "upper": torch.zeros(packed)
        }  # fmt: skip
        self.params = ContextParameters(values, context_dim, hidden_dims)
        self.register_buffer("index", strictly_lower_index(m), persistent=False)
        self.register_buffer("row_order", torch.arange(m))
        self.register_buffer("signs", torch.ones(m))

    @classmethod
    def from_matrix(cls, a: Tensor, c: Tensor) -> GeneralizedCalibration:
        """That of a given matrix A and shift c.

        Args:
            a: Matrix ``(n, n)`` whose rows have the same sum.
            c: Shift ``(n,)``.

        Raises:
            ValueError: If ``a`` is no such matrix or is singular, or ``c`` does not fit.
        """
        if a.dim() != 2 or a.shape[0] != a.shape[1] or c.shape != a.shape[:1]:
            raise ValueError(f"a must be a matrix (n, n) and c a vector (n,), got {tuple(a.shape)} and {tuple(c.shape)}")
        sums = a.sum(-1)
        if not bool((sums - sums[0]).abs().max() <= 1e3 * torch.finfo(a.dtype).eps * a.abs().max()):
            raise ValueError(f"a must have rows of the same sum, got sums from {float(sums.min()):.6g} to {float(sums.max()):.6g}")
        if not bool(torch.linalg.cond(a) < 0.1 / torch.finfo(a.dtype).eps):
            raise ValueError(f"a must be invertible, its condition number is {float(torch.linalg.cond(a)):.3g}")
        made = cls(len(c)).to(a)
        basis = helmert(len(c), a)
        made._set(basis @ torch.linalg.inv(a) @ basis.mT, basis @ c)
        return made

    @torch.no_grad()
    def _set(self, w: Tensor, shift: Tensor) -> None:
        permutation, lower, upper = torch.linalg.lu(w)
        diagonal = upper.diagonal()
        scaled = upper / diagonal.sign()[None, :]
        self.signs.copy_(diagonal.sign())
        self.row_order.copy_(permutation.argmax(-1))
        rows, columns = torch.tril_indices(len(w), len(w), -1, device=w.device)
        params = self.params
        params.get_parameter("lower").copy_(lower[rows, columns])
        params.get_parameter("upper").copy_(scaled.mT[rows, columns])
        params.get_parameter("log_diagonal").copy_(diagonal.abs().log())
        params.get_parameter("shift").copy_(shift)

    def inner_matrix(self, context: Tensor | None = None) -> Tensor:
        """The matrix W, ``(n - 1, n - 1)`` or ``(*, n - 1, n - 1)``."""
        eye = torch.eye(self.input_dim - 1, dtype=self.signs.dtype, device=self.signs.device)
        return self._times(eye, context).mT

    def _times(self, z: Tensor, context: Tensor | None) -> Tensor:
        _, log_diagonal, lower, upper = self.params(context)
        z = self.signs * z
        h = matvec(unpack(upper, self.index.mT), z) + log_diagonal.exp() * z
        h = matvec(unpack(lower, self.index), h) + h
        return h[..., self.row_order]

    def after(self, first: GeneralizedCalibration) -> GeneralizedCalibration:
        """The calibration that is ``first`` and then this one; both unconditional.

        Raises:
            ValueError: If one takes a context, or the numbers of components differ.
        """
        if self.context_dim or first.context_dim or self.input_dim != first.input_dim:
            raise ValueError("first and this calibration must be unconditional and of the same number of components")
        made = GeneralizedCalibration(self.input_dim).to(self.signs)
        shift = self._times(first.params()[0], None) + self.params()[0]
        made._set(self.inner_matrix() @ first.inner_matrix(), shift)
        return made

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return q of shape ``(*, n)`` and the log-ratio of volumes, ``(*)``."""
        shift, log_diagonal = self.params(context)[:2]
        log_p = check_on_simplex(x, "x").log()
        basis = helmert(self.input_dim, x)
        z = self._times(log_p @ basis.mT, context) + shift
        log_q = (z @ basis).log_softmax(-1)
        return log_q.exp(), log_diagonal.sum(-1) + (log_q - log_p).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return p of shape ``(*, n)`` and the log-ratio of volumes of the inverse, ``(*)``."""
        shift, log_diagonal, lower, upper = self.params(context)
        log_q = check_on_simplex(y, "y").log()
        basis = helmert(self.input_dim, y)
        h = (log_q @ basis.mT - shift)[..., self.row_order.argsort()]
        h = triangular_solve(unpack(lower, self.index), h, upper=False, unit_diagonal=True)
        z = triangular_solve(unpack(upper, self.index.mT) + torch.diag_embed(log_diagonal.exp()), h, upper=True)
        log_p = ((self.signs * z) @ basis).log_softmax(-1)
        return log_p.exp(), (log_p - log_q).sum(-1) - log_diagonal.sum(-1)
