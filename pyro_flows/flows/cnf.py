"""Continuous normalizing flows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

from ..manifolds.sphere import SphereCNF
from ..manifolds.sphere.geometry import check_ambient_dim
from ..manifolds.torus import TorusCNF, check_circles
from ..nn.velocity import VelocityMLP
from ..transforms.cnf import CNF
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.surjections import Augmentation
from .registry import register


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Options of :class:`~pyro_flows.transforms.CNF`, if they are no others."""
    known = [name for name, entry in inspect.signature(CNF).parameters.items() if entry.kind is entry.KEYWORD_ONLY]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"options {unknown} are unknown; those of a continuous flow are {known}")
    return options


@register("cnf", cheap="both", inverse="solved", paper="https://arxiv.org/abs/1810.01367")
def cnf(
    input_dim: int,
    context_dim: int = 0,
    *,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Literal["tanh", "softplus", "silu"] = "tanh",
    time: Literal["film", "concat"] = "film",
    **options: Any,
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
        options: As for :class:`~pyro_flows.transforms.CNF`, such as ``solver`` and ``tolerance``.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> cnf(3).cheap_direction
        'both'
    """
    return CNF(VelocityMLP(input_dim, context_dim, hidden_dims, activation=activation, time=time), **_known(options))


@register("sphere_cnf", cheap="both", inverse="solved", paper="https://arxiv.org/abs/2006.10605", event="sphere")
def sphere_cnf(input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64), **options: Any) -> FlowTransform:
    """Continuous flow of unit vectors.

    References:
        Mathieu, Nickel (2020), *Riemannian continuous normalizing flows*, https://arxiv.org/abs/2006.10605

    Args:
        input_dim: Number n of coordinates, at least 2.
        context_dim: Size of the context; 0 for none.
        hidden_dims: Hidden layers of the velocity.
        options: As for :class:`~pyro_flows.transforms.CNF`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> sphere_cnf(3).event_shape
        torch.Size([3])
    """
    return SphereCNF(VelocityMLP(check_ambient_dim(input_dim), context_dim, hidden_dims), **_known(options))


@register("torus_cnf", cheap="both", inverse="solved", paper="https://arxiv.org/abs/2006.10605", event="torus")
def torus_cnf(
    input_dim: int,
    context_dim: int = 0,
    *,
    circles: Sequence[bool] | None = None,
    hidden_dims: Sequence[int] = (64, 64),
    **options: Any,
) -> FlowTransform:
    r"""Continuous flow of angles in :math:`[-\pi, \pi)`, and of numbers beside them.

    References:
        Mathieu, Nickel (2020), *Riemannian continuous normalizing flows*, https://arxiv.org/abs/2006.10605

    Args:
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        circles: Which variables are angles, ``(D,)``; all if None.
        hidden_dims: Hidden layers of the velocity.
        options: As for :class:`~pyro_flows.transforms.CNF`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> torus_cnf(2, circles=(True, False)).domain
        vectors of (angle in [-pi, pi), number)
    """
    which = check_circles(input_dim, circles)
    return TorusCNF(VelocityMLP(input_dim + sum(which), context_dim, hidden_dims), which, **_known(options))


def augmented_cnf(input_dim: int, context_dim: int = 0, *, num_more: int, **options: Any) -> FlowTransform:
    """Continuous flow of the data with further variables, which may pass each other where those of the data cannot.

    The further ones are drawn from a normal distribution that hangs on the data, so that the log-density of the data is a lower
    bound in one draw. The mean of exponentials of S draws, ``q.log_prob(x.expand(S, *x.shape)).logsumexp(0) - math.log(S)``, is the
    importance-weighted estimate of it, from below in the mean too, and exact as S grows.

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
    return Compose([cnf(input_dim + num_more, context_dim, **options), augmentation])
