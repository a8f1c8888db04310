"""Continuous flows against closed forms, their own other ways, and what goes wrong in solvers."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from pyro_flows import FlowDistribution, flows
from pyro_flows.guides.flow_guide import check_exact_density
from pyro_flows.nn import VelocityField, VelocityMLP
from pyro_flows.solvers import solve_ode
from pyro_flows.transforms import CNF, AffineTril, Compose, on_grid, record_costs


class Linear(VelocityField):
    """The field A x, whose flow is the exponential of A."""

    def __init__(self, matrix):
        super().__init__(len(matrix))
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, x, context=None):
        return x @ self.matrix.t()


class Given(VelocityField):
    def __init__(self, dim, field):
        super().__init__(dim)
        self.field = field

    def forward(self, t, x, context=None):
        return self.field(t, x)


def moved(module, size=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


MATRIX = torch.tensor([[0.3, -1.0], [0.8, -0.5]], dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"solver": "dopri8"}, {"solver": "bosh3"}, {"solver": "rk4", "num_steps": 200}])
def test_linear_field_is_a_matrix_exponential(options):
    flow = CNF(Linear(MATRIX), tolerance=1e-9, t0=0.5, t1=2.0, **options)
    x = torch.randn(6, 2, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    exact = x @ torch.linalg.matrix_exp(1.5 * MATRIX).t()
    assert (y - exact).abs().max() < 2e-8
    assert (log_det - 1.5 * MATRIX.trace()).abs().max() < 2e-8
    back, log_det_back = flow.inverse_and_log_det(exact)
    assert (back - x).abs().max() < 2e-8
    assert (log_det_back + 1.5 * MATRIX.trace()).abs().max() < 2e-8


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_fixed_grids_have_their_order(solver, order):
    x = torch.ones(1, 2, dtype=torch.float64)
    exact = x @ torch.linalg.matrix_exp(MATRIX).t()
    errors = [float((CNF(Linear(MATRIX), solver=solver, num_steps=n)(x).detach() - exact).abs().max()) for n in (10, 20)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("tolerance", "dtype"), [(1e-4, torch.float32), (1e-5, torch.float32), (1e-9, torch.float64)])
@pytest.mark.parametrize("dim", [1, 2, 10])
def test_round_trip_within_ten_times_the_tolerance(dim, tolerance, dtype):
    torch.manual_seed(dim)
    flow = moved(CNF(VelocityMLP(dim), tolerance=tolerance), 0.1).to(dtype)
    x = 2 * torch.randn(50, dim, dtype=dtype)
    with torch.no_grad():
        y, log_det = flow.forward_and_log_det(x)
        back, log_det_back = flow.inverse_and_log_det(y)
    assert float((y - x).abs().max()) > 0.1
    assert float(((back - x).abs() / (1 + x.abs())).max()) <= 10 * tolerance
    assert float(((log_det + log_det_back).abs() / (1 + log_det.abs())).max()) <= 10 * tolerance


@pytest.mark.parametrize("time", ["film", "concat"])
@pytest.mark.parametrize("activation", ["tanh", "softplus", "silu"])
@pytest.mark.parametrize("hidden_dims", [(5,), (6, 5), (6, 5, 7)])
def test_closed_forms_of_the_field_are_those_of_autograd(hidden_dims, activation, time):
    field = moved(VelocityMLP(3, 2, hidden_dims, activation=activation, time=time)).double()
    x, context = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    e = torch.randn(4, 3, dtype=torch.float64)
    for t in (torch.tensor(0.3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)):
        found, expected = field.at(context)(t, x), VelocityField.at(field, context)(t, x)
        assert torch.allclose(found.velocity, expected.velocity, atol=1e-12)
        assert torch.allclose(found.pull_back(e), expected.pull_back(e), atol=1e-12)
        assert torch.allclose(found.divergence(), expected.divergence(), atol=1e-12)
        assert float(found.divergence().detach().abs().min()) > 1e-4


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
def test_hutchinson_is_the_exact_trace_in_the_mean(probes):
    # 1,000 probes: the mean of each of 3 rows lies within 4 standard errors but in 2 of 10,000 runs.
    torch.manual_seed(3)
    field = moved(VelocityMLP(4, hidden_dims=(16, 16))).double()
    exact, estimated = CNF(field, tolerance=1e-6), CNF(field, tolerance=1e-6, trace="estimate", probes=probes)
    assert (exact.log_det_kind, estimated.log_det_kind) == ("exact", "estimate")
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        truth = exact.forward_and_log_det(x)[1]
        y, draws = estimated.forward_and_log_det(x.expand(1000, 3, 4))
    assert (y - exact(x)).abs().max() < 1e-4
    assert float(draws.std(0).min()) > 0.01
    assert ((draws.mean(0) - truth).abs() < 4 * draws.std(0) / math.sqrt(1000)).all()


def test_one_probe_serves_a_whole_solve():
    # With a probe for each evaluation the slope would be noise to the solver, which would not get through.
    field = moved(VelocityMLP(4), 0.2).double()
    evaluations = []
    for trace in ("exact", "estimate"):
        with torch.no_grad(), record_costs(regularisers=False) as costs:
            CNF(field, trace=trace, tolerance=1e-7).forward_and_log_det(torch.randn(5, 4, dtype=torch.float64))
        evaluations.append(costs.evaluations)
    assert evaluations[1] < 3 * evaluations[0]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_adjoint_and_backpropagation_agree(context_dim, own):
    if own and context_dim:
        pytest.skip("the linear field has no context")
    field = Linear(MATRIX.clone()) if own else moved(VelocityMLP(2, context_dim, (8, 8))).double()
    x0 = torch.randn(7, 2, dtype=torch.float64)
    context = torch.randn(7, context_dim, dtype=torch.float64) if context_dim else None
    found = []
    for gradient in ("steps", "adjoint"):
        x = x0.clone().requires_grad_()
        told = None if context is None else context.clone().requires_grad_()
        flow = CNF(field, gradient=gradient, tolerance=1e-7)
        y, log_det = flow.inverse_and_log_det(x, told)
        loss = y.sin().sum() + (log_det * torch.arange(7)).sum()
        inputs = [x, *field.parameters(), *([] if told is None else [told])]
        found.append(torch.autograd.grad(loss, inputs, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_costs_of_a_linear_field():
    # Along e^{ta}: kinetic energy a^2 x^2 (e^{2a} - 1) / 2a, Jacobian norm a^2.
    a = 0.7
    flow = CNF(Linear(torch.tensor([[a]], dtype=torch.float64)), tolerance=1e-9)
    x = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    for method, factor in ((flow.forward_and_log_det, math.expm1(2 * a)), (flow.inverse_and_log_det, -math.expm1(-2 * a))):
        with record_costs() as costs:
            method(x)
        assert float(costs.kinetic_energy.detach()) == pytest.approx(a * 2.5 * factor / 2, rel=1e-7)
        assert float(costs.jacobian_norm.detach()) == pytest.approx(a**2, rel=1e-7)
        assert costs.kinetic_energy.requires_grad and costs.evaluations > 10


def test_costs_are_collected_from_any_loss_and_passes_are_not_remembered():
    q = FlowDistribution(flows.get("cnf")(2))
    moved(q, 0.3)
    with record_costs() as costs:
        value = q.rsample((5,))
        q.log_prob(value)
    assert len(costs._kinetic) == 2
    before = costs.evaluations
    q.log_prob(value)
    assert costs.evaluations == before
    with record_costs(regularisers=False) as costs, pytest.raises(ValueError, match="regularisers were not computed"):
        q.log_prob(value)
        _ = costs.kinetic_energy
    with record_costs() as costs, pytest.raises(ValueError, match="no continuous flow was solved"):
        _ = costs.jacobian_norm


def test_draws_alone_leave_the_density_out_and_are_scored_later():
    q = FlowDistribution(moved(flows.get("cnf")(3, tolerance=1e-8), 0.2)).double()
    torch.manual_seed(0)
    value = q.sample((20,))
    torch.manual_seed(0)
    again, log_prob = q.rsample_and_log_prob((20,))
    assert (value - again).abs().max() < 1e-6
    assert (q.log_prob(value) - log_prob).abs().max() < 1e-6
    with record_costs() as costs:
        q.sample((2,))
    assert costs.evaluations > 0 and not costs._kinetic


def test_rows_of_any_batch_shape_and_none():
    flow = moved(CNF(VelocityMLP(2, 3)))
    x, context = torch.randn(4, 1, 2), torch.randn(5, 3)
    y, log_det = flow.forward_and_log_det(x, context)
    assert y.shape == (4, 5, 2) and log_det.shape == (4, 5)
    alone = flow.forward_and_log_det(x[2, 0], context[3])
    assert torch.allclose(y[2, 3], alone[0], atol=1e-3)
    assert flow.forward_and_log_det(torch.zeros(0, 2), context[0])[0].shape == (0, 2)


def test_times_may_run_backwards():
    field = moved(VelocityMLP(2), 0.2).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    one, other = CNF(field, t0=0.0, t1=1.0, tolerance=1e-8), CNF(field, t0=1.0, t1=0.0, tolerance=1e-8)
    for a, b in zip(one.forward_and_log_det(x), other.inverse_and_log_det(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CNF(nn.Linear(2, 2)), "velocity must be a VelocityField"),
        (lambda: CNF(VelocityMLP(2), t0=1.0, t1=1.0), "t0 and t1 must be two different times"),
        (lambda: CNF(VelocityMLP(2), t1=math.inf), "t0 and t1 must be two different times"),
        (lambda: CNF(VelocityMLP(2), solver="rk45"), "solver must be one of"),
        (lambda: CNF(VelocityMLP(2), solver="rk4"), "takes num_steps"),
        (lambda: CNF(VelocityMLP(2), num_steps=10), "takes no num_steps"),
        (lambda: CNF(VelocityMLP(2), solver="rk4", num_steps=0), "num_steps must be a positive integer"),
        (lambda: CNF(VelocityMLP(2), tolerance=0.0), "tolerance must lie between 0 and 1"),
        (lambda: CNF(VelocityMLP(2), trace="hutchinson"), "trace must be"),
        (lambda: CNF(VelocityMLP(2), probes="uniform"), "probes must be"),
        (lambda: CNF(VelocityMLP(2), gradient="none"), "gradient must be"),
        (lambda: CNF(VelocityMLP(2), solver="rk4", num_steps=4, gradient="adjoint"), "is for a solver that adapts"),
        (lambda: flows.get("cnf")(2, tolerence=1e-3), "options \\['tolerence'\\] are unknown"),
        (lambda: flows.build("sphere_cnf", 3, for_data=True, steps=3), "options \\['steps'\\] are unknown"),
        (lambda: VelocityMLP(2, hidden_dims=()), "one width at least"),
        (lambda: VelocityMLP(2, activation="relu"), "activation must be"),
        (lambda: VelocityMLP(2, time="none"), "time must be"),
        (lambda: VelocityMLP(0), "dim must be a positive integer"),
        (lambda: VelocityMLP(2, -1), "context_dim must be"),
        (lambda: CNF(VelocityMLP(2), tolerance=1e-7)(torch.ones(2)), "tolerance must be at least"),
        (lambda: torch.func.vmap(CNF(VelocityMLP(2)))(torch.ones(3, 2)), "adapts its steps to values"),
        (lambda: solve_ode(lambda t, s: s, torch.ones(1, 1), 1.0, 1.0), "start and end must differ"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_field_that_is_not_defined_says_so():
    with pytest.raises(TypeError, match="does not define forward"):
        CNF(VelocityField(2))(torch.ones(2))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda t, x: x * float("nan"), "the slope is not finite at the start"),
        (lambda t, x: -1e7 * (x - t), "too stiff"),
        (lambda t, x: x.square() * 1e3, "did not reach time 1"),
    ],
)
def test_a_solve_that_does_not_get_through_raises(field, message):
    flow = CNF(Given(2, field), tolerance=1e-6).double()
    with pytest.raises(ArithmeticError, match=message):
        flow(torch.ones(3, 2, dtype=torch.float64))


def test_memory_of_the_adjoint_does_not_grow_with_steps():
    def saved(gradient, tolerance):
        flow = moved(CNF(VelocityMLP(2, hidden_dims=(16, 16)), gradient=gradient, tolerance=tolerance)).double()
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            flow.forward_and_log_det(torch.randn(50, 2, dtype=torch.float64))
        return total

    assert saved("steps", 1e-7) > 1.5 * saved("steps", 1e-3)
    assert saved("adjoint", 1e-7) == saved("adjoint", 1e-3)


def test_the_library_of_solvers_may_be_loaded_inside_another_default_device():
    code = (
        "import torch; from pyro_flows import flows; flow = flows.get('cnf')(2); x = torch.ones(3, 2)\n"
        "with torch.device('meta'): y = flow(x)\n"
        "print(y.device.type, bool((y == x).all()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["cpu", "True"], done.stderr


def test_estimated_densities_are_no_weights():
    assert CNF(VelocityMLP(100)).log_det_kind == "exact"
    assert CNF(VelocityMLP(100, hidden_dims=(8, 8, 8))).log_det_kind == "estimate"
    assert CNF(VelocityMLP(16, hidden_dims=(8, 8, 8))).log_det_kind == "exact"
    estimated = CNF(Linear(torch.eye(20)))
    assert estimated.log_det_kind == "estimate"
    with pytest.raises(ValueError, match="exact"):
        check_exact_density(FlowDistribution(estimated))


def test_augmented_flow_is_a_bound_in_the_mean():
    torch.manual_seed(0)
    q = FlowDistribution(moved(flows.augmented_cnf(1, num_more=1, tolerance=1e-4), 0.15))
    grid = torch.linspace(-12, 12, 400)[:, None]
    with torch.no_grad():
        draws = q.log_prob(grid.expand(200, 400, 1))
        total = float(draws.logsumexp(0).sub(math.log(200)).exp().sum() * (grid[1] - grid[0]))
        below = float(draws.mean(0).exp().sum() * (grid[1] - grid[0]))
    # The mean of exponentials is the density without bias, that of logarithms below it; the error of 200 draws is about 0.01.
    assert total == pytest.approx(1, abs=0.04)
    assert below < total - 0.001


class Waves(VelocityField):
    def __init__(self, dim):
        super().__init__(dim)
        self.layer = torch.nn.Linear(dim, dim)

    def forward(self, t, x, context=None):
        return torch.sin(self.layer(x)) * (1 + t)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at its first forward mode
def test_a_field_without_closed_forms_in_every_mode():
    """Inference mode, forward mode, vmap, jacfwd and compilers differentiate it as plain autograd does."""
    torch.manual_seed(0)
    adaptive, x = CNF(Waves(2)).double(), torch.randn(3, 2, dtype=torch.float64)
    expected, score = adaptive.forward_and_log_det(x)[1].detach(), adaptive.forward_with_score(x, -x)[2]
    with torch.inference_mode():
        torch.testing.assert_close(adaptive.forward_and_log_det(x)[1], expected)
        torch.testing.assert_close(adaptive.forward_with_score(x, -x)[2], score)
    assert float(expected.abs().min()) > 0.1
    grid = CNF(adaptive.velocity, solver="rk4", num_steps=4)
    value, log_det = grid.forward_and_log_det(x)
    jacobian = torch.autograd.functional.jacobian(lambda a: grid.forward_and_log_det(a)[0], x[0])
    torch.testing.assert_close(torch.func.jacfwd(lambda a: grid.forward_and_log_det(a)[0])(x[0]), jacobian)
    torch.testing.assert_close(torch.func.vmap(grid.forward_and_log_det)(x), (value, log_det))
    torch.testing.assert_close(torch.compile(grid.forward_and_log_det, fullgraph=True, backend="eager")(x), (value, log_det))


def test_a_pass_before_a_grid_is_not_remembered_in_what_holds_the_flow():
    torch.manual_seed(0)
    flow = CNF(Waves(2))
    outer, z = Compose([flow, AffineTril(2)]), torch.randn(2, 2)
    before = outer(z)
    with on_grid(flow, 1):
        torch.testing.assert_close(outer(z), outer(z.clone()))
        assert float((outer(z) - before).detach().abs().max()) > 1e-6


def test_chains_refuse_an_estimated_density():
    from pyro_flows.infer.neural_transport import neural_transport

    q = FlowDistribution(CNF(Waves(2), trace="estimate"))
    with pytest.raises(ValueError, match="is not exact"):
        neural_transport(q, lambda z: -z.square().sum(-1), num_samples=2, progress=False)


def test_times_and_circles_of_other_kinds_are_refused():
    for times in ({"t0": None}, {"t1": "a"}):
        with pytest.raises(ValueError, match="t0 and t1"):
            CNF(VelocityMLP(2), **times)
    with pytest.raises(ValueError, match="circles must be a sequence"):
        flows.get("torus_cnf")(2, circles=3)


def test_costs_of_no_rows_are_left_out():
    flow = CNF(VelocityMLP(2))
    with record_costs() as costs:
        flow.forward_and_log_det(torch.zeros(0, 2))
        flow.forward_and_log_det(torch.zeros(3, 2))
    assert float(costs.kinetic_energy.detach()) == 0
