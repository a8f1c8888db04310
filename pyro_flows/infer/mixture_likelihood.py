"""Training of mixtures of flows on data: members that start alike, and expectation maximisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_flows.distributions import FlowMixture
from pyro_flows.distributions.k_means import k_means

_SEPARATING_STEPS = 100
#: Rows that are scored at once.
_PART = 2048


def separate_members(mixture: FlowMixture, data: Tensor, lr: float) -> None:
    """Send members that start alike, and would stay so, towards different groups of the data, those of k-means; others stay.

    Args:
        mixture: The mixture, trained in place.
        data: Rows ``(N, *event)``, none of whose entries is constant.
        lr: Step size of training, raised to 0.01 here.

    Example:
        >>> from pyro_flows import FlowDistribution, flows
        >>> mixture = FlowMixture([FlowDistribution(flows.affine(1)) for _ in range(2)])
        >>> separate_members(mixture, torch.cat([torch.randn(50, 1) - 9, torch.randn(50, 1) + 9]), 0.1)
        >>> left, right = (member.transform(torch.zeros(1)).item() for member in mixture.members)
        >>> bool(left * right < 0)
        True
    """
    with torch.no_grad():
        some = data[:_PART]
        terms = mixture.member_log_probs(some)
        if len(terms) == 1 or bool((terms - terms[0]).abs().amax() > 1e-4 * (1 + terms.abs().amax())):
            return
    rows = data.flatten(1)
    group = k_means(rows / rows.std(0), len(terms), 0)
    optimiser = torch.optim.Adam(mixture.members.parameters(), lr=max(lr, 1e-2))
    for _ in range(_SEPARATING_STEPS):
        loss = torch.zeros((), dtype=data.dtype, device=data.device)
        for k, member in enumerate(mixture.members):
            own = data[group == k]
            if len(own):
                loss = loss - member.log_prob(own[torch.randint(len(own), (64,), device=data.device)]).mean()  # type: ignore[operator]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(mixture.members.parameters()), 5.0)
        optimiser.step()


def expectation_maximisation(
    mixture: FlowMixture, data: Tensor
) -> tuple[tuple[Tensor, ...], Callable[..., Tensor], Callable[[], tuple[Tensor, ...]]]:
    """The two halves of EM, for the loop of maximum likelihood.

    Args:
        mixture: The mixture.
        data: Rows ``(N, *event)``.

    Returns:
        Rows with their responsibilities; the loss that these weigh, and of rows without any that of the mixture; what renews
        responsibilities, and weights that are learned.

    Example:
        >>> from pyro_flows import FlowDistribution, flows
        >>> mixture = FlowMixture([FlowDistribution(flows.affine(1)) for _ in range(2)])
        >>> (data, weights), loss, renew = expectation_maximisation(mixture, torch.randn(5, 1))
        >>> weights.shape
        torch.Size([5, 2])
    """

    @torch.no_grad()
    def renew() -> tuple[Tensor, ...]:
        weights = torch.cat([mixture.responsibilities(part) for part in data.split(_PART)], 1)
        if isinstance(mixture.logits, nn.Parameter):
            mixture.logits.copy_(weights.mean(1).clamp(min=1e-8).log())
        return data, weights.mT

    def loss(points: Tensor, *weights: Tensor) -> Tensor:
        if not weights:
            return -mixture.log_prob(points).mean()
        return -(weights[0] * mixture.member_log_probs(points).mT).sum(1).mean()

    return renew(), loss, renew
