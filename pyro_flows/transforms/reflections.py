"""Product of Householder reflections, applied to a batch of vectors at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .triangular import matvec, triangular_solve


def reflect(x: Tensor, vectors: Tensor, *, transpose: bool = False) -> Tensor:
    r"""Apply :math:`Q = H_1 H_2 \cdots H_K`, with :math:`H_k = I - 2 v_k v_k^\top / |v_k|^2`, or its transpose.

    The product is taken in its compact form :math:`Q = I - V S^{-1} V^\top`, with normalised columns :math:`V` and the
    upper triangular :math:`S = I/2 + \mathrm{striu}(V^\top V)`: two products and a triangular solve instead of
    :math:`K` steps.

    References:
        Joffrain et al. (2006), *Accumulating Householder transformations, revisited*,
        https://doi.org/10.1145/1141885.1141886

    Args:
        x: Shape ``(*, D)``.
        vectors: The :math:`v_k`, shape ``(K, D)`` or ``(*, K, D)``; none of them zero.
        transpose: Whether to apply :math:`Q^\top`.

    Returns:
        Shape ``(*, D)``.

    Example:
        >>> reflect(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0]]))
        tensor([-3.,  4.])
    """
    # Scaled first by the largest entry, so that the squares neither overflow nor vanish.
    vectors = vectors / vectors.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    unit = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    gram = unit @ unit.mT
    half = torch.full_like(gram[..., 0], 0.5)
    factor = torch.triu(gram, diagonal=1) + torch.diag_embed(half)
    if transpose:
        factor = factor.mT
    inner = triangular_solve(factor, matvec(unit, x), upper=not transpose)
    return x - matvec(unit.mT, inner)
