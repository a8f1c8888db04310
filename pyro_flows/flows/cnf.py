"""Continuous normalizing flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..nn.velocity import VelocityMLP
from ..solvers.ode import Solver
from ..transforms.cnf import CNF
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.surjections import Augmentation
from .registry import register


@register("cnf", cheap="both", inverse="solved", paper="https://arxiv.org/abs/1810.01367")
def cnf(
    input_dim: int,
    context_dim: int = 0,
    *,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Literal["tanh", "softplus", "silu"] = "tanh",
    time: Literal["film", "concat"] = "film",
    solver: Solver = "dopri5",
    tolerance: float = 1e-5,
    num_steps: int | None = None,
    trace: Literal["auto", "exact", "estimate"] = "auto",
    probes: Literal["rademacher", "gaussian"] = "rademacher",
    gradient: Literal["steps", "adjoint"] = "steps",
) -> FlowTransform:
    """Continuous normalizing flow of a multilayer perceptron, with the exact trace where layers are two.

    References:
        Grathwohl et al. (2019), *FFJORD: Free-form continuous dynamics for scalable reversible generative models*,
        https://arxiv.org/abs/1810.01367

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the velocity.
        activation: See :class:`~pyro_flows.nn.VelocityMLP`.
        time: See :class:`~pyro_flows.nn.VelocityMLP`.
        solver: See :class:`~pyro_flows.transforms.CNF`.
        tolerance: See :class:`~pyro_flows.transforms.CNF`.
        num_steps: See :class:`~pyro_flows.transforms.CNF`.
        trace: See :class:`~pyro_flows.transforms.CNF`.
        probes: See :class:`~pyro_flows.transforms.CNF`.
        gradient: See :class:`~pyro_flows.transforms.CNF`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> cnf(3).cheap_direction
        'both'
    """
    velocity = VelocityMLP(input_dim, context_dim, hidden_dims, activation=activation, time=time)
    return CNF(velocity, solver=solver, tolerance=tolerance, num_steps=num_steps, trace=trace, probes=probes, gradient=gradient)


def augmented_cnf(input_dim: int, context_dim: int = 0, *, num_more: int, **options: object) -> FlowTransform:
    """Continuous flow of the data with further variables, which may pass each other where those of the data cannot.

    The further ones are drawn from a normal distribution that hangs on the data, so that the log-density of the data is a lower
    bound in one draw; :func:`~pyro_flows.flows.log_marginal` has the importance-weighted estimate.

    References:
        Dupont, Doucet, Teh (2019), *Augmented neural ODEs*, https://arxiv.org/abs/1904.01681;
        Huang, Dinh, Courville (2020), *Augmented normalizing flows*, https://arxiv.org/abs/2002.07101

    Args:
        input_dim: Number of variables D of the data.
        context_dim: Size of the context; 0 for none.
        num_more: Number of further variables.
        options: Those of :func:`cnf`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> augmented_cnf(2, num_more=1).output_shape
        torch.Size([2])
    """
    augmentation = Augmentation(input_dim, num_more, context_dim)
    return Compose([cnf(input_dim + num_more, context_dim, **options), augmentation])  # type: ignore[arg-type]
