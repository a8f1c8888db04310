"""Distribution function of a mixture, carried back to the line: logistic as in Flow++, normal as in Gaussianization."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ...nn.arguments import check_positive
from .base import Params
from .deep_sigmoid import log_total, logit_of_mixture
from .normal_tails import log_ndtr_and_log_hazard, normal_quantile
from .raw_parameters import aligned, along, check_least_slope, gains, inverse_soft_bound, soft_bound, with_least_slope
from .solved import SolvedMap


class MixtureCDF(SolvedMap):
    r"""Mixture map :math:`y = \epsilon x + (1 - \epsilon) F^{-1}\big(\sum_j w_j\,F(e^{-s_j} (x - m_j))\big)` for the logistic or
    the normal distribution function :math:`F`.

    What has the mixture as its distribution becomes logistic or normal, but for :math:`\epsilon`, without which there are plateaus
    where nothing is left to invert. In the tails a line, so its image is all numbers. The inverse is solved. With a normal
    :math:`F` it is computed in double precision.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel (2019), *Flow++*, https://arxiv.org/abs/1902.00275;
        Meng, Song, Song, Ermon (2020), *Gaussianization flows*, https://arxiv.org/abs/2003.01941

    Args:
        num_components: Number of components.
        kind: ``"logistic"`` or ``"gaussian"``.
        log_scale_bound: Bound on the absolute log-scales, which is soft. Must be positive.
        min_slope: The least slope :math:`\epsilon`. Between 0 and 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> u = MixtureCDF(2, "gaussian")
        >>> u.forward_and_log_det(torch.tensor([1.5]), (torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1)))[0]
        tensor([1.5000])
    """

    gain: Tensor

    def __init__(
        self,
        num_components: int = 8,
        kind: Literal["logistic", "gaussian"] = "logistic",
        log_scale_bound: float = 5.0,
        min_slope: float = 1e-3,
    ) -> None:
        super().__init__()
        check_positive(num_components=num_components)
        if kind not in ("logistic", "gaussian"):
            raise ValueError(f'kind must be "logistic" or "gaussian", got {kind!r}')
        if not 0 < log_scale_bound < math.inf:
            raise ValueError(f"log_scale_bound must be positive and finite, got {log_scale_bound}")
        self.num_components, self.kind, self.log_scale_bound = num_components, kind, log_scale_bound
        self.min_slope = check_least_slope(min_slope)
        self.param_shapes = ((num_components,),) * 3
        self.register_buffer("gain", gains(num_components))

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, kind={self.kind!r}"

    def start(self) -> Tensor:
        r"""Half of the weight on :math:`F`, half on narrower components spread over it, together close to :math:`F` again.

        Where all components are one, nothing tells them apart, and training does not leave that point. At :math:`|x| \le 4` a map
        of eight components is within .003 (normal) or .03 (logistic) of the identity, one of fewer within .12.
        """
        if self.num_components == 1:
            return super().start()
        wide = int(self.num_components > 2)
        spread = self.num_components - wide
        unit, variance = (1.0, 1.0) if self.kind == "gaussian" else (1.6, math.pi**2 / 3)
        step = unit * min(1.0, 0.6 * spread / 2, 6 / (spread - 1))
        mean = step * (torch.arange(spread) - (spread - 1) / 2)
        weight = (-mean.square() if self.kind == "gaussian" else -mean.cosh().log()).softmax(0)
        log_scale = 0.5 * ((variance - (weight * mean.square()).sum()) / variance).log()
        log_weight = torch.cat([torch.zeros(wide), weight.log()])  # half of the weight and half
        raw_mean = torch.cat([torch.zeros(wide), mean]) / self.gain
        raw_log_scale = inverse_soft_bound(torch.cat([torch.zeros(wide), log_scale.expand(spread)]), self.log_scale_bound)
        raw_weight = inverse_soft_bound(log_weight - log_weight.mean())
        return torch.cat([raw_mean, raw_log_scale, raw_weight])

    def forward_and_log_det(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        raw_mean, raw_log_scale, raw_weight = (aligned(part, x) for part in params)
        mean = along(self.gain, raw_mean) * raw_mean
        log_scale, raw_weight = soft_bound(raw_log_scale, self.log_scale_bound), soft_bound(raw_weight)
        if self.kind == "logistic":
            mapped = logit_of_mixture((x - mean) * (-log_scale).exp(), -log_scale, raw_weight)
            return with_least_slope(x, mapped, self.min_slope)
        parts = [part.double() for part in (x, mean, log_scale, raw_weight)]
        value, log_slope = with_least_slope(parts[0], _normal_quantile_of_mixture(*parts), self.min_slope)
        return value.to(x.dtype), log_slope.to(x.dtype)


def _normal_quantile_of_mixture(x: Tensor, mean: Tensor, log_scale: Tensor, raw_weight: Tensor) -> tuple[Tensor, Tensor]:
    log_weight = raw_weight.log_softmax(0)
    z = (x - mean) * (-log_scale).exp()
    with torch.no_grad():  # of both sides the one that has less, which the other mirrors
        sign = 1 - 2 * ((log_weight.exp() * torch.special.ndtr(z)).sum(0) > 0.5).to(z.dtype)
    log_part, log_hazard = log_ndtr_and_log_hazard(sign * z)
    log_part = log_part + log_weight
    log_p = log_total(log_part)
    y = normal_quantile(log_p)
    # The share of each component times the ratio of density to distribution function, which does not underflow.
    log_slope = log_total(log_part - log_p + log_hazard - log_scale) - log_ndtr_and_log_hazard(y)[1]
    return sign * y, log_slope
