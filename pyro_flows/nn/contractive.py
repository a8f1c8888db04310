"""Networks whose Lipschitz constant is known, with their Jacobian in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .arguments import check_hidden_dims, check_positive, is_between
from .recorded import Recorded
from .spectral import nonexpansive


class Contraction(NamedTuple):
    r"""A map :math:`g(x) = s\,x + h(x)` with :math:`\mathrm{Lip}(h) \le \rho (1 + s)`, :math:`\rho < 1`, at fixed weights and
    context.

    Args:
        linear: The number s, at least 0.
        apply: Maps ``x`` and tangents ``(*, D, K)``, or None, to :math:`h(x)` and to what the Jacobian of h makes of them.

    Example:
        >>> LipschitzNetwork(2).at(None).apply(torch.zeros(2), None)[0].abs().max().item()
        0.0
    """

    linear: Tensor
    apply: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class ContractiveNetwork(Recorded, nn.Module):
    """A network that makes a :class:`Contraction` for each context.

    Args:
        dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        lipschitz: The factor ρ, between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> LipschitzNetwork(2, lipschitz=0.9).lipschitz
        0.9
    """

    def __init__(self, dim: int, context_dim: int, lipschitz: float) -> None:
        super().__init__()
        check_positive(input_dim=dim)
        if not is_between(lipschitz, 0, 1):
            raise ValueError(f"lipschitz must be between 0 and 1, or the map has no inverse, got {lipschitz!r}")
        self.dim, self.context_dim, self.lipschitz = dim, context_dim, lipschitz

    def extra_repr(self) -> str:
        return f"{self.dim}, context_dim={self.context_dim}, lipschitz={self.lipschitz}"

    def at(self, context: Tensor | None) -> Contraction:
        """The map at a context ``(*, context_dim)``, with weights that are normalised once."""
        raise TypeError(f"{type(self).__name__} does not define at(context)")


class LipschitzNetwork(ContractiveNetwork):
    r"""Perceptron with a Lipschitz constant of at most :math:`\rho`, that of residual flows: s = 0.

    Every weight matrix is divided by a bound of its spectral norm where that is above one
    (:func:`~pyro_flows.nn.spectral.nonexpansive`). The activation is the concatenated :math:`[\phi(a), \phi(-a)] / 1.004` of
    :math:`\phi(a) = a\,\sigma(\beta a) / 1.1` with a learnable β, smooth and close to keeping the norm of gradients. The last
    layer starts at zero.

    References:
        Chen, Behrmann, Duvenaud, Jacobsen (2019), *Residual flows for invertible generative modeling*,
        https://arxiv.org/abs/1906.02735;
        Perugachi-Diaz, Tomczak, Bhulai (2021), *Invertible DenseNets with concatenated LipSwish*, https://arxiv.org/abs/2102.02694

    Args:
        dim: Number of variables D.
        context_dim: Size of the context, which enters the first layer without a bound; 0 for none.
        hidden_dims: Widths of the hidden layers; may be empty.
        lipschitz: The constant ρ, between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> network = LipschitzNetwork(3)
        >>> network.at(None).apply(torch.zeros(5, 3), torch.eye(3).expand(5, 3, 3))[1].shape
        torch.Size([5, 3, 3])
    """

    def __init__(self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64), *, lipschitz: float = 0.97) -> None:
        super().__init__(dim, context_dim, lipschitz)
        hidden = check_hidden_dims(hidden_dims)
        widths = [(a if i == 0 else 2 * a, b) for i, (a, b) in enumerate(zip((dim, *hidden), (*hidden, dim), strict=True))]
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(b, a)) for a, b in widths)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b)) for _, b in widths)
        self.raw_beta = nn.ParameterList(nn.Parameter(torch.tensor(math.log(math.e - 1))) for _ in hidden)  # softplus 1
        self.of_context = nn.Linear(context_dim, widths[0][1], bias=False) if context_dim else None
        for weight, bias in zip(list(self.weights)[:-1], list(self.biases)[:-1], strict=True):
            nn.init.orthogonal_(weight)
            nn.init.uniform_(bias, -1.0, 1.0)
        nn.init.zeros_(self.weights[-1])

    def at(self, context: Tensor | None) -> Contraction:
        weights = [nonexpansive(weight) for weight in self.weights]
        betas = [nn.functional.softplus(raw) for raw in self.raw_beta]
        biases = list(self.biases)
        told = None if self.of_context is None else self.of_context(context)

        def apply(x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
            for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                x = x @ weight.mT + bias
                if i == 0 and told is not None:
                    x = x + told
                tangents = None if tangents is None else weight @ tangents
                if i < len(betas):
                    x, slopes = _concatenated_lip_swish(x, betas[i], tangents is not None)
                    if tangents is not None:
                        tangents = slopes[..., None] * torch.cat([tangents, tangents], -2)  # type: ignore[index]
            return self.lipschitz * x, x.new_empty(0) if tangents is None else self.lipschitz * tangents

        return Contraction(torch.zeros_like(biases[0][0]), apply)


def _concatenated_lip_swish(a: Tensor, beta: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Values ``(*, 2 H)`` and their slopes with regard to the inputs ``(*, H)``, each of which has two."""
    gate = torch.sigmoid(beta * a)
    scale = 1 / (1.1 * 1.004)
    values = torch.cat([a * gate, -a * (1 - gate)], -1) * scale
    if not with_slope:
        return values, None
    bent = beta * a * gate * (1 - gate)
    return values, torch.cat([gate + bent, bent - (1 - gate)], -1) * scale


class ProximalNetwork(ContractiveNetwork):
    r"""Composition :math:`\Phi = T_K \circ \dots \circ T_1` of proximal operators :math:`T_k(x) = A_k^\top \tanh(A_k x + b_k)`.

    With :math:`\|A_k\| \le 1` each :math:`T_k` is the proximal operator of a function, and Φ averaged with :math:`t = K / (K + 1)`:
    :math:`\Phi = (1 - t) I + t R` for a nonexpansive R. So :math:`x + \gamma \Phi(x)` is invertible for
    :math:`\gamma < 1 / (2 t - 1)`, though :math:`\gamma \Phi` may expand. Here :math:`g = \gamma \Phi`, with a learnable
    :math:`\gamma` up to :math:`\rho / (t - \rho (1 - t))`, that is :math:`s = \gamma (1 - t)` and :math:`h = \gamma t R`. The
    context adds to the biases. It starts with a γ near zero.

    References:
        Hertrich (2023), *Proximal residual flows for Bayesian inverse problems*, https://arxiv.org/abs/2211.17158;
        Hasannasab et al. (2020), *Parseval proximal neural networks*, https://arxiv.org/abs/1912.10480

    Args:
        dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Number of rows of each matrix, one operator each; at least one.
        lipschitz: The factor ρ, between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> bool(ProximalNetwork(2).at(None).linear < 0.1)
        True
    """

    def __init__(self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64), *, lipschitz: float = 0.97) -> None:
        super().__init__(dim, context_dim, lipschitz)
        hidden = check_hidden_dims(hidden_dims)
        if not hidden:
            raise ValueError("hidden_dims must hold the size of one operator at least, got none")
        self.matrices = nn.ParameterList(nn.Parameter(nn.init.orthogonal_(torch.empty(width, dim))) for width in hidden)
        self.biases = nn.ParameterList(nn.Parameter(nn.init.uniform_(torch.empty(width), -1.0, 1.0)) for width in hidden)
        self.of_context = nn.ModuleList(nn.Linear(context_dim, width, bias=False) for width in hidden) if context_dim else None
        self.averaging = len(hidden) / (len(hidden) + 1)
        self.largest = lipschitz / (self.averaging - lipschitz * (1 - self.averaging))
        start = 0.01 / self.largest
        self.start = math.log(start / (1 - start))
        self.raw_gamma = nn.Parameter(torch.zeros(()))

    def at(self, context: Tensor | None) -> Contraction:
        matrices = [nonexpansive(matrix) for matrix in self.matrices]
        told = list(self.biases)
        if self.of_context is not None:
            told = [bias + linear(context) for bias, linear in zip(told, self.of_context, strict=True)]
        # With a gain, for γ has to grow by orders of magnitude.
        gamma = self.largest * torch.sigmoid(10 * self.raw_gamma + self.start)
        linear = gamma * (1 - self.averaging)

        def apply(x: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor]:
            at, moved = x, tangents
            for matrix, bias in zip(matrices, told, strict=True):
                inner = torch.tanh(at @ matrix.mT + bias)
                at = inner @ matrix
                if moved is not None:
                    moved = matrix.mT @ ((1 - inner.square())[..., None] * (matrix @ moved))
            value = gamma * at - linear * x
            return value, x.new_empty(0) if moved is None or tangents is None else gamma * moved - linear * tangents

        return Contraction(linear, apply)
