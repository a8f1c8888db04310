"""What the flow of a plate is told of each element: rows of an encoder, or learned ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.model.plates import PlateCall


class EmbeddingRows(nn.Module):
    r"""A learned row for every element of a plate, or for every combination of elements of several; zero at the start.

    Args:
        plates: The plates, as at setup.
        width: Numbers in a row.
        like: Tensor whose dtype and device the table takes.
        sparse: Whether the table has sparse gradients, for ``torch.optim.SparseAdam``.

    Raises:
        ValueError: When called, if a plate has another size than at setup.

    Example:
        >>> rows = EmbeddingRows([PlateCall("data", -1, 10, torch.arange(10), False)], 4, torch.zeros(()))
        >>> rows([PlateCall("data", -1, 10, torch.tensor([3, 1]), True)], (), {}).shape
        torch.Size([2, 4])
    """

    def __init__(self, plates: Sequence[PlateCall], width: int, like: Tensor, *, sparse: bool = False) -> None:
        super().__init__()
        self.sizes = {plate.name: plate.size for plate in plates}
        count = 1
        for plate in plates:
            count *= plate.size
        self.table = nn.Embedding(count, width, sparse=sparse, dtype=like.dtype, device=like.device)
        nn.init.zeros_(self.table.weight)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.table.embedding_dim

    def forward(self, plates: Sequence[PlateCall], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Rows of the elements of this call, ``(n_1, …, n_k, width)`` for ``k`` plates."""
        flat: Tensor | None = None
        for plate in plates:
            known = self.sizes[plate.name]
            if plate.size != known:
                raise ValueError(
                    f"plate {plate.name!r} has size {plate.size} in this call and had {known} at setup; a learned embedding has "
                    f"a row for each element that it was trained on: keep the size, or give context={{{plate.name!r}: encoder}}"
                )
            indices = plate.indices.to(self.table.weight.device)
            flat = indices if flat is None else flat.unsqueeze(-1) * plate.size + indices
        return self.table(flat)  # type: ignore[no-any-return]


class EncoderRows(nn.Module):
    r"""The rows that an encoder makes of the arguments of the model, one for every element.

    The encoder returns ``(n, C)`` with one row for every element of the minibatch, or ``(N, C)`` with one for every element of the
    plate, of which those of the minibatch are taken; for several plates it has as many leading dimensions, outermost plate first.

    Args:
        encoder: Called with the arguments of the model.
        plates: The plates, as at setup.
        rows: ``"minibatch"`` or ``"plate"``, what the rows stand for where both would fit; None if not known.

    Raises:
        ValueError: When called, if what the encoder returns is no such tensor, is not finite, or it cannot be told for which
            elements the rows stand.

    Example:
        >>> plate = PlateCall("data", -1, 10, torch.tensor([3, 1]), True)
        >>> EncoderRows(lambda x: x, [plate])([plate], (torch.arange(10.0)[:, None],), {}).flatten().tolist()
        [3.0, 1.0]
    """

    def __init__(self, encoder: Callable[..., Tensor], plates: Sequence[PlateCall], rows: str | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = [plate.name for plate in plates]
        self.rows = rows

    def forward(self, plates: Sequence[PlateCall], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Rows of the elements of this call, ``(n_1, …, n_k, C)`` for ``k`` plates."""
        label = "/".join(self.names)
        try:
            rows = self.encoder(*args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"context[{label!r}] is called as the model is, here with {len(args)} arguments and the keywords {sorted(kwargs)}, "
                f"and raised TypeError: {error}"
            ) from error
        sizes = (f"{plate.count}" if plate.count == plate.size else f"{plate.count} or {plate.size}" for plate in plates)
        wanted = ", ".join([*sizes, "C"])
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            what = f"a tensor of {rows.dtype}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"context[{label!r}] returned {what}; it must return a floating-point tensor of shape ({wanted})")
        if rows.dim() != len(plates) + 1:
            raise ValueError(f"context[{label!r}] returned shape {tuple(rows.shape)}; expected ({wanted}), a row for every element")
        self._check_gradient(rows, label)
        for axis, plate in enumerate(plates):
            rows = self._of_minibatch(rows, axis, plate, label, wanted)
        bad = ~torch.isfinite(rows).all(-1)
        if not torch.compiler.is_compiling() and bool(bad.any()):
            raise ValueError(
                f"context[{label!r}] returned NaN or infinity for {int(bad.sum())} of {bad.numel()} elements; check its input "
                f"there (missing values: pf.nn.MissingValues)"
            )
        return rows

    def _check_gradient(self, rows: Tensor, label: str) -> None:
        if rows.requires_grad and not isinstance(self.encoder, nn.Module):
            raise ValueError(
                f"context[{label!r}] is a {type(self.encoder).__name__} whose output depends on parameters, which the guide "
                f"would not train; give an nn.Module that owns them"
            )

    def _of_minibatch(self, rows: Tensor, axis: int, plate: PlateCall, label: str, wanted: str) -> Tensor:
        count = rows.shape[axis]
        if count not in (plate.count, plate.size):
            raise ValueError(
                f"context[{label!r}] returned shape {tuple(rows.shape)}; expected ({wanted}): a row for every element of plate "
                f"{plate.name!r} in this call, or for every element of the whole plate"
            )
        if plate.count != plate.size:
            found = "minibatch" if count == plate.count else "plate"
            if self.rows not in (None, found):
                raise ValueError(
                    f"context[{label!r}] returned {count} rows, one for every element of the {found}; before, or by rows=, they "
                    f"were those of the {self.rows}"
                )
            self.rows = found
        elif not plate.is_full and self.rows is None:
            raise ValueError(
                f"context[{label!r}]: the indices of plate {plate.name!r} are all of it in another order, and the rows of the "
                f"encoder "
                f'may stand in either; say which by rows={{{label!r}: "minibatch"}} or "plate"'
            )
        if self.rows == "plate" and not plate.is_full:
            rows = rows.index_select(axis, plate.indices.to(rows.device))
        return rows
