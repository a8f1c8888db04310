"""A transform under test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.transforms.core import FlowTransform

Factory = Callable[[int, int], FlowTransform]


class ConformanceError(AssertionError):
    """A transform broke a law; the message begins with the name of the law.

    Example:
        See :func:`check_transform`.
    """


@dataclass(frozen=True)
class Case:
    """A transform under test.

    Args:
        factory: ``(input_dim, context_dim) -> FlowTransform``.
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        dtype: Type that parameters and inputs are brought to.
        seed: Seed of construction, perturbation and inputs.

    Example:
        >>> from pyro_flows import flows
        >>> Case(flows.affine, 2, 0, torch.float64, 0).build().input_dim
        2
    """

    factory: Factory
    input_dim: int
    context_dim: int
    dtype: torch.dtype
    seed: int

    def fresh(self, seed_offset: int = 0) -> FlowTransform:
        """A new transform as the factory makes it."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + seed_offset)
            return self.factory(self.input_dim, self.context_dim).to(self.dtype)

    def build(self) -> FlowTransform:
        """A new transform whose parameters are moved away from where they start."""
        transform = self.fresh()
        generator = torch.Generator().manual_seed(self.seed + 1)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(self.dtype)
        return transform

    def inputs(self, *batch: int, scale: float = 1.0) -> Tensor:
        """Points ``(*batch, D)``."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return scale * torch.randn(*batch, self.input_dim, generator=generator, dtype=torch.float64).to(self.dtype)

    def context(self, *batch: int) -> Tensor | None:
        """A context ``(*batch, context_dim)``, or None."""
        if not self.context_dim:
            return None
        generator = torch.Generator().manual_seed(self.seed + 3)
        return torch.randn(*batch, self.context_dim, generator=generator, dtype=torch.float64).to(self.dtype)

    def conditioned(self, *batch: int) -> FlowTransform:
        """A perturbed transform that needs no context."""
        transform, context = self.build(), self.context(*batch)
        return transform if context is None else transform.condition(context)

    def tolerance(self, double: float, single: float) -> float:
        """The tolerance for this case's type, or a hundred times what the transform says of its accuracy."""
        return max(double if self.dtype == torch.float64 else single, 100 * self.accuracy)

    @functools.cached_property
    def accuracy(self) -> float:
        """What the transform says of its accuracy."""
        return self.fresh().accuracy


Law = Callable[[Case], None]


def law(registry: dict[str, Law]) -> Callable[[Law], Law]:
    """Put a law into a registry, by the name of its function.

    Example:
        >>> laws = {}
        >>> @law(laws)
        ... def _holds(case):
        ...     pass
        >>> list(laws)
        ['holds']
    """

    def decorate(function: Law) -> Law:
        registry[function.__name__.lstrip("_")] = function
        return function

    return decorate


def require(condition: object, message: str) -> None:
    """Raise a :class:`ConformanceError` with the message unless the condition holds.

    Example:
        >>> require(True, "never said")
    """
    if not condition:
        raise ConformanceError(message)


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Require a tensor to have the shape of another and, relative to one more than its size, its entries.

    Example:
        >>> close(torch.ones(2), torch.ones(2), 0.0, "ones")
    """
    require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    if not found.numel():
        return
    error = ((found - expected).abs() / (1 + expected.abs())).max().item()
    require(error <= tolerance, f"{what}: relative error {error:.3g}, allowed {tolerance:.3g}")


def directions(transform: FlowTransform) -> Iterable[tuple[str, Callable[..., tuple[Tensor, Tensor]]]]:
    """The two methods of a transform, with their names.

    Example:
        >>> from pyro_flows import flows
        >>> [name for name, _ in directions(flows.affine(2))]
        ['forward', 'inverse']
    """
    yield "forward", transform.forward_and_log_det
    yield "inverse", transform.inverse_and_log_det


def check(
    factory: Factory,
    known: dict[str, Law],
    input_dim: int,
    context_dim: int,
    dtypes: Iterable[torch.dtype],
    laws: Iterable[str] | None,
    seed: int,
    kind: type[Case] = Case,
) -> None:
    """Hold a transform to laws, each for each dtype; see :func:`~pyro_flows.testing.check_transform`."""
    chosen = list(known) if laws is None else list(laws)
    unknown = [law for law in chosen if law not in known]
    if unknown:
        raise ValueError(f"laws {unknown} are unknown; known are {list(known)}")
    for dtype in dtypes:
        case = kind(factory, input_dim, context_dim, dtype, seed)
        for law in chosen:
            try:
                known[law](case)
            except ConformanceError as error:
                raise ConformanceError(f"{law}: {error} (D={input_dim}, context_dim={context_dim}, {dtype})") from error
            except Exception as error:
                message = f"{law}: raised {type(error).__name__}: {error} (D={input_dim}, context_dim={context_dim}, {dtype})"
                raise ConformanceError(message) from error
