"""Residual layers and convex potentials: bounds that hold, closed Jacobians, estimates without bias, inverses or an error."""

from __future__ import annotations

import pytest
import torch

from pyro_flows import flows
from pyro_flows.nn import ConvexNetwork, LipschitzNetwork, ProximalNetwork
from pyro_flows.nn.spectral import spectral_bound
from pyro_flows.solvers import damped_newton, fixed_point
from pyro_flows.transforms import ConvexPotential, Residual

NETWORKS = {"Lipschitz": LipschitzNetwork, "proximal": ProximalNetwork}


def large(module, scale=3.0):
    """With weights far above what their bounds allow."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.double()


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (64, 64), (200, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spectral_bound_is_one_and_is_close(shape, dtype):
    for scale in (1e-3, 1.0, 1e4):
        matrix = scale * torch.randn(shape, dtype=dtype)
        exact, bound = torch.linalg.svdvals(matrix)[0], spectral_bound(matrix)
        assert exact <= bound <= exact * min(shape) ** (1 / 128) * 1.001


def test_the_spectral_bound_of_nothing_has_gradients():
    matrix = torch.zeros(3, 4, requires_grad=True)
    spectral_bound(matrix).clamp(min=1.0).backward()
    assert torch.equal(matrix.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_contract_whatever_their_weights(name):
    for seed in range(5):
        torch.manual_seed(seed)
        network = large(NETWORKS[name](3, 2, (8, 8), lipschitz=0.9))
        contraction = network.at(torch.randn(2, dtype=torch.float64))
        x = 3 * torch.randn(200, 3, dtype=torch.float64)
        jacobian = contraction.apply(x, torch.eye(3, dtype=torch.float64).expand(200, 3, 3))[1]
        assert torch.linalg.matrix_norm(jacobian, 2).max() <= 0.9 * (1 + contraction.linear) + 1e-9


def test_a_proximal_layer_is_invertible_though_its_residual_expands():
    network = large(ProximalNetwork(2, 0, (32,), lipschitz=0.99), 5.0)
    with torch.no_grad():
        network.raw_gamma.fill_(2.0)
        network.matrices[0].copy_(10 * torch.eye(32, 2))
        network.biases[0].zero_()
    layer, x = Residual(network), 0.1 * torch.randn(50, 2, dtype=torch.float64)
    y, _ = layer.forward_and_log_det(x)
    residual = (y - x)[1:] - (y - x)[:-1]
    assert (residual.norm(dim=-1) > 3 * (x[1:] - x[:-1]).norm(dim=-1)).any()
    torch.testing.assert_close(layer.inv(y), x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_jacobian_in_closed_form_is_that_of_autograd(name):
    network = large(NETWORKS[name](4, 3, (8, 6)), 0.5)
    contraction = network.at(torch.randn(3, dtype=torch.float64))
    x = torch.randn(4, dtype=torch.float64)
    found = contraction.apply(x, torch.eye(4, dtype=torch.float64))[1]
    expected = torch.autograd.functional.jacobian(lambda v: contraction.apply(v, None)[0], x)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_estimate_and_its_gradient_have_no_bias(name):
    """False alarms: 5 standard errors for about 40 numbers, 2e-5."""
    network = large(NETWORKS[name](3, 0, (6,), lipschitz=0.9), 0.5)
    exact, estimated = Residual(network), Residual(network, log_det="estimate", num_exact_terms=1)
    x = torch.randn(3, dtype=torch.float64)
    parameters = [p for name, p in network.named_parameters() if (type(network), name) != (LipschitzNetwork, "biases.1")]
    count = 40_000
    at = x.expand(count, 3).clone().requires_grad_()
    series, blocks = [], []
    for part in at.split(400):  # the number of terms is drawn once a call
        values = estimated.forward_and_log_det(part)[1]
        blocks.append(torch.cat([g.flatten() / len(part) for g in torch.autograd.grad(values.sum(), parameters)]))
        series.append(values.detach().mean())
    series, blocks = torch.stack(series), torch.stack(blocks)
    truth = exact.forward_and_log_det(x)[1]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth, parameters)])
    assert expected.abs().max() > 0.005
    for found, wanted in ((series[:, None], truth.detach()[None]), (blocks, expected)):
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - wanted).abs() <= 5 * error + 1e-9).all()


def test_many_variables_have_an_estimate_and_the_same_inverse_with_its_gradient():
    network = large(LipschitzNetwork(70, 0, (16,), lipschitz=0.9), 0.1)
    estimated, exact = Residual(network), Residual(network, log_det="exact")
    assert (estimated.log_det_kind, exact.log_det_kind) == ("estimate", "exact")
    y = torch.randn(3, 70, dtype=torch.float64)
    results = []
    for layer in (estimated, exact):
        at = y.clone().requires_grad_()
        x = layer.inverse_and_log_det(at)[0]
        results.append((x.detach(), *torch.autograd.grad(x.sin().sum(), [at, *network.parameters()])))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_guides_of_estimated_densities_are_not_weighed():
    import pyro
    import pyro.distributions as dist

    import pyro_flows as pf

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = pf.AutoFlow(model, "residual", flow_options={"log_det": "estimate", "num_layers": 1})
    with pytest.raises(ValueError, match="log_det_kind='estimate'"):
        pf.fit(model, guide=guide, max_steps=5, progress=False, seed=0).diagnose(100)
    flow = flows.residual(2, num_layers=1, log_det="estimate")

    def scored():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def by_flow():
        with pyro.plate("data", 3):
            pyro.sample("z", pf.FlowDistribution(flow))

    with pytest.raises(ValueError, match="log_det_kind='estimate'"):
        pf.evaluate_nll(scored, by_flow, plate="data", num_samples=2, progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solvers_raise_where_there_is_no_solution(dtype):
    with pytest.raises(ArithmeticError, match="1 of 2 rows"):
        damped_newton(
            lambda x: (x.atan(), torch.diag_embed(1 / (1 + x**2))),
            torch.tensor([[0.5], [3.0]], dtype=dtype),
            torch.zeros(2, 1, dtype=dtype),
        )
    with pytest.raises(ArithmeticError, match="not converged"):
        fixed_point(lambda x: 2 * x + 1, torch.ones(2, dtype=dtype), product=lambda x, v: 2 * v, max_iterations=50)


def test_newton_steps_are_shortened_and_rows_are_independent():
    def steep(x):
        return x.sinh(), torch.diag_embed(x.cosh())

    target = torch.tensor([[1e-3, 1e6], [torch.nan, 1.0], [0.0, -30.0]], dtype=torch.float64)
    for start in (torch.zeros_like(target), torch.full_like(target, 1e5)):
        found = damped_newton(steep, target, start, max_iterations=500)
        torch.testing.assert_close(found[[0, 2]], target[[0, 2]].asinh(), atol=1e-12, rtol=1e-12)
        assert found[1].isnan().all()


def test_newton_has_first_and_second_derivatives():
    matrix = torch.tensor([[2.0, 0.3], [0.1, 1.5]], dtype=torch.float64)

    def solve(target, scale):
        def function(x):
            return scale * x**3 + x @ matrix.T, torch.diag_embed(3 * scale * x**2) + matrix

        return damped_newton(function, target, torch.zeros_like(target))

    at = (
        torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True),
        torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(solve, at)
    assert torch.autograd.gradgradcheck(solve, at)


def test_a_fixed_point_refuses_second_derivatives():
    start = torch.zeros(1, dtype=torch.float64)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = fixed_point(lambda x: 1 + scale * x, start, product=lambda x, v: scale.detach() * v)
    (first,) = torch.autograd.grad(x, scale, create_graph=True)
    torch.testing.assert_close(first, torch.tensor(4.0, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(first, scale)  # of a gradient that says that it has none


def test_a_potential_has_a_positive_definite_hessian_that_is_its_second_derivative():
    network = large(ConvexNetwork(3, 2, (8, 5, 6)), 1.0)
    potential = network.at(torch.randn(2, dtype=torch.float64))
    x = torch.randn(3, dtype=torch.float64)
    gradient, hessian = potential(x, True)
    torch.testing.assert_close(potential(x, False)[0], gradient)
    expected = torch.autograd.functional.jacobian(lambda v: potential(v, False)[0], x)
    torch.testing.assert_close(hessian, expected, atol=1e-12, rtol=1e-12)
    assert torch.linalg.eigvalsh(hessian)[0] > 0
    torch.testing.assert_close(hessian, hessian.mT)


def test_a_convex_potential_transports_a_normal_to_a_normal():
    """Between two normal distributions the optimal map is x -> A x with the symmetric root A; the flow of one layer finds it."""
    covariance = torch.tensor([[2.0, 0.9], [0.9, 0.8]])
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    flow = ConvexPotential(2, hidden_dims=(16,))
    optimiser = torch.optim.Adam(flow.parameters(), lr=2e-2)
    precision = torch.linalg.inv(covariance)
    for _ in range(400):
        y, log_det = flow.forward_and_log_det(torch.randn(256, 2))
        loss = (0.5 * (y @ precision * y).sum(-1) - log_det).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.randn(1000, 2)
    error = (flow.forward_and_log_det(x)[0] - x @ root).square().mean().sqrt().item()
    assert error < 0.15, error


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: LipschitzNetwork(2, lipschitz=1.0), "lipschitz must be between 0 and 1"),
        (lambda: ProximalNetwork(2, hidden_dims=()), "hidden_dims must hold"),
        (lambda: ConvexNetwork(2, min_convexity=0.0), "min_convexity"),
        (lambda: Residual(torch.nn.Linear(2, 2)), "network must be a ContractiveNetwork"),
        (lambda: Residual(LipschitzNetwork(2), log_det="some"), "log_det must be"),
        (lambda: Residual(LipschitzNetwork(2), num_exact_terms=0), "num_exact_terms"),
        (lambda: flows.residual(2, num_layers=0), "num_layers"),
    ],
)
def test_bad_arguments_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()
