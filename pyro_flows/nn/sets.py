"""Encoders of sets: what they return does not depend on the order of the elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .arguments import check_positive
from .mlp import MLP
from .recorded import Recorded


def without_padding(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Elements ``(*, n, in_dim)``, zero where they do not count, and their mask ``(*, n)``, all true if none is given.

    Raises:
        ValueError: If ``x`` has no dimension of elements, or shape or dtype of the mask are not that of a mask of ``x``.

    Example:
        >>> without_padding(torch.ones(2, 1), torch.tensor([True, False]))[0].flatten()
        tensor([1., 0.])
    """
    if x.dim() < 2:
        raise ValueError(f"x must have shape (*, n, in_dim), got {tuple(x.shape)}")
    if mask is None:
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[:-1] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be boolean of shape {tuple(x.shape[:-1])}, True for elements that count, got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    return torch.where(mask.unsqueeze(-1), x, torch.zeros_like(x)), mask


class DeepSet(Recorded, nn.Module):
    r"""Deep set :math:`\rho\big(\frac1n \sum_i \phi(x_i),\; \log n\big)`.

    The mean keeps the output in range whatever the size of the set; the logarithm of the size tells how much it is worth.

    Args:
        in_dim: Size of an element.
        out_dim: Size of the output.
        hidden_dim: Size of :math:`\phi(x)`.
        hidden_dims: Hidden layers of both perceptrons.

    Raises:
        ValueError: If a size is not a positive integer.

    References:
        Zaheer et al. (2017), *Deep sets*, https://arxiv.org/abs/1703.06114

    Example:
        >>> encoder = DeepSet(3, 2)
        >>> x = torch.randn(5, 10, 3)
        >>> torch.allclose(encoder(x), encoder(x.flip(1)), atol=1e-6)
        True
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 64, hidden_dims: Sequence[int] = (64,)) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim)
        self.element = MLP(in_dim, hidden_dim, hidden_dims)
        self.whole = MLP(hidden_dim + 1, out_dim, hidden_dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map sets ``(*, n, in_dim)`` to ``(*, out_dim)``; ``mask`` ``(*, n)`` is True for the elements that count.

        What stands in the other elements, NaN included, makes no difference. An empty set is one of size zero.

        Raises:
            ValueError: If the mask does not fit.
        """
        x, mask = without_padding(x, mask)
        features = self.element(x)
        count = mask.sum(-1, keepdim=True).to(x.dtype)
        mean = torch.where(mask.unsqueeze(-1), features, torch.zeros_like(features)).sum(-2) / count.clamp_min(1)
        return self.whole(torch.cat([mean, count.log1p()], -1))


class SetAttention(Recorded, nn.Module):
    r"""Set transformer: blocks of self-attention among the elements, then attention of one learned query to all of them.

    Elements see each other, which a deep set does not have; in exchange it costs :math:`n^2`.

    Args:
        in_dim: Size of an element.
        out_dim: Size of the output.
        hidden_dim: Width; a multiple of ``num_heads``.
        num_heads: Number of heads.
        num_blocks: Number of blocks of self-attention.

    Raises:
        ValueError: If a size is not as described.

    References:
        Lee et al. (2019), *Set transformer*, https://arxiv.org/abs/1810.00825

    Example:
        >>> encoder = SetAttention(3, 2)
        >>> x = torch.randn(5, 10, 3)
        >>> torch.allclose(encoder(x), encoder(x.flip(1)), atol=1e-5)
        True
    """

    query: Tensor

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 64, num_heads: int = 4, num_blocks: int = 2) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, num_heads=num_heads, num_blocks=num_blocks)
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of num_heads, got {hidden_dim} and {num_heads}")
        self.first = nn.Linear(in_dim, hidden_dim)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(hidden_dim, num_heads, 2 * hidden_dim, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(num_blocks)
        )
        self.query = nn.Parameter(torch.randn(1, 1, hidden_dim) / hidden_dim**0.5)
        self.pool = nn.MultiheadAttention(hidden_dim, num_heads, batch_first=True)
        self.whole = MLP(hidden_dim + 1, out_dim, (hidden_dim,))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map sets ``(*, n, in_dim)`` to ``(*, out_dim)``; ``mask`` ``(*, n)`` is True for the elements that count.

        Raises:
            ValueError: If the mask does not fit, or a set has no element.
        """
        x, mask = without_padding(x, mask)
        if not torch.compiler.is_compiling() and not bool(mask.any(-1).all()):
            raise ValueError("mask leaves a set without an element, and attention needs one; leave such sets out, or take DeepSet")
        batch, count = x.shape[:-2], mask.sum(-1, keepdim=True).to(x.dtype)
        hidden = self.first(x.reshape(-1, *x.shape[-2:]))
        absent = ~mask.reshape(-1, mask.shape[-1])
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=absent)
        pooled = self.pool(self.query.expand(len(hidden), -1, -1), hidden, hidden, key_padding_mask=absent, need_weights=False)[0]
        return self.whole(torch.cat([pooled.reshape(*batch, -1), count.log1p()], -1))
