"""Transforms of columns that record what their gradient needs, so that a whole stack of them is one node of an autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ..solvers.mode import takes_closed_forms
from .columns import context_columns, from_columns, to_columns
from .core import FlowTransform
from .differentiable import differentiable


class Needs(NamedTuple):
    """Which gradients are wanted.

    Args:
        columns: Those of the columns.
        context: Those of the context.
        parameters: Those of the parameters.

    Example:
        >>> Needs(True, False, True).context
        False
    """

    columns: bool
    context: bool
    parameters: bool


class Record(Protocol):
    """What a pass through a :class:`ColumnTransform` keeps."""

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of it."""
        ...

    def holding(self, tensors: Sequence[Any]) -> Self:
        """The same with other tensors in the place of these."""
        ...

    def spent(self) -> Self:
        """The same once gradients have passed, which may use up what can be made anew."""
        ...

    def back(
        self, g_columns: Tensor, g_log_det: Tensor, needs: Needs
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor | None, ...]]:
        """Gradients of columns ``(D, N)``, context and parameters, for those of the results and log-determinants ``(N,)``."""
        ...

    def pushed(self, score: Tensor) -> Tensor:
        r"""The score :math:`J^{-\top} (s - \nabla \log|\det J|)` of the density of results ``(D, N)``, for that of columns."""
        ...


class ColumnTransform(FlowTransform):
    """A transform whose two methods follow from what it does to columns ``(D, N)``, one point a column.

    A subclass writes :meth:`arithmetic`, which autograd and compilers follow, and for speed :meth:`through`, which works without
    autograd and records what the gradient needs. Stacks of these are single nodes of an autograd graph: the engine and the checks
    of single layers take more time than the arithmetic where batches are small.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.keys()
        if own & {"forward_and_log_det", "inverse_and_log_det", "arithmetic"} and not own & {"through", "can_record"}:
            cls.can_record = _never  # type: ignore[method-assign, assignment]

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """The parameters, in the order of their gradients."""
        return ()

    def can_record(self, inverse: bool) -> bool:
        """Whether there is a :meth:`through` for this direction here and now."""
        return True

    def arithmetic(
        self, columns: Tensor, context: Tensor | None, parameters: Sequence[Tensor], inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Columns of results ``(D, N)`` and log-determinants ``(N,)``.

        Args:
            columns: Points, ``(D, N)``.
            context: Context, ``(C, N)`` or ``(C, 1)``, or None.
            parameters: What stands in the place of :attr:`learned`.
            inverse: The direction.
        """
        raise TypeError(f"{type(self).__name__} does not define arithmetic(columns, context, parameters, inverse)")

    def through(self, columns: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor | None, Record]:
        """Results, log-determinants ``(N,)`` or None where they are zero, and the record, without autograd."""
        raise TypeError(f"{type(self).__name__} does not define through(columns, context, inverse)")

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, False)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, context, True)

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if takes_closed_forms() and self.can_record(inverse):
            return run_stack([Step(self, inverse)], x, context)[:2]
        batch = x.shape[:-1]
        y, log_det = self.arithmetic(to_columns(x), context_columns(context, batch), self.learned, inverse)
        return from_columns(y, batch), log_det.reshape(batch)

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if not (takes_closed_forms() and self.can_record(False)):
            return super().forward_with_score(x, score, context)
        x, context = self._check(x, context, "forward_with_score")
        return run_stack([Step(self, False)], x, context, score.detach().expand(x.shape))  # type: ignore[return-value]


def _never(self: ColumnTransform, inverse: bool) -> bool:
    """A subclass that writes a method anew is another transform, which the recording of the class it comes from does not know."""
    return False


class Step(NamedTuple):
    """A transform in one of its directions.

    Args:
        part: The transform.
        inverse: Whether it is inverted.

    Example:
        >>> from pyro_flows.transforms import Permutation
        >>> Step(Permutation.reverse(2), False).inverse
        False
    """

    part: ColumnTransform
    inverse: bool


def run_stack(
    steps: Sequence[Step], x: Tensor, context: Tensor | None, score: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Points ``(*, D)``, log-determinants ``(*)`` and, if one is given, the score ``(*, D)`` behind a stack of transforms.

    Args:
        steps: The transforms, all of which can record.
        x: Points, ``(*, D)``.
        context: Context of those that take one.
        score: Score of the density of the points, ``(*, D)``, or None.

    Example:
        >>> from pyro_flows.transforms import Permutation
        >>> run_stack([Step(Permutation.reverse(2), False)], torch.tensor([[1.0, 2.0]]), None)[0]
        tensor([[2., 1.]])
    """
    batch = x.shape[:-1]
    given = context_columns(context, batch)
    scores = None if score is None else to_columns(score)
    parameters = [tensor for step in steps for tensor in step.part.learned]
    for part, _ in steps:
        for tensor in part.learned:
            if tensor.dtype != x.dtype:
                raise ValueError(
                    f"{type(part).__name__}: input has dtype {x.dtype} and the parameters {tensor.dtype}; convert one, for example "
                    f"by transform.to({x.dtype})"
                )
    y, log_det, scores = StackFunction.apply(to_columns(x), given, scores, steps, *parameters)  # type: ignore[no-untyped-call]
    if len(batch) != 1:
        log_det = log_det.reshape(batch)
    return from_columns(y, batch), log_det, None if scores is None else from_columns(scores, batch)


class StackFunction(torch.autograd.Function):
    r"""Columns ``(D, N)`` of results, log-determinants ``(N,)`` and, if asked for, the score of the results.

    The arguments are columns, context (``(C, N)``, ``(C, 1)`` or None), the score ``(D, N)`` of the density of the columns or None,
    the steps, and the parameters of all of them. The score of the results has no gradient. Derivatives of higher order of the
    others are those of autograd.

    Example:
        See :func:`run_stack`.
    """

    @staticmethod
    def forward(
        ctx: Any, columns: Tensor, context: Tensor | None, score: Tensor | None, steps: Sequence[Step], *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        at, total, records = columns, None, []
        for part, inverse in steps:
            at, log_det, record = part.through(at, context if part.context_dim else None, inverse)
            if log_det is not None:
                total = log_det if total is None else total.add_(log_det)
            if score is not None:
                score = record.pushed(score)
            records.append(record)
        if total is None:
            total = columns.new_zeros(columns.shape[1])
        kept = [record.tensors for record in records]
        ctx.save_for_backward(columns, context, *parameters, *[tensor for tensors in kept for tensor in tensors])
        ctx.steps, ctx.counts = steps, [len(tensors) for tensors in kept]
        ctx.records = [record.holding([None] * len(tensors)) for record, tensors in zip(records, kept, strict=True)]
        if score is not None:
            ctx.mark_non_differentiable(score)
        return at, total, score

    @staticmethod
    def backward(ctx: Any, g_columns: Tensor, g_log_det: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        columns, context, *rest = ctx.saved_tensors
        steps: Sequence[Step] = ctx.steps
        needed = ctx.needs_input_grad
        learned = [len(step.part.learned) for step in steps]
        parameters = rest[: sum(learned)]
        if torch.is_grad_enabled():  # somebody asks for derivatives of these
            arithmetic = partial(_arithmetic, steps)
            wanted = (*needed[:2], *needed[4:])
            found = differentiable(arithmetic, (columns, context, *parameters), wanted, (g_columns, g_log_det))
            return *found[:2], None, None, *found[2:]
        end, to_parameters = len(rest), any(needed[4:])
        g_context: Tensor | None = None
        g_parameters: list[Tensor | None] = []
        for i in reversed(range(len(steps))):
            start = end - ctx.counts[i]
            record = ctx.records[i].holding(rest[start:end])
            ctx.records[i], end = ctx.records[i].spent(), start
            needs = Needs(i > 0 or needed[0], needed[1], to_parameters)
            g_columns, of_context, of_parameters = record.back(g_columns, g_log_det, needs)
            g_parameters[:0] = of_parameters
            if of_context is not None:
                g_context = of_context if g_context is None else g_context + of_context
        return g_columns if needed[0] else None, g_context, None, None, *g_parameters


def _arithmetic(steps: Sequence[Step], columns: Tensor, context: Tensor | None, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of results and log-determinants of a stack, as operations that autograd follows."""
    total, rest = columns.new_zeros(columns.shape[1]), list(parameters)
    for part, inverse in steps:
        own = [rest.pop(0) for _ in part.learned]
        columns, log_det = part.arithmetic(columns, context if part.context_dim else None, own, inverse)
        total = total + log_det
    return columns, total
