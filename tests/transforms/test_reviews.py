"""What hostile readers found in transforms, surjections and manifolds, one test each."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows import manifolds as m
from pyro_flows.distributions import FlowMixture, sphere_mixture
from pyro_flows.nn import FirstNumbers, LipschitzNetwork
from pyro_flows.transforms import (
    Abs,
    ActNorm,
    AffineTril,
    Augmentation,
    BatchNorm,
    Compose,
    ContextMap,
    ConvexPotential,
    Dequantization,
    LogitPreprocessing,
    Orthogonal,
    Permutation,
    PerPixel,
    Residual,
    Slice,
    Sort,
    TorchTransform,
)
from pyro_flows.transforms.actnorm import initialize_actnorms

F64 = torch.float64
QUICK = {"max_epochs": 2, "progress": False, "seed": 0}
NORTH = torch.tensor([0.0, 0.0, 1.0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvexPotential(3, hidden_dims=(4,)),
        lambda: Residual(LipschitzNetwork(3, 0, (4,))),
        lambda: Orthogonal(3),
        lambda: flows.residual(3, num_layers=1, hidden_dims=(4,)),
    ],
)
@pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
def test_second_derivatives_under_vmap_of_forward_mode_are_those_of_a_loop(build, direction):
    transform = build().double()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    y = torch.randn(4, 3, dtype=F64)

    def value(v):
        image, log_det = getattr(transform, direction)(v)
        return log_det + image.sin().sum()

    together = torch.vmap(torch.func.hessian(value))(y)
    alone = torch.stack([torch.autograd.functional.hessian(value, v) for v in y])
    torch.testing.assert_close(together, alone, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_of_the_same_kind(again):
    base = lambda flow: type(pf.FlowDistribution(again(flow)).base).__name__  # noqa: E731
    assert base(flows.sphere(3)) == "UniformSphere"
    assert base(Compose([m.Calibration(3)])) == "Dirichlet"
    assert base(flows.real_nvp(2)) == "StandardNormal"
    q = again(pf.FlowDistribution(flows.sphere(3))).double()
    assert abs(float(q.log_prob(NORTH.double()).detach()) + math.log(4 * math.pi)) < 1e-6
    x = 100 * torch.randn(60, 2) + 1000
    assert pf.fit_density(again(flows.affine(2)), x, **QUICK).validation_losses[0] < 20
    assert pf.diagnostics.audit_inverse(again(Compose([AffineTril(2)])), x).verdict == "invertible"


@pytest.mark.parametrize(("num_bins", "value"), [(65536, 6e4), (256, 200.0), (None, 6e4), (256, 0.0), (256, 255.0)])
def test_no_latent_leaves_its_cell(num_bins, value):
    layer, y = Dequantization((1,), num_bins), torch.full((200_000, 1), value)
    assert bool((layer(layer.inverse_and_log_det(y)[0]) == y).all())
    if num_bins:
        flow = Compose([LogitPreprocessing((1,), 0.0), layer])
        assert bool(torch.isfinite(flow.inverse_and_log_det(y)[0]).all())


@pytest.mark.parametrize(
    "distribution",
    [m.VonMisesFisher(NORTH, 5.0, validate_args=True), m.AngularCentralGaussian(torch.eye(3), validate_args=True)],
)
def test_plates_keep_validation(distribution):
    def model():
        with pyro.plate("n", 2):
            pyro.sample("x", distribution, obs=torch.tensor([[0.0, 0.0, 2.0], [9.0, 9.0, 9.0]]))

    with pytest.raises(ValueError, match="support|within"):
        pyro.poutine.trace(model).get_trace().compute_log_prob()


def test_mixtures_of_surjections_have_no_reparametrised_draws():
    positive = TorchTransform(torch.distributions.ExpTransform(), (1,))
    mixture = FlowMixture([pf.FlowDistribution(Compose([positive, Abs(1, symmetric=False, hidden_dims=())]))], learn_weights=False)
    assert not mixture.has_rsample and not mixture.given(torch.tensor(0)).has_rsample
    network = mixture.members[0].transform.parts[1].network

    def model():
        pyro.sample("z", dist.Normal(torch.full((1,), 3.0), 1.0).to_event(1))

    found = []
    for q in (mixture, mixture.members[0]):

        def guide(q=q):
            pyro.module("mixture", mixture)
            pyro.sample("z", q)

        mixture.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=0).loss_and_grads(model, guide)
        found.append(network.layers[0].weight.grad.clone())
        pyro.clear_param_store()
    assert ((found[0] - found[1]).abs() < 1.5).all() and float(found[0]) < -5


def test_constant_weights_stay_so_under_em():
    mixture = FlowMixture([pf.FlowDistribution(flows.affine(2)) for _ in range(2)], learn_weights=False)
    pf.fit_density(mixture, torch.cat([torch.randn(90, 2), torch.randn(10, 2) + 5]), objective="em", **QUICK)
    torch.testing.assert_close(mixture.weights, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("kappa", [0.0, 1e-9, 1e-4, 0.01, 0.5])
def test_gradients_of_draws_in_a_small_concentration(kappa):
    """d E[cos] / d kappa = Var[cos], 1/3 at zero; 50,000 draws, standard error about 0.002."""
    at = torch.full((50_000,), kappa, requires_grad=True)
    (slope,) = torch.autograd.grad(m.VonMisesFisher(NORTH, at).rsample()[:, 2].sum(), at)
    assert bool(torch.isfinite(slope).all())
    expected = (
        1 / 3 if kappa < 0.1 else 1 - (1 / math.tanh(kappa) - 1 / kappa) ** 2 - 2 * (1 / math.tanh(kappa) - 1 / kappa) / kappa
    )
    assert abs(float(slope.mean()) - expected) < 0.015


def test_mean_resultant_lengths_have_gradients():
    kappa = torch.tensor(2.0, dtype=F64, requires_grad=True)
    length = m.VonMisesFisher(NORTH.double(), kappa).mean_resultant_length
    (slope,) = torch.autograd.grad(length, kappa)
    expected = 1 - length.detach() ** 2 - 2 * length.detach() / 2.0
    assert abs(float(slope - expected)) < 1e-8


def test_the_oracle_refuses_maps_to_fewer_dimensions_and_takes_no_points():
    with pytest.raises(ValueError, match="2 dimensions at least"):
        m.log_volume_ratio(lambda v: v.sum()[None], NORTH[None], m.project_to_sphere, 2)
    assert m.log_volume_ratio(lambda v: v, torch.zeros(0, 3), m.project_to_sphere, 2)[1].shape == (0,)


@pytest.mark.parametrize(
    "build",
    [
        lambda: BatchNorm(2),
        lambda: Compose([BatchNorm(2), AffineTril(2)]),
        lambda: ContextMap(Compose([BatchNorm(2), AffineTril(2, 1)]), FirstNumbers(1), 2).condition(torch.ones(2)),
    ],
)
def test_batch_norm_in_training_has_no_cache(build):
    norm, x = build(), 3 * torch.randn(20, 2) + 1
    y = norm(x)
    assert torch.equal(norm.inv(y), norm.inv(y.clone()))


def test_a_wrapped_transform_has_no_stale_cache():
    scale = torch.tensor(2.0)
    transform, x = TorchTransform(torch.distributions.AffineTransform(0.0, scale), (1,)), torch.ones(3, 1)
    y = transform(x)
    scale.fill_(7.0)
    assert float(transform(x)[0]) == 7.0
    assert abs(float(transform.log_abs_det_jacobian(x, y)[0]) - math.log(7)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_recursive_spline_is_the_identity_near_its_pole_too(dtype):
    off = 10.0 ** torch.arange(-12, 0, 0.5, dtype=dtype)
    x = m.project_to_sphere(torch.stack([off, torch.zeros_like(off), torch.ones_like(off)], -1))
    y = m.CylinderSpline(3).to(dtype)(x)
    torch.testing.assert_close(y[:, 0], x[:, 0], rtol=2e-3, atol=0)


def test_compositions_compare_bounds():
    Compose([TorchTransform(torch.distributions.SigmoidTransform(), (2,)), LogitPreprocessing((2,)).inv])
    interval = TorchTransform(dist.constraints.interval(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0])), (2,))
    Compose([interval, copy.deepcopy(interval).inv])
    with pytest.raises(ValueError, match="takes values in"):
        Compose([TorchTransform(dist.constraints.positive, (2,)), LogitPreprocessing((2,)).inv])


def test_fits_score_no_rows_and_many_contexts():
    fit = pf.fit_density("affine", torch.randn(60, 2), torch.randn(60, 1), **QUICK)
    assert fit.log_prob(torch.zeros(1, 2), torch.randn(5, 1)).shape == (5,)
    assert pf.fit_density("affine", torch.randn(60, 2), **QUICK).log_prob(torch.zeros(0, 2)).shape == (0,)


def test_bases_that_are_no_modules_are_moved():
    data = m.project_to_sphere(torch.randn(40, 3))
    mixture = sphere_mixture(data, 2).double()
    assert mixture.sample((3,)).dtype == F64
    q = pf.FlowDistribution(m.Moebius(3), m.VonMisesFisher(NORTH, 3.0)).double()
    assert q.sample().dtype == F64 and q.log_prob(q.sample()).dtype == F64


def test_an_actnorm_that_stands_twice_starts_once():
    norm, data = ActNorm(1), 5 + 2 * torch.randn(500, 1)
    initialize_actnorms(Compose([norm.inv, AffineTril(1), norm.inv]), data)
    outputs = norm(data)  # by the data, and not by what the first pass made of them
    torch.testing.assert_close(torch.stack([outputs.mean(), outputs.std()]), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_signs_are_those_of_determinants():
    assert m.Rotation(torch.diag(torch.tensor([1.0, -1.0]))).sign == -1
    assert TorchTransform(torch.distributions.AffineTransform(0.0, -1.0), (3,)).sign == -1
    assert PerPixel((2, 1, 1), Permutation([1, 0])).sign == -1 and PerPixel((2, 1, 2), Permutation([1, 0])).sign == 1
    assert m.IsometricLogRatio(3).inv.input_dim == 3


def test_angles_are_wrapped_to_within_rounding():
    from pyro_flows.manifolds.torus import ANGLE, wrapped

    x = (torch.arange(-9, 10, 2) * math.pi)[:, None] + 1e-7 * torch.randn(10, 1000)
    assert bool(ANGLE.check(wrapped(x[..., None], torch.tensor([True]))).all())


POSITIVE_THEN_SIGNS = Compose([flows.affine(2, 1), TorchTransform(dist.constraints.positive, (2,)), Abs(2)])


def two_members():
    return FlowMixture([pf.FlowDistribution(flows.affine(2)) for _ in range(2)])


def _model():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pf.FlowDistribution(Sort(2).inv), "wrong way round"),
        (
            lambda: Augmentation(1, 2, more=Compose([flows.affine(2, 1), TorchTransform(dist.constraints.positive, (2,)), Abs(2)])),
            "more",
        ),
        (lambda: Slice(1, 2, rest=Compose([flows.affine(2, 1), m.IsometricLogRatio(3)])), "rest must be a bijection"),
        (lambda: Abs(2).inverse_and_log_det(torch.tensor([0.0, 1.0])), "exact zeros"),
        (lambda: Sort(2).inverse_and_log_det(torch.ones(2)), "ties"),
        (lambda: Dequantization(4, 256), "event_shape"),
        (lambda: LogitPreprocessing(4), "event_shape"),
        (lambda: m.VonMisesFisher(torch.tensor([0, 0, 1]), 1.0), "floating-point"),
        (lambda: m.VonMisesFisher(NORTH, math.inf, validate_args=True), "finite"),
        (lambda: ActNorm(1).initialize(torch.randn(5, 1), "backward"), "direction"),
        (lambda: pf.fit_density("affine", torch.randn(10, 2), validation_share=0.99, progress=False), "rows to train on"),
        (lambda: pf.fit_density(pf.FlowDistribution(flows.affine(2)).expand((3,)), torch.randn(60, 2)), "batch shape"),
        (lambda: pf.AutoFlow(_model, lambda d, c=0: m.CircularCoupling(d)).setup(), "one of real vectors is wanted"),
        (lambda: pf.diagnostics.plot_globe(lambda x: torch.full((len(x),), math.nan), num_cells=4), "finite numbers somewhere"),
        (lambda: pf.fit_density(two_members(), torch.randn(60, 2) * torch.tensor([1.0, 0.0])), "do not vary"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
