"""Einsum in log space, as a backend of opt_einsum that works under ``torch.func.vmap``.

Pyro's own takes the logarithm through an autograd function that vmap refuses.
"""

from __future__ import annotations

import torch
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["VmapLogRing", "einsum", "tensordot", "transpose"]


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Permute dimensions, as opt_einsum asks of a backend.

    Example:
        >>> transpose(torch.zeros(2, 3), (1, 0)).shape
        torch.Size([3, 2])
    """
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    r"""Sum of products :math:`\log \sum \prod_i \exp(x_i)` with the indices of an einsum equation.

    Where every term is zero the result is :math:`-\infty` with gradient zero, never NaN.

    Args:
        equation: As for ``torch.einsum``, without ellipses and repeated indices.
        operands: Tensors in log units.

    Example:
        >>> einsum("ij,j->i", torch.zeros(2, 3), torch.zeros(3)).exp()
        tensor([3., 3.])
    """
    left, output = equation.split("->")
    inputs = left.split(",")
    summed = sorted(set("".join(inputs)) - set(output))
    symbols = output + "".join(summed)
    total: Tensor | None = None
    for dims, operand in zip(inputs, operands, strict=True):
        present = [symbol for symbol in symbols if symbol in dims]
        sizes = iter(operand.permute([dims.index(symbol) for symbol in present]).shape)
        shape = [next(sizes) if symbol in dims else 1 for symbol in symbols]
        term = operand.permute([dims.index(symbol) for symbol in present]).reshape(shape)
        total = term if total is None else total + term
    if total is None:
        raise ValueError("einsum needs at least one operand")
    if not summed:
        return total.clone()
    axes = tuple(range(len(output), len(symbols)))
    shift = total.detach().amax(axes, keepdim=True).clamp(min=torch.finfo(total.dtype).min)
    sums = (total - shift).exp().sum(axes)
    positive = sums > 0
    logs = torch.where(positive, sums, torch.ones_like(sums)).log()
    return torch.where(positive, logs + shift.reshape(sums.shape), torch.full_like(sums, -torch.inf))


tensordot = Tensordot(einsum)


class VmapLogRing(LogRing):  # type: ignore[misc]
    """Pyro's ring of sums of products in log space, on this backend.

    Example:
        >>> VmapLogRing()._backend
        'pyro_flows.model.log_einsum'
    """

    _backend = "pyro_flows.model.log_einsum"
