"""Composition of transforms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from ..solvers.mode import takes_closed_forms
from .column_transform import ColumnTransform, Step, run_stack
from .core import FlowTransform, Inverse
from .supports import takes


class Compose(FlowTransform):
    r"""Composition :math:`f = f_n \circ \dots \circ f_1`, a module that owns the parameters of its parts.

    :math:`\log|\det \partial y/\partial x| = \sum_i \log|\det \partial f_i|`. The context goes to every part that takes one.

    Args:
        parts: Transforms, the first applied first, each of the event shape that the one before gives. Their non-zero
            ``context_dim`` must agree.

    Raises:
        ValueError: If there are no parts, one is not a :class:`FlowTransform`, their dimensions do not fit, or one takes positive
            values, say, and the one before gives any.

    Example:
        >>> from pyro_flows.transforms import AffineTril, Permutation
        >>> flow = Compose([AffineTril(2), Permutation(torch.tensor([1, 0]))])
        >>> flow(torch.tensor([1.0, 2.0])).detach()
        tensor([2., 1.])
    """

    def __init__(self, parts: Iterable[FlowTransform]) -> None:
        parts = list(parts)
        if not parts:
            raise ValueError("parts must hold at least one transform, got none")
        for i, part in enumerate(parts):
            if not isinstance(part, FlowTransform):
                raise ValueError(f"parts[{i}] must be a FlowTransform, got {type(part).__name__}")
            if i and part.event_shape != parts[i - 1].output_shape:
                raise ValueError(
                    f"parts[{i}] takes events of shape {tuple(part.event_shape)}, parts[{i - 1}] gives "
                    f"{tuple(parts[i - 1].output_shape)}; they must agree"
                )
            if i and not takes(part.domain, parts[i - 1].codomain):
                raise ValueError(
                    f"parts[{i}], {type(part).__name__}, takes values in {part.domain}, parts[{i - 1}] gives values in "
                    f"{parts[i - 1].codomain}; put a transform between, such as TorchTransform(constraint, shape)"
                )
        context_dims = {part.context_dim for part in parts if part.context_dim}
        if len(context_dims) > 1:
            raise ValueError(f"parts have different context_dim {sorted(context_dims)}; those that take a context must agree")
        super().__init__(parts[0].input_dim, max(context_dims, default=0))
        self.event_shape, self.output_shape = parts[0].event_shape, parts[-1].output_shape
        self.bijective = all(part.bijective for part in parts)
        self.domain = parts[0].domain
        self.codomain = parts[-1].codomain
        self.parts = nn.ModuleList(parts)
        kinds = [part.log_det_kind for part in parts]
        self.log_det_kind = "estimate" if "estimate" in kinds else "bound" if "bound" in kinds else "exact"
        self.inverse_kind = "solved" if any(part.inverse_kind == "solved" for part in parts) else "closed"
        self.accuracy = sum(part.accuracy for part in parts)
        self.log_det_costs = any(part.log_det_costs for part in parts)
        cheap = {part.cheap_direction for part in parts} - {"both"}
        self.cheap_direction = cheap.pop() if len(cheap) == 1 else "both"

    def __iter__(self) -> Iterator[FlowTransform]:
        return iter(self.parts)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.parts)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, False, None)[:2]

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, context, True, None)[:2]

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        x, context = self._check(x, context, "forward_with_score")
        return self._run(x, context, False, score.detach().expand(x.shape))  # type: ignore[return-value]

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool, score: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take the parts in turn, those of columns that follow each other as one."""
        total: Tensor | None = None
        stack: list[Step] = []

        def add(log_det: Tensor) -> None:
            nonlocal total
            total = log_det if total is None else total + log_det

        def flush() -> None:
            nonlocal x, score
            if stack:
                x, log_det, score = run_stack(tuple(stack), x, context, score)
                stack.clear()
                add(log_det)

        closed = takes_closed_forms()
        for part, backwards in flattened(self, inverse):
            if closed and isinstance(part, ColumnTransform) and part.can_record(backwards):
                stack.append(Step(part, backwards))
                continue
            flush()
            given = context if part.context_dim else None
            if score is None:
                x, log_det = (part.inverse_and_log_det if backwards else part.forward_and_log_det)(x, given)
            else:
                x, log_det, score = (part.inv if backwards else part).forward_with_score(x, score, given)
            add(log_det)
        flush()
        return x, total, score  # type: ignore[return-value]

    @property
    def sign(self) -> int | Tensor:
        sign: int | Tensor = 1
        for part in self.parts:
            sign = sign * part.sign  # type: ignore[assignment, operator]
        return sign


def flattened(transform: FlowTransform, inverse: bool) -> Iterator[tuple[FlowTransform, bool]]:
    """The transforms that a composition is made of, in turn, each with its direction."""
    if type(transform) is Inverse:
        yield from flattened(transform.transform, not inverse)
    elif type(transform) is Compose:
        for part in reversed(transform.parts) if inverse else transform.parts:  # type: ignore[call-overload]
            yield from flattened(part, inverse)  # type: ignore[arg-type]
    else:
        yield transform, inverse
