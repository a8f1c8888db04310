"""Mixture of flows, with learnable or constant weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from pyro.distributions import Categorical
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_flows.solvers.mode import is_eager

from .alike import are_alike, log_probs_at_once
from .flow_distribution import FlowDistribution
from .mixture import which_component
from .module_distribution import ModuleDistribution

#: Members from which on a vectorised pass is worth it.
_MANY = 8


def _solves_nothing(member: FlowDistribution) -> bool:
    transform = member.transform
    return transform.inverse_kind == "closed" and transform.log_det_kind == "exact"


class FlowMixture(ModuleDistribution):
    r"""Mixture :math:`q(y) = \sum_m \pi_m\, q_m(y)` of flows.

    One flow is a continuous map, and joins the modes of what it fits by bridges; a mixture need not. With constant weights a draw
    has gradient to the flow that it comes from, so that the gradient of an expectation is right; with learned ones it has none, for
    which component is drawn depends on them: such a mixture is trained on data, by likelihood, or by enumeration of its component
    in a Pyro model::

        pyro.module("mixture", mixture)
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", mixture.component, infer={"enumerate": "parallel"})
            pyro.sample("y", mixture.given(k), obs=y)

    Members that start alike stay alike: start them apart, as :func:`sphere_mixture` does; ``fit_density`` does it by itself.

    References:
        Hermans, Delaunoy, Rozet, Wehenkel, Begy, Louppe (2022), *A trust crisis in simulation-based inference? Your posterior
        approximations can be unfaithful*, https://arxiv.org/abs/2110.06581;
        Pires, Figueiredo (2020), *Variational mixture of normalizing flows*, https://arxiv.org/abs/2009.00585

    Args:
        members: Distributions of one batch and event shape.
        learn_weights: Whether the weights, equal at the start, are trained.
        validate_args: Check the values that are scored; Pyro's setting if None.

    Raises:
        ValueError: If there are none, or their shapes differ.

    Example:
        >>> from pyro_flows import flows
        >>> mixture = FlowMixture([FlowDistribution(flows.affine(2)) for _ in range(3)])
        >>> mixture.log_prob(mixture.sample((5,))).shape, mixture.weights.shape
        (torch.Size([5]), torch.Size([3]))
    """

    logits: Tensor

    def __init__(
        self, members: Sequence[FlowDistribution], *, learn_weights: bool = True, validate_args: bool | None = None
    ) -> None:
        members = list(members)
        if not members or not all(isinstance(member, FlowDistribution) for member in members):
            raise ValueError(f"members must be FlowDistributions, got {[type(member).__name__ for member in members]}")
        shapes = {(tuple(member.batch_shape), tuple(member.event_shape)) for member in members}
        if len(shapes) > 1:
            raise ValueError(f"members must have one batch and event shape, got {sorted(shapes)}")
        dtypes = {tensor.dtype for member in members for tensor in member.parameters()}
        if len(dtypes) > 1:
            raise ValueError(f"members must have one dtype, got {sorted(map(str, dtypes))}; convert them by .to()")
        super().__init__(members[0].batch_shape, members[0].event_shape, validate_args=validate_args)
        self.members = nn.ModuleList(members)
        owned = chain(members[0].parameters(), members[0].buffers())
        like = next((tensor for tensor in owned if tensor.is_floating_point()), torch.zeros(()))
        logits = torch.zeros(len(members), dtype=like.dtype, device=like.device)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)
        self.has_rsample = not learn_weights and all(member.has_rsample for member in members)

    @classmethod
    def average(cls, mixtures: Sequence[FlowMixture]) -> FlowMixture:
        r"""The mean :math:`\frac1R \sum_r q_r` of mixtures, itself a mixture, of all their members, which it owns with them.

        Mixtures of many members that were fitted apart, from other starts, err in other places, and their mean less than each.

        Args:
            mixtures: Mixtures of one batch and event shape.

        Raises:
            ValueError: If there are none, or their shapes or dtypes differ.

        Example:
            >>> from pyro_flows import flows
            >>> one, other = (FlowMixture([FlowDistribution(flows.affine(2)) for _ in range(n)]) for n in (1, 3))
            >>> FlowMixture.average([one, other]).weights.detach()
            tensor([0.5000, 0.1667, 0.1667, 0.1667])
        """
        if isinstance(mixtures, FlowMixture) or not mixtures or not all(isinstance(part, FlowMixture) for part in mixtures):
            what = type(mixtures).__name__ if isinstance(mixtures, FlowMixture) else [type(part).__name__ for part in mixtures]
            raise ValueError(f"mixtures must be a sequence of FlowMixtures, got {what}")
        learned = any(isinstance(mixture.logits, nn.Parameter) for mixture in mixtures)
        mean = cls([member for mixture in mixtures for member in mixture.members], learn_weights=learned)  # type: ignore[misc]
        with torch.no_grad():
            mean.logits.copy_(torch.cat([mixture.logits.log_softmax(-1) for mixture in mixtures]))
        return mean

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the members."""
        return self.members[0].support  # type: ignore[return-value]

    @property
    def weights(self) -> Tensor:
        r"""The weights :math:`\pi`, ``(M,)``."""
        return self.logits.softmax(-1)

    @property
    def component(self) -> Categorical:
        """Distribution of the component, which Pyro enumerates."""
        return Categorical(logits=self.logits)

    def given(self, component: Tensor) -> FlowComponent:
        """The distribution of a value whose component is known.

        Args:
            component: Indices ``(*)``, of any batch shape, such as that of an enumerated site.

        Raises:
            ValueError: If they are no indices of members.
        """
        if component.is_floating_point():
            raise ValueError(f"component must hold integers, indices of members, got a tensor of {component.dtype}")
        if is_eager() and component.numel() and not 0 <= int(component.min()) <= int(component.max()) < len(self.members):
            raise ValueError(
                f"component must lie between 0 and {len(self.members) - 1}, got {int(component.min())} to {int(component.max())}"
            )
        return FlowComponent(self, component)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowMixture:
        """The same distribution, with the same parameters, and another batch shape.

        Raises:
            ValueError: If this one's batch shape does not expand to it.
        """
        new = super().expand(batch_shape)
        new._modules = {**self._modules, "members": nn.ModuleList(member.expand(batch_shape) for member in self.members)}  # type: ignore[operator]
        return new

    def _draws(self, sample_shape: Sequence[int]) -> Tensor:
        """Draws of all members, ``(M, *sample_shape, *batch_shape, *event_shape)``."""
        return torch.stack([member.rsample(sample_shape) for member in self.members])  # type: ignore[operator]

    def _drawn(self, sample_shape: Sequence[int]) -> Tensor:
        draws = self._draws(sample_shape)
        shape = draws.shape[1 : draws.dim() - len(self.event_shape)]
        with torch.no_grad():
            which = which_component(torch.rand(shape, dtype=self.logits.dtype, device=draws.device), self.weights)
        return pick(draws, which, len(self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)`` with gradient, where the weights are constant.

        Raises:
            ValueError: If the weights are learned.
        """
        if not self.has_rsample:
            raise ValueError(
                "a mixture with learned weights, or of surjections, has no reparametrised draws: which component is drawn, or what "
                "a surjection draws, depends on parameters; use sample, or learn_weights=False"
            )
        return self._drawn(sample_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)`` without gradient."""
        with torch.no_grad():
            return self._drawn(sample_shape)

    def member_log_probs(self, value: Tensor) -> Tensor:
        r"""Log-densities :math:`\log q_m(y)` of ``value`` ``(*, *event_shape)``, ``(M, *)``.

        Many members that are alike, and whose transforms solve for nothing, are scored in one vectorised pass.
        """
        if not is_eager():
            return torch.stack([member.log_prob(value) for member in self.members])  # type: ignore[operator]
        terms: dict[int, Tensor] = {}
        for members, places in self._grouped():
            found = None
            if len(members) >= _MANY and _solves_nothing(members[0]):
                members[0]._check_value(value)
                found = log_probs_at_once(members, value)
            rows = [member.log_prob(value) for member in members] if found is None else found.unbind(0)
            terms |= dict(zip(places, rows, strict=True))
        return torch.stack([terms[place] for place in range(len(terms))])

    def _grouped(self) -> list[tuple[list[FlowDistribution], list[int]]]:
        """The members in groups of those that are alike, with their places."""
        groups: list[tuple[list[FlowDistribution], list[int]]] = []
        for place, member in enumerate(self.members):
            for alike, places in groups:
                if are_alike(alike[0], member):  # type: ignore[arg-type]
                    alike.append(member)  # type: ignore[arg-type]
                    places.append(place)
                    break
            else:
                groups.append(([member], [place]))  # type: ignore[list-item]
        return groups

    def component_log_probs(self, value: Tensor) -> Tensor:
        r"""Weighted log-densities :math:`\log \pi_m q_m(y)` of ``value`` ``(*, *event_shape)``, ``(M, *)``."""
        terms = self.member_log_probs(value)
        return terms + self.logits.log_softmax(-1).reshape(-1, *(1,) * (terms.dim() - 1))

    def responsibilities(self, value: Tensor) -> Tensor:
        """Probability of each component at ``value`` ``(*, *event_shape)``, ``(M, *)``."""
        return self.component_log_probs(value).softmax(0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` of ``value``, ``(*, *event_shape)``."""
        return self.component_log_probs(value).logsumexp(0)


class FlowComponent(ModuleDistribution):
    """Members of a mixture of flows, one for each entry of a batch.

    Args:
        mixture: The mixture.
        component: Which member, indices ``(*)``.

    Example:
        >>> from pyro_flows import flows
        >>> mixture = FlowMixture([FlowDistribution(flows.affine(2)) for _ in range(3)])
        >>> mixture.given(torch.tensor([0, 2])).sample().shape
        torch.Size([2, 2])
    """

    def __init__(self, mixture: FlowMixture, component: Tensor) -> None:
        batch_shape = torch.broadcast_shapes(component.shape, mixture.batch_shape)
        super().__init__(batch_shape, mixture.event_shape, validate_args=False)
        self.mixture, self.component = mixture, component
        self.has_rsample = all(member.has_rsample for member in mixture.members)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the members."""
        return self.mixture.support

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)`` with gradient."""
        mixture = self.mixture.expand(self.batch_shape)
        draws = mixture._draws(sample_shape)
        return pick(draws, self.component.expand(draws.shape[1 : draws.dim() - len(self.event_shape)]), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(*)`` of ``value``, ``(*, *event_shape)``."""
        terms = self.mixture.member_log_probs(value)
        shape = torch.broadcast_shapes(terms.shape[1:], self.batch_shape)
        terms = terms.reshape(len(terms), *(1,) * (len(shape) - terms.dim() + 1), *terms.shape[1:])
        return pick(terms.expand(len(terms), *shape), self.component.expand(shape), 0)


def pick(values: Tensor, which: Tensor, event_dim: int) -> Tensor:
    """Of ``values`` ``(M, *, *event)`` those at the indices ``(*)``.

    Example:
        >>> pick(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1]), 0)
        tensor([1., 4.])
    """
    index = which.reshape(1, *which.shape, *(1,) * event_dim).expand(1, *values.shape[1:])
    return values.gather(0, index)[0]
