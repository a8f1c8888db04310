"""What distributions that are modules have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_flows.nn.recorded import Recorded
from pyro_flows.solvers.mode import is_eager
from pyro_flows.transforms.core import forget_pyro_links


class ModuleDistribution(Recorded, TorchDistribution, nn.Module):  # type: ignore[misc]
    r"""A Pyro distribution that is a module too, so that ``pyro.module`` trains what it owns.

    Args:
        batch_shape: Shape of the batch.
        event_shape: Shape of one event.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Example:
        >>> from pyro_flows.distributions import StandardNormal
        >>> wide = StandardNormal((3,)).expand((5,))
        >>> wide.batch_shape, wide().shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    arg_constraints: dict[str, Any] = {}
    batch_shape: torch.Size
    event_shape: torch.Size
    _batch_shape: torch.Size
    sample: Callable[..., Tensor]
    _extended_shape: Callable[[torch.Size], torch.Size]
    _validate_sample: Callable[[Tensor], None]
    __repr__ = nn.Module.__repr__

    def __init__(self, batch_shape: Sequence[int], event_shape: Sequence[int], *, validate_args: bool | None = None) -> None:
        nn.Module.__init__(self)
        TorchDistribution.__init__(self, torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    def __getstate__(self) -> dict[str, Any]:
        forget_pyro_links(self)
        return self.__dict__.copy()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution, with the same parameters and buffers, and another batch shape.

        What ``.to()`` or an optimiser does to one, it does to both.

        Raises:
            ValueError: If this one's batch shape does not expand to it: a dimension other than 1 would change, or go.
        """
        new = self._shallow_copy()
        new._batch_shape = self._check_expansion(batch_shape)
        return new

    def _check_expansion(self, batch_shape: Sequence[int]) -> torch.Size:
        old, new = torch.Size(self.batch_shape), torch.Size(batch_shape)
        kept = new[max(len(new) - len(old), 0) :]
        if len(kept) < len(old) or any(a not in (1, b) for a, b in zip(old, kept, strict=True)):
            raise ValueError(
                f"batch_shape must be one to which the {tuple(old)} of this {type(self).__name__} expands, "
                f"got {tuple(new)}; only dimensions of size 1 grow, and new ones come on the left"
            )
        return new

    def _shallow_copy(self) -> Self:
        # copy.copy would go by __getstate__, which drops links that Pyro needs until its step ends.
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def _check_value(self, value: Tensor) -> None:
        if self._validate_args and is_eager() and value.numel():  # torch's check of a support cannot take empty ones
            self._validate_sample(value)
