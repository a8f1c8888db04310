"""Coupling conditioner: some variables pass, and decide how the others are mapped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..nn.mlp import MLP
from .columns import context_rows, from_columns, permute_rows, to_columns, total
from .core import FlowTransform
from .elementwise import check_univariate
from .univariate.base import Params, UnivariateMap


class Coupling(FlowTransform):
    r"""Coupling layer :math:`y_A = x_A,\; y_B = u(x_B; g(x_A, c))` with a perceptron :math:`g` that starts at zero.

    :math:`\log|\det \partial y/\partial x| = \sum_{i \in B} \log|du/dx_i|`. NICE is ``Coupling(Shift)``, RealNVP
    ``Coupling(Affine)``, a neural spline flow ``Coupling(RationalQuadraticSpline)``. Both directions cost one pass.
    Where nothing passes, as with one variable, the map depends on the context alone, or is constant.

    References:
        Dinh, Krueger, Bengio (2014), *NICE: non-linear independent components estimation*, https://arxiv.org/abs/1410.8516

    Args:
        input_dim: Number of variables D.
        univariate: The map :math:`u`.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the perceptron.
        mask: True for the variables A that pass, ``(D,)``; by default the first half.

    Raises:
        ValueError: If an argument is not as described, or all variables pass.

    Example:
        >>> from pyro_flows.transforms.univariate import Affine
        >>> layer = Coupling(4, Affine())
        >>> layer(torch.ones(4)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    joined: Tensor
    restore: Tensor

    def __init__(
        self,
        input_dim: int,
        univariate: UnivariateMap,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        mask: Tensor | Sequence[bool] | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.univariate = check_univariate(univariate)
        if mask is None:
            mask = [i < input_dim // 2 for i in range(input_dim)]
        keep = mask.tolist() if isinstance(mask, Tensor) else list(mask)
        if len(keep) != input_dim or not all(isinstance(entry, bool) for entry in keep):
            raise ValueError(f"mask must hold {input_dim} booleans, True for a variable that passes; got {keep}")
        if all(keep):
            raise ValueError("mask lets every variable pass, so the layer would do nothing; set one entry to False")
        passed = [i for i in range(input_dim) if keep[i]]
        mapped = [i for i in range(input_dim) if not keep[i]]
        self._passed_last = mapped + passed == list(range(input_dim))
        joined = mapped + passed if self._passed_last else passed + mapped
        self._in_place = joined == list(range(input_dim))
        self.num_passed = len(passed)
        self.register_buffer("joined", torch.tensor(joined))
        self.register_buffer("restore", torch.tensor([joined.index(i) for i in range(input_dim)]))
        in_dim, out_dim = len(passed) + context_dim, len(mapped) * univariate.param_count
        self.network = MLP(in_dim, out_dim, hidden_dims, zero_init=True) if in_dim else None
        self.constant = None if in_dim else torch.nn.Parameter(torch.zeros(out_dim))

    def extra_repr(self) -> str:
        passed = self.joined[-self.num_passed :] if self._passed_last else self.joined[: self.num_passed]
        return f"passed={passed.tolist()}" if self.input_dim <= 16 else f"{self.num_passed} of {self.input_dim} pass"

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The variables that pass and those that are mapped, as columns."""
        columns = to_columns(x)
        if not self._in_place:
            columns = permute_rows(columns, self.joined, self.restore)
        sizes = [self.num_passed, self.input_dim - self.num_passed]
        first, second = columns.split(sizes[::-1] if self._passed_last else sizes)
        return (second, first) if self._passed_last else (first, second)

    def _params(self, passed: Tensor, context: Tensor | None, batch: tuple[int, ...]) -> Params:
        if self.network is None:
            raw: Tensor = self.constant[:, None]  # type: ignore[index]
        elif context is None:
            raw = self.network.columns(passed)
        else:
            rows = context_rows(context, batch)
            if len(passed) == 0:
                raw = self.network.columns(rows.T)
            else:
                raw = self.network.columns(torch.cat([passed, rows.T.expand(-1, passed.shape[1])]))
        return self.univariate.split(raw.unflatten(0, (self.univariate.param_count, -1)))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = x.shape[:-1]
        passed, entering = self._halves(x)
        mapped, log_det = self.univariate.forward_and_log_det(entering, self._params(passed, context, batch))
        return self._join(passed, mapped, batch), total(log_det, mapped, batch)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = y.shape[:-1]
        passed, entering = self._halves(y)
        mapped, log_det = self.univariate.inverse_and_log_det(entering, self._params(passed, context, batch))
        return self._join(passed, mapped, batch), total(log_det, mapped, batch)

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        # The Jacobian is block triangular with a diagonal block, so its transpose is solved by one vector-Jacobian product.
        x, context = self._check(x, context, "forward_with_score")
        batch = x.shape[:-1]
        passed_score, mapped_score = self._halves(score.detach().expand(x.shape))
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            passed, entering = self._halves(x)
            mapped, log_dets = self.univariate.forward_and_log_det(entering, self._params(passed, context, batch))
            log_dets = log_dets.expand(mapped.shape)
            ones = torch.ones_like(log_dets)
            if not self.univariate.affine:
                mapped_score = mapped_score - _gradient([log_dets], entering, [ones])
            mapped_score = mapped_score * (-log_dets.detach()).exp()
            pulled = _gradient([mapped, log_dets], passed, [mapped_score, ones])
        new_score = self._join(passed_score - pulled, mapped_score, batch)
        return self._join(passed, mapped, batch), log_dets.sum(0).reshape(batch), new_score

    def _join(self, passed: Tensor, mapped: Tensor, batch: tuple[int, ...]) -> Tensor:
        columns = torch.cat([mapped, passed] if self._passed_last else [passed, mapped])
        return from_columns(columns if self._in_place else permute_rows(columns, self.restore, self.joined), batch)


def _gradient(outputs: list[Tensor], at: Tensor, weights: list[Tensor]) -> Tensor:
    """Gradient of the weighted sum of the outputs, zero where they do not depend on ``at``; keeps the graph."""
    kept = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not kept:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad([o for o, _ in kept], at, [w for _, w in kept], retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if gradient is None else gradient
