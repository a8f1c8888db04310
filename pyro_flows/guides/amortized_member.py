"""One flow of an amortised guide."""

from __future__ import annotations

from torch import nn

from pyro_flows.distributions import FlowDistribution
from pyro_flows.nn.recorded import Recorded
from pyro_flows.transforms import Compose, RegressionFlow
from pyro_flows.transforms.lower_cholesky_affine import LowerCholeskyAffine


class AmortizedMember(Recorded, nn.Module):
    """One flow of an :class:`AmortizedFlow`, with its own encoder.

    Args:
        encoder: The encoder; None for none.
        flow: From noise to standardised latents.
        standard: From these to the flat latents.
    """

    def __init__(self, encoder: nn.Module | None, flow: RegressionFlow, standard: LowerCholeskyAffine) -> None:
        super().__init__()
        self.encoder = encoder
        self.flow = flow
        self.distribution = FlowDistribution(Compose([flow, standard]))
