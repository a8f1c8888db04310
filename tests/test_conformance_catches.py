"""The suite works: transforms that are broken on purpose are caught, each by the law meant for it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_flows.testing import ConformanceError, check_flow, check_transform
from pyro_flows.transforms import FlowTransform


class Sound(FlowTransform):
    """An elementwise affine map with context, on which the broken ones are built."""

    def __init__(self, input_dim, context_dim=0):
        super().__init__(input_dim, context_dim)
        self.log_scale = nn.Parameter(torch.zeros(input_dim))
        self.shift = nn.Parameter(torch.zeros(input_dim))
        self.net = nn.Linear(context_dim, input_dim) if context_dim else None
        if self.net is not None:
            nn.init.zeros_(self.net.weight)
            nn.init.zeros_(self.net.bias)

    def params(self, context):
        shift = self.shift if self.net is None else self.shift + self.net(context)
        return shift, self.log_scale

    def forward_and_log_det(self, x, context=None):
        shift, log_scale = self.params(context)
        return x * log_scale.exp() + shift, log_scale.sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        shift, log_scale = self.params(context)
        return (y - shift) * (-log_scale).exp(), -log_scale.sum().expand(y.shape[:-1])


class WrongSign(Sound):
    def inverse_and_log_det(self, y, context=None):
        x, log_det = Sound.inverse_and_log_det(self, y, context)
        return x, -log_det


class Float32Accumulator(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return y, ((log_det.float() + 100) - 100).to(log_det.dtype)


class WrongLogDet(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return y, log_det + 0.1 * x.sum(-1)

    def inverse_and_log_det(self, y, context=None):
        x, log_det = Sound.inverse_and_log_det(self, y, context)
        return x, log_det - 0.1 * x.sum(-1)


class StaleCache(Sound):
    def _state_key(self):
        return (torch.is_grad_enabled(),)


class NoGradModeInKey(Sound):
    def _state_key(self):
        return tuple(p._version for p in self.parameters())


class DefaultDevice(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return y + torch.zeros(self.input_dim, dtype=x.dtype), log_det


class NoContextGradient(Sound):
    def params(self, context):
        return Sound.params(self, None if context is None else context.detach())


class DetachedParameter(Sound):
    def params(self, context):
        shift, log_scale = Sound.params(self, context)
        return shift, log_scale + 0 * self.log_scale.detach() - log_scale + log_scale.detach() + 0 * log_scale


class InsistsOnParameters(Sound):
    def params(self, context):
        shift, log_scale = super().params(context)
        return shift, self.get_parameter("log_scale") + 0 * log_scale


class MixesRows(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return (y + x.mean(0) - x.mean(0).detach() * 0.5 if x.dim() > 1 and len(x) else y), log_det


class NanGradientOutside(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return torch.where(x.abs() < 20, y + 0 * (400 - x**2).sqrt(), y), log_det


class HiddenPermutation(Sound):
    def __init__(self, input_dim, context_dim=0):
        super().__init__(input_dim, context_dim)
        self.order = torch.randperm(input_dim) if input_dim > 1 else torch.zeros(1, dtype=torch.long)

    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return y[..., self.order], log_det

    def inverse_and_log_det(self, y, context=None):
        return Sound.inverse_and_log_det(self, y[..., self.order.argsort()], context)


class ClippedInverse(Sound):
    def inverse_and_log_det(self, y, context=None):
        x, log_det = Sound.inverse_and_log_det(self, y, context)
        return x.clamp(-10, 10), log_det


class GraphBreak(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return (y if not x.numel() or float(x.detach().sum()) < math.inf else -y), log_det


class WrongLogDetShape(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return y, log_det.unsqueeze(-1)


class BoundedImage(Sound):
    """Like a block autoregressive flow with a bare tanh at its end: its image is (-3, 3), not the line."""

    def forward_and_log_det(self, x, context=None):
        z, log_det = Sound.forward_and_log_det(self, x, context)
        return 3 * (z / 3).tanh(), log_det + (1 - (z / 3).tanh() ** 2).log().sum(-1)

    def inverse_and_log_det(self, y, context=None):
        z = 3 * (y / 3).clamp(-0.999, 0.999).atanh()
        x, log_det = Sound.inverse_and_log_det(self, z, context)
        return x, log_det - (1 - (y / 3).clamp(-0.999, 0.999) ** 2).log().sum(-1)


class Unpicklable(Sound):
    def __init__(self, input_dim, context_dim=0):
        super().__init__(input_dim, context_dim)
        self.activation = lambda x: x


class StartsFarAway(Sound):
    def __init__(self, input_dim, context_dim=0):
        super().__init__(input_dim, context_dim)
        nn.init.constant_(self.shift, 5.0)


class IgnoresContextBatch(Sound):
    def forward_and_log_det(self, x, context=None):
        context = None if context is None else context.reshape(-1, self.context_dim)[:1]
        return Sound.forward_and_log_det(self, x, context)


class ScoreForgetsLogDet(Sound):
    def forward_and_log_det(self, x, context=None):
        y, log_det = Sound.forward_and_log_det(self, x, context)
        return y + y**3, log_det + (1 + 3 * y**2).log().sum(-1)

    def inverse_and_log_det(self, y, context=None):
        x = torch.zeros_like(y)
        for _ in range(60):
            x = x - (x + x**3 - y) / (1 + 3 * x**2)
        log_det = -(1 + 3 * x**2).log().sum(-1)
        x, rest = Sound.inverse_and_log_det(self, x, context)
        return x, log_det + rest

    def forward_with_score(self, x, score, context=None):
        y, log_det = self.forward_and_log_det(x, context)
        slope = self.log_scale.exp() * (1 + 3 * (Sound.forward_and_log_det(self, x, context)[0]) ** 2)
        return y, log_det, (score / slope).detach()


BROKEN = [
    (ScoreForgetsLogDet, "score_is_that_of_the_density", 0),
    (WrongSign, "log_dets_are_opposite", 0),
    (Float32Accumulator, "log_det_is_that_of_autograd", 0),
    (WrongLogDet, "log_det_is_that_of_autograd", 0),
    (StaleCache, "cache_is_never_stale", 0),
    (InsistsOnParameters, "parameters_may_be_passed", 0),
    (NoGradModeInKey, "density_has_gradient_after_sampling", 0),
    (DefaultDevice, "no_tensor_on_a_default_device", 0),
    (NoContextGradient, "gradients_reach_everything", 3),
    (DetachedParameter, "gradients_are_right", 0),
    (MixesRows, "rows_are_independent", 0),
    (NanGradientOutside, "extreme_inputs", 0),
    (HiddenPermutation, "state_dict_holds_everything", 0),
    (ClippedInverse, "round_trip", 0),
    (GraphBreak, "compiles_in_one_graph", 0),
    (WrongLogDetShape, "batch_shapes", 0),
    (BoundedImage, "round_trip", 0),
    (Unpicklable, "copies_and_pickles", 0),
    (StartsFarAway, "starts_near_the_identity", 0),
    (IgnoresContextBatch, "context_broadcasts", 3),
]


def test_the_sound_transform_keeps_every_law():
    for context_dim in (0, 3):
        check_flow(Sound, input_dim=2, context_dim=context_dim)


@pytest.mark.parametrize(("broken", "law", "context_dim"), BROKEN, ids=[b[0].__name__ for b in BROKEN])
def test_a_broken_transform_is_caught_by_the_law_meant_for_it(broken, law, context_dim):
    factory = broken
    with pytest.raises(ConformanceError, match=f"^{law}: "):
        check_transform(factory, input_dim=8 if broken is HiddenPermutation else 2, context_dim=context_dim, laws=[law])


def test_a_density_that_does_not_integrate_to_one_is_caught():
    class Doubled(Sound):
        def inverse_and_log_det(self, y, context=None):
            x, log_det = Sound.inverse_and_log_det(self, y, context)
            return x, log_det + math.log(2.0)

    with pytest.raises(ConformanceError, match="^density_integrates_to_one: .*integrates to 2.0"):
        check_flow(Doubled, input_dim=1, laws=["density_integrates_to_one"])


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="unknown"):
        check_transform(Sound, laws=["gravity"])
