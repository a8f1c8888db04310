"""Elementwise and coupling layers, and the flows made of them."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_flows import flows
from pyro_flows.transforms import Affine, Compose, Coupling, Elementwise, RationalQuadraticSpline, Shift

UNIVARIATE = {"shift": Shift, "affine": Affine, "spline": RationalQuadraticSpline}
COUPLING_FLOWS = ["nice", "real_nvp", "nsf_coupling"]
D, C = 4, 2
MASKS = {"default": None, "alternating": [True, False] * 2, "one_passes": [False, True, False, False]}


def randomised(transform, scale=0.3, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    transform = transform.to(dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return transform


LAYERS = {
    **{f"elementwise_{name}": lambda c, u=u: Elementwise(D, u(), c) for name, u in UNIVARIATE.items()},
    **{
        f"coupling_{name}_{mask}": lambda c, u=u, mask=mask: Coupling(D, u(), c, mask=MASKS[mask])
        for name, u in UNIVARIATE.items()
        for mask in MASKS
    },
    **{name: lambda c, name=name: flows.get(name)(D, c, num_layers=4, hidden_dims=(16,)) for name in COUPLING_FLOWS},
    **{f"{name}_1d": lambda c, name=name: flows.get(name)(1, c) for name in COUPLING_FLOWS},
    **{f"coupling_{name}_1d": lambda c, u=u: Coupling(1, u(), c) for name, u in UNIVARIATE.items()},
}


def inputs(transform, c, batch=(5,), scale=1.0, dtype=torch.float64):
    x = scale * torch.randn(*batch, transform.input_dim, dtype=dtype)
    return x, torch.randn(*batch, c, dtype=dtype) if c else None


@pytest.mark.parametrize("c", [0, C])
@pytest.mark.parametrize("name", LAYERS)
def test_both_directions_agree_and_log_det_is_that_of_the_jacobian(name, c):
    transform = randomised(LAYERS[name](c), scale=0.1)
    xs, contexts = inputs(transform, c)
    for i, x in enumerate(xs):
        context = None if contexts is None else contexts[i]
        y, log_det = transform.forward_and_log_det(x, context)
        back, inverse_log_det = transform.inverse_and_log_det(y, context)
        jacobian = torch.autograd.functional.jacobian(lambda v, context=context: transform.forward_and_log_det(v, context)[0], x)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(back, x, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("c", [0, C])
@pytest.mark.parametrize("name", LAYERS)
def test_starts_at_the_identity_whatever_the_context(name, c):
    transform = LAYERS[name](c).double()
    x, context = inputs(transform, c)
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        y, log_det = direction(x, context)
        torch.testing.assert_close(y, x, atol=1e-12, rtol=0)
        torch.testing.assert_close(log_det, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("c", [0, C])
@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_receives_a_gradient(name, c):
    transform = randomised(LAYERS[name](c), scale=0.1)
    x, context = inputs(transform, c, (64,))
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        y, log_det = direction(x, context)
        transform.zero_grad()
        (y.sin().sum() + log_det.cos().sum()).backward()
        without = [k for k, p in transform.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without


@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e4])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_finite_at_small_and_large_inputs(name, scale):
    transform = randomised(LAYERS[name](C), scale=0.1, dtype=torch.float32)
    x, context = inputs(transform, C, (16,), scale, torch.float32)
    x.requires_grad_()
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        y, log_det = direction(x, context)
        gradients = torch.autograd.grad(y.sum() + log_det.sum(), [x, *transform.parameters()])
        assert all(torch.isfinite(t).all() for t in (y, log_det, *gradients))


@pytest.mark.parametrize("name", LAYERS)
def test_context_of_fewer_batch_dimensions_is_that_of_every_row(name):
    transform = randomised(LAYERS[name](C), scale=0.1)
    x, _ = inputs(transform, 0, (3, 5))
    context = torch.randn(5, C, dtype=torch.float64)
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        for few, many in zip(direction(x, context), direction(x, context.expand(3, 5, C)), strict=True):
            torch.testing.assert_close(few, many)


@pytest.mark.parametrize("mask", [None, [True, False, False, True], [False, False, True, False]])
def test_coupling_lets_pass_what_the_mask_says_and_maps_the_rest_by_it(mask):
    layer = randomised(Coupling(D, Affine(), mask=mask))
    passed = torch.tensor(mask if mask is not None else [True, True, False, False])
    x = torch.randn(D, dtype=torch.float64)
    y = layer(x)
    assert torch.equal(y[passed], x[passed])
    assert (y[~passed] != x[~passed]).all()
    jacobian = torch.autograd.functional.jacobian(lambda v: layer.forward_and_log_det(v)[0], x)
    expected = torch.eye(D, dtype=torch.bool)
    expected[(~passed).nonzero(), passed.nonzero().T] = True
    assert torch.equal(jacobian != 0, expected)


def test_elementwise_has_a_map_of_its_own_for_each_variable():
    layer = randomised(Elementwise(3, Affine()))
    y = layer(torch.ones(3, dtype=torch.float64))
    assert len(set(y.tolist())) == 3


@pytest.mark.parametrize("dim", [2, 3, 5, 10])
@pytest.mark.parametrize("name", [*COUPLING_FLOWS, "iaf", "maf", "nsf_autoregressive"])
def test_every_variable_moves_and_depends_on_every_other(name, dim):
    """Pyro's ``iterated(n, affine_coupling)`` never moves the first half."""
    flow = randomised(flows.get(name)(dim, hidden_dims=(16,)), scale=0.2)
    x = 0.5 * torch.randn(dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.forward_and_log_det(v)[0], x)
    assert (jacobian != 0).all()


@pytest.mark.parametrize("name", COUPLING_FLOWS)
def test_a_stack_of_one_size_always_has_the_same_masks(name):
    torch.manual_seed(1)
    first = flows.get(name)(7)
    torch.manual_seed(2)
    state = flows.get(name)(7).state_dict()
    for key, value in first.state_dict().items():
        if key.endswith(("passed", "mapped", "restore")):
            assert torch.equal(value, state[key])


def test_scaling_of_nice_reaches_far():
    flow = flows.nice(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.fill_(8.0)
    assert flow.forward_and_log_det(torch.zeros(1))[1] > 6


@pytest.mark.parametrize(
    "name, c", [("real_nvp", 0), ("nsf_coupling", C), ("iaf", 0), pytest.param("nsf_autoregressive", C, marks=pytest.mark.slow)]
)
def test_whole_flow_compiles_in_one_graph_and_maps_over_a_batch(name, c):
    flow = randomised(flows.get(name)(3, c, num_layers=2, hidden_dims=(8,)))
    x, context = inputs(flow, c)
    x.requires_grad_()
    for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
        torch._dynamo.reset()
        expected = method(x, context)
        leaves = [x, *flow.parameters()]
        gradients = torch.autograd.grad(expected[0].sin().sum() + expected[1].sum(), leaves)
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        vmapped = torch.func.vmap(method, in_dims=(0, 0 if c else None))
        for run in (compiled, vmapped):
            y, log_det = run(x, context)
            torch.testing.assert_close((y, log_det), expected, atol=1e-10, rtol=1e-10)
            again = torch.autograd.grad(y.sin().sum() + log_det.sum(), leaves)
            torch.testing.assert_close(again, gradients, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("c", [0, C])
def test_no_tensor_of_a_call_is_made_on_the_default_device(c):
    for name in (*COUPLING_FLOWS, "iaf", "nsf_autoregressive"):
        flow = randomised(flows.get(name)(3, c, num_layers=2), dtype=torch.float32)
        x, context = inputs(flow, c, dtype=torch.float32)
        with torch.device("meta"):
            for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
                y, log_det = method(x, context)
                (y.sum() + log_det.sum()).backward()
                assert y.device.type == log_det.device.type == "cpu"


def test_layers_are_built_on_the_default_device():
    """A mask that comes as a CPU tensor must not leave buffers behind where the parameters are not."""
    with torch.device("meta"):
        layer = Coupling(3, Affine(), mask=torch.tensor([True, False, True], device="cpu"))
        devices = {tensor.device.type for tensor in (*layer.parameters(), *layer.buffers())}
    assert devices == {"meta"}


@pytest.mark.parametrize("build", [lambda u: Elementwise(2, u), lambda u: Coupling(2, u)])
@pytest.mark.parametrize("univariate", [Affine, "affine", None])
def test_a_univariate_map_that_is_none_is_named(build, univariate):
    with pytest.raises(ValueError, match="univariate"):
        build(univariate)


@pytest.mark.parametrize(
    "mask", [[True] * 3, [True, False], [1, 0, 1], torch.tensor([1.0, 0.0, 0.0]), torch.ones(1, 3, dtype=torch.bool)]
)
def test_a_mask_of_wrong_length_or_type_or_without_effect_is_refused(mask):
    with pytest.raises(ValueError, match="mask"):
        Coupling(3, Affine(), mask=mask)


@pytest.mark.parametrize("name", [*COUPLING_FLOWS, "iaf", "nsf_autoregressive"])
def test_a_flow_is_built_on_the_default_device(name):
    with torch.device("meta"):
        flow = flows.get(name)(6, num_layers=4)
    assert {tensor.device.type for tensor in [*flow.parameters(), *flow.buffers()]} == {"meta"}


def test_a_layer_that_overrides_another_keeps_its_own_map_inside_of_a_composition():
    class Doubled(Coupling):
        def forward_and_log_det(self, x, context=None):
            y, log_det = super().forward_and_log_det(x, context)
            return 2 * y, log_det + 2 * math.log(2.0)

        def inverse_and_log_det(self, y, context=None):
            x, log_det = super().inverse_and_log_det(y / 2, context)
            return x, log_det - 2 * math.log(2.0)

    flow = Compose([Coupling(2, Affine()), Doubled(2, Affine()), Coupling(2, Affine())])
    x = torch.randn(5, 2)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, 2 * x)
    torch.testing.assert_close(log_det, torch.full((5,), 2 * math.log(2.0)))
    torch.testing.assert_close(flow.inv(y), x)


def test_a_part_of_another_dtype_is_named():
    flow = Compose([Coupling(2, Affine()).double(), Coupling(2, Affine())])
    with pytest.raises(ValueError, match="float32"):
        flow.forward_and_log_det(torch.zeros(3, 2, dtype=torch.float64))
