"""What a model does to tensors that ``vmap`` or autograd cannot follow, done in a way that they can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

_FACTORIES = {
    torch.zeros,
    torch.ones,
    torch.empty,
    torch.full,
    torch.eye,
    torch.zeros_like,
    torch.ones_like,
    torch.empty_like,
}
_METHOD_FACTORIES = {torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_empty, torch.Tensor.new_full}
_CHOLESKY = {torch.linalg.cholesky, torch.cholesky, torch.Tensor.cholesky}


class Rewrites(TorchFunctionMode):
    """Equivalents, inside the block, of operations that cannot be vectorised or differentiated through.

    ``torch.tensor([a, b])`` of tensors stacks them and keeps their gradient; ``x[mask] = number`` fills; a tensor
    made by ``torch.zeros`` and the like has a value per particle, so that ``x[j] = sample`` can be written to it; a
    Cholesky factor that does not exist is NaN instead of an error that would lose all particles.

    Args:
        like: A tensor that has a value per particle.

    Example:
        >>> a = torch.tensor(1.0, requires_grad=True)
        >>> with Rewrites(a):
        ...     torch.tensor([a, 2.0]).requires_grad
        True
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.zero = torch.zeros_like(like.detach().reshape(-1)[0])

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and args and _holds_tensor(args[0]):
            return self._stacked(args[0], **kwargs)
        if func is torch.Tensor.__setitem__ and _is_mask(args[1]) and not (isinstance(args[2], Tensor) and args[2].dim()):
            return args[0].masked_fill_(args[1], args[2])
        if func in _CHOLESKY and not args[1:] and not kwargs:
            factor, info = torch.linalg.cholesky_ex(args[0])
            return torch.where(info[..., None, None] == 0, factor, torch.full_like(factor, torch.nan))
        result = func(*args, **kwargs)
        if (func in _FACTORIES or func in _METHOD_FACTORIES) and result.is_floating_point() and result.device == self.zero.device:
            return result + self.zero.to(result.dtype)
        return result

    def _stacked(self, data: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
        def stack(item: Any) -> Tensor:
            if isinstance(item, (list, tuple)):
                return torch.stack([stack(i) for i in item])
            if not isinstance(item, Tensor):
                item = torch.as_tensor(item)
            return item.to(dtype=target, device=device)

        target = dtype
        if target is None:
            leaves = [leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf) for leaf in _leaves(data)]
            target = _promoted(leaves)
        return stack(data).clone()


def _promoted(leaves: Sequence[Tensor]) -> torch.dtype:
    # Python numbers do not raise the type of tensors of the same kind.
    result = leaves[0].dtype
    for leaf in leaves[1:]:
        result = torch.promote_types(result, leaf.dtype)
    return result


def _leaves(data: Any) -> list[Any]:
    if isinstance(data, (list, tuple)):
        return [leaf for item in data for leaf in _leaves(item)]
    return [data]


def _holds_tensor(data: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in _leaves(data))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def rewritten(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A function of one tensor, called inside :class:`Rewrites`.

    Example:
        >>> def lower(x):
        ...     return torch.linalg.cholesky(x)
        >>> rewritten(lower)(-torch.eye(1))
        tensor([[nan]])
    """

    def call(z: Tensor) -> Any:
        with Rewrites(z):
            return function(z)

    return call
