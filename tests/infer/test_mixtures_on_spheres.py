"""Mixtures of flows on the sphere: EM and direct likelihood agree, components come back, the start is where data are."""

from __future__ import annotations

import math

import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import plot_globe, plot_torus
from pyro_flows.distributions import FlowDistribution, FlowMixture, sphere_mixture
from pyro_flows.distributions.k_means import k_means
from pyro_flows.manifolds import AngularCentralGaussian, CylinderSpline, UniformTorus, VonMisesFisher, project_to_sphere

CENTRES = project_to_sphere(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.2, -0.3], [-0.6, -0.8, 0.1]]))
SHARES = torch.tensor([0.5, 0.3, 0.2])


def three_components(count):
    torch.manual_seed(0)
    which = torch.multinomial(SHARES, count, replacement=True)
    vmf = VonMisesFisher(CENTRES, torch.tensor([40.0, 15.0, 80.0]))
    data = vmf.sample((count,))[torch.arange(count), which]
    log_prob = torch.logsumexp(vmf.log_prob(data[:, None]) + SHARES.log(), 1)
    return data, float(log_prob.mean())


def test_em_and_direct_likelihood_agree_and_find_the_components():
    data, truth = three_components(2500)
    options = {"max_epochs": 40, "lr": 2e-2, "batch_size": 250, "patience": 40, "seed": 0, "progress": False}
    fits = {
        objective: pf.fit_density(sphere_mixture(data, 3), data, objective=objective, **options)
        for objective in ("likelihood", "em")
    }
    nats = {objective: float(fit.log_prob(data).mean()) for objective, fit in fits.items()}
    assert abs(nats["em"] - nats["likelihood"]) < 0.02, nats
    for fit in fits.values():
        assert isinstance(fit.distribution, FlowMixture)
        assert truth - 0.05 < float(fit.log_prob(data).mean()) < truth + 0.02
        places = torch.stack([member.sample((2000,)).mean(0) for member in fit.distribution.members])
        match = (project_to_sphere(places) @ CENTRES.T).max(0)
        assert float(match.values.min()) > math.cos(math.radians(4))
        assert ((fit.distribution.weights[match.indices] - SHARES).abs() < 0.05).all()
        draws = fit.sample(500, seed=1)
        assert draws.shape == (500, 3) and torch.equal(draws, fit.sample(500, seed=1))


def test_a_background_is_one_more_component():
    data, _ = three_components(300)
    made = sphere_mixture(data, 2, background=0.1)
    plain = sphere_mixture(data, 2)
    torch.testing.assert_close(made.weights, torch.cat([0.9 * plain.weights, torch.tensor([0.1])]))
    uniform = torch.full((5,), -math.log(4 * math.pi))
    torch.testing.assert_close(made.member_log_probs(data[:5])[-1], uniform, atol=1e-5, rtol=1e-5)
    for wrong in (1.0, -0.1, "no"):
        with pytest.raises(ValueError, match="background must be a share"):
            sphere_mixture(data, 2, background=wrong)


def test_a_component_has_the_shape_of_its_data():
    """A narrow band: a linear map finds it, of which a von Mises-Fisher distribution knows nothing."""
    acg = AngularCentralGaussian(torch.diag(torch.tensor([1.0, 0.15, 0.03])))
    data = acg.sample((1500,))
    data = data * data[:, :1].sign()  # one side
    fit = pf.fit_density(sphere_mixture(data, 1), data, max_epochs=60, lr=2e-2, batch_size=150, seed=0, progress=False)
    round_one = VonMisesFisher(project_to_sphere(data.mean(0)), 1 / (1 - data.mean(0).norm()))
    assert float(fit.log_prob(data).mean()) > float(round_one.log_prob(data).mean()) + 0.5


def test_k_means_finds_three_groups():
    """Nearly every point is in the group of its component: the three are far apart."""
    data, _ = three_components(600)
    group, component = k_means(data, 3, 0), (data @ CENTRES.T).argmax(1)
    together = torch.zeros(3, 3).index_put((group, component), torch.ones(600), accumulate=True)
    assert float(together.max(1).values.sum()) > 0.97 * 600 and sorted(together.argmax(1).tolist()) == [0, 1, 2]


def test_inner_maps_and_pictures(tmp_path):
    data, _ = three_components(300)
    mixture = sphere_mixture(data, 2, inner=lambda n: CylinderSpline(n, hidden_dims=(8,)))
    assert mixture.log_prob(data).shape == (300,)
    plot_globe(mixture.log_prob, points=data, title="three", num_cells=20, path=tmp_path / "globe.png")
    plot_torus(UniformTorus(2).log_prob, points=torch.zeros(3, 2), num_cells=20, path=tmp_path / "torus.png")
    assert (tmp_path / "globe.png").stat().st_size > 1000 and (tmp_path / "torus.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: sphere_mixture(2 * x, 2), "data must hold unit vectors"),
        (lambda x: sphere_mixture(x, 0), "num_components"),
        (lambda x: sphere_mixture(x, 1000), "from 1 to 50"),
        (lambda x: sphere_mixture(x[0], 1), "shape"),
        (lambda x: pf.fit_density("maf", x, objective="em"), "is for a FlowMixture"),
        (lambda x: pf.fit_density("maf", x, objective="vb"), "objective must be"),
        (lambda x: pf.fit_density(sphere_mixture(x, 1), x, standardise=True), "fitted as it is"),
        (lambda x: plot_globe(FlowDistribution(CylinderSpline(3)).log_prob, points=x[:, :2]), r"shape \(M, 3\)"),
        (lambda x: plot_globe(lambda x: x, num_cells=0), "num_cells"),
        (lambda x: plot_torus(lambda x: x, points=x), r"shape \(M, 2\)"),
    ],
)
def test_bad_arguments_are_named(call, match):
    data = project_to_sphere(torch.randn(50, 3))
    with pytest.raises(ValueError, match=match):
        call(data)
