"""Free-form flows: the surrogate of the volume's gradient, and that training makes decoder and encoder each other's inverse."""

from __future__ import annotations

import math

import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import audit_inverse
from pyro_flows.distributions import FlowDistribution
from pyro_flows.infer import free_form_loss
from pyro_flows.manifolds import SphereFreeForm, TorusFreeForm, VonMisesFisher, project_to_sphere
from pyro_flows.transforms import FreeForm

F64 = torch.float64
KINDS = {
    "vectors": (FreeForm, 3),
    "sphere": (SphereFreeForm, 3),
    "torus": (lambda n, c=0, **options: TorusFreeForm(n, c, circles=(True, False), **options), 2),
}


def built(name, context_dim=0):
    torch.manual_seed(0)
    kind, n = KINDS[name]
    flow = kind(n, context_dim, hidden_dims=(6,)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("name", KINDS)
def test_volume_has_the_gradient_of_the_determinant_where_the_decoder_is_the_inverse(name):
    """The decoder is solved for, by reading its Jacobian off the encoder's inverse: 40,000 tangents, five standard errors."""
    flow = built(name)
    base = FlowDistribution(flow).base
    x = base.sample((1,)).double()
    value, jacobian = flow.lifted(flow.encoder)(x)
    parameters = list(flow.encoder.parameters())
    (exact,) = torch.autograd.grad(torch.linalg.slogdet(jacobian)[1].sum(), parameters[:1], retain_graph=True)
    v = flow.tangents(flow.arrived(value).detach().expand(40_000, -1))
    back = torch.linalg.solve(jacobian.detach(), v[..., None])[..., 0]
    _, pushed = flow.pushed(flow.encoder, x, back[None])
    each = (v * pushed[0]).sum(-1)
    (found,) = torch.autograd.grad(each.mean(), parameters[:1], retain_graph=True)
    parts = torch.stack([torch.autograd.grad(p.mean(), parameters[:1], retain_graph=True)[0] for p in each.split(1000)])
    error = parts.std(0) / math.sqrt(len(parts))
    assert bool(((found - exact).abs() <= 5 * error + 1e-9).all())


@pytest.mark.parametrize("name", KINDS)
def test_in_evaluation_the_loss_is_a_likelihood_and_two_distances(name):
    flow = built(name)
    q = FlowDistribution(flow).eval()
    x = q.base.sample((5,)).double()
    loss = free_form_loss(q, weight=1e-12)(x)
    z, jacobian = flow.lifted(flow.encoder)(x)
    expected = -(q.base.log_prob(flow.arrived(z)) + torch.linalg.slogdet(jacobian)[1]).mean()
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(free_form_loss(q)(x), free_form_loss(q)(x)) and free_form_loss(q)(x) > loss


def test_training_finds_a_bent_density_that_integrates_to_one():
    torch.manual_seed(0)
    u = torch.randn(4000, 2)
    data = torch.stack([u[:, 0], 0.6 * u[:, 1] + u[:, 0].square() - 1], -1)
    fit = pf.fit_density(FreeForm(2), data, objective="free_form", max_epochs=40, seed=0, progress=False)
    normal = pf.fit_density("affine", data, max_epochs=20, seed=0, progress=False)
    entropy = math.log(2 * math.pi * math.e) + math.log(0.6)
    assert fit.held_out > normal.held_out + 0.25 and fit.held_out > -entropy - 0.2
    assert audit_inverse(fit.distribution.transform, data[:500]).verdict != "broken"
    t = torch.linspace(-8, 16, 300)
    total = fit.log_prob(torch.cartesian_prod(t, t)).exp().sum() * (t[1] - t[0]) ** 2
    assert abs(float(total) - 1) < 0.02


def test_training_on_a_sphere():
    """Beside the density that the points come from; 400 rows held out, whose mean has a standard error of .05."""
    torch.manual_seed(0)
    truth = VonMisesFisher(torch.tensor([0.0, 0.6, 0.8]), torch.tensor(10.0))
    data = truth.sample((4000,))
    fit = pf.fit_density(SphereFreeForm(3), data, objective="free_form", max_epochs=20, seed=0, progress=False)
    fresh = truth.sample((2000,))
    gap = truth.log_prob(fresh) - fit.log_prob(fresh)
    assert 0 < float(gap.mean()) + 0.02 < 0.12
    grid = project_to_sphere(torch.randn(20_000, 3))
    share = fit.log_prob(grid).exp() * 4 * math.pi
    assert abs(float(share.mean()) - 1) < 5 * float(share.std()) / 20_000**0.5 + 0.02


def test_a_conditional_density_and_angles():
    """Beside the wrapped normal that the angles come from; the gap has a standard error of .01."""
    torch.manual_seed(0)

    def drawn(count):
        c = torch.rand(count, 1) * 4 - 2
        error = 0.8 * torch.randn(count, 1)
        return torch.remainder(c + error + math.pi, 2 * math.pi) - math.pi, c

    angle, c = drawn(3000)
    fit = pf.fit_density(TorusFreeForm(1, 1), angle, c, objective="free_form", max_epochs=40, lr=1e-2, seed=0, progress=False)
    angle, c = drawn(5000)
    turns = 2 * math.pi * torch.arange(-2, 3)
    truth = torch.distributions.Normal(c, 0.8).log_prob(angle + turns).logsumexp(-1)
    assert 0 < float((truth - fit.log_prob(angle, c)).mean()) < 0.15
    draws = fit.sample(500, torch.tensor([1.5]), seed=0)
    assert abs(float(torch.atan2(draws.sin().mean(), draws.cos().mean())) - 1.5) < 0.25


def test_what_it_refuses():
    x = torch.randn(50, 2)
    with pytest.raises(ValueError, match="innermost layer"):
        pf.fit_density("affine", x, objective="free_form", progress=False)
    with pytest.raises(ValueError, match="weight must be a positive number"):
        free_form_loss(FlowDistribution(FreeForm(2)), 0.0)
    with pytest.raises(ValueError, match="hidden_dims must have one width"):
        FreeForm(2, hidden_dims=())
    with pytest.raises(ValueError, match="unit vectors"):
        SphereFreeForm(3)(torch.ones(3))


def test_where_the_decoder_folds_the_inverse_is_found_or_raises():
    flow = FreeForm(1, hidden_dims=(1,)).double()
    with torch.no_grad():
        for network in (flow.decoder, flow.encoder):
            network.layers[0].weight.fill_(5.0)
            network.layers[0].bias.zero_()
        flow.decoder.layers[1].weight.fill_(-2.0)  # y = x - 2 tanh(5 x) has a highest point near -0.36, of 1.53
    y = torch.tensor([[0.3], [3.0]], dtype=F64)
    torch.testing.assert_close(flow(flow.inv(y)), y)
    with torch.no_grad():
        flow.encoder.layers[1].bias.fill_(-1.6 - 0.36)
    with pytest.raises(ArithmeticError, match="1 of 1 rows have not converged"):
        flow.inv(torch.full((1, 1), 1.6, dtype=F64))
    found = torch.func.vmap(flow.inverse_and_log_det)(torch.full((1, 1), 1.6, dtype=F64))[0]
    assert bool(torch.isnan(found).all())
