"""Deep sigmoidal map, the transformer of neural autoregressive flows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ...nn.arguments import check_positive
from .base import Params
from .raw_parameters import LOG_E_MINUS_1, aligned, along, check_least_slope, gains, soft_bound, with_least_slope
from .solved import SolvedMap


class DeepSigmoid(SolvedMap):
    r"""Deep sigmoidal map :math:`y = \epsilon x + (1 - \epsilon) \operatorname{logit}\big(\sum_j w_j\,\sigma(a_j x + b_j)\big)`,
    with :math:`a_j > 0` and weights that sum to 1.

    In both tails a line, so its image is all numbers; without :math:`\epsilon` it can have plateaus where nothing is left to
    invert.
    Everything is computed from logarithms: the logit has the slope :math:`\sum_j w_j a_j \sigma_j (1 - \sigma_j) / (\sum_j w_j
    \sigma_j \sum_j w_j (1 - \sigma_j))`. The inverse is solved.

    Raw parameters are those of softplus, shift and softmax, the first and the last softly bounded by 10; the shift of each unit
    has a gain of its own, without which all units would stay alike.

    References:
        Huang, Krueger, Lacoste, Courville (2018), *Neural autoregressive flows*, https://arxiv.org/abs/1804.00779

    Args:
        num_units: Number of sigmoids.
        min_slope: The least slope :math:`\epsilon`. Between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> u = DeepSigmoid(2)
        >>> params = torch.zeros(2, 1), torch.tensor([[4.0], [4.0]]), torch.zeros(2, 1)
        >>> u.forward_and_log_det(torch.zeros(1), params)[0].item() < 0
        True
    """

    gain: Tensor

    def __init__(self, num_units: int = 8, min_slope: float = 1e-3) -> None:
        super().__init__()
        check_positive(num_units=num_units)
        self.num_units, self.min_slope = num_units, check_least_slope(min_slope)
        self.param_shapes = ((num_units,),) * 3
        self.register_buffer("gain", gains(num_units))

    def extra_repr(self) -> str:
        return f"num_units={self.num_units}"

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        raw_slope, raw_shift, raw_weight = (aligned(part, x) for part in params)
        slope = F.softplus(soft_bound(raw_slope) + LOG_E_MINUS_1)
        z = slope * x + along(self.gain, raw_shift) * raw_shift
        return with_least_slope(x, logit_of_mixture(z, slope.log(), soft_bound(raw_weight)), self.min_slope)


def logit_of_mixture(z: Tensor, log_slope: Tensor, raw_weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logit of :math:`\sum_j w_j \sigma(z_j)`, and the log of its slope where :math:`z_j` has the slope :math:`e^{l_j}`.

    Args:
        z: The :math:`z_j`, ``(K, *)``.
        log_slope: The :math:`l_j`, broadcasts with them.
        raw_weight: Logits of the weights, broadcasts with them.

    Example:
        >>> value, _ = logit_of_mixture(torch.full((2, 1), 3.0), torch.zeros(2, 1), torch.zeros(2, 1))
        >>> round(value.item(), 4)
        3.0
    """
    log_weight = raw_weight.log_softmax(0)
    log_sigmoid, log_rest = F.logsigmoid(z), F.logsigmoid(-z)
    below, above = log_total(log_weight + log_sigmoid), log_total(log_weight + log_rest)
    density = log_total(log_weight + log_slope + log_sigmoid + log_rest)
    return below - above, density - below - above


def log_total(terms: Tensor) -> Tensor:
    """Log of the sum of exponentials over the first dimension, whose gradient keeps its digits where all terms are large.

    Example:
        >>> log_total(torch.tensor([-1e4, -1e4, -2e4]))
        tensor(-9999.3066)
    """
    largest = terms.detach().amax(0)
    return (terms - largest).exp().sum(0).log() + largest
