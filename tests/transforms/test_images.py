"""Transforms of images: layouts, determinants, what ActNorm starts from, and flows of pixels."""

from __future__ import annotations

import math

import pytest
import torch

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.transforms import (
    ActNorm,
    Affine,
    Compose,
    ImageCoupling,
    InvertibleConv1x1,
    LogitPreprocessing,
    PerPixel,
    Split,
    Squeeze,
)
from pyro_flows.transforms.actnorm import initialize_actnorms


def test_squeeze_puts_squares_into_channels():
    image = torch.arange(16.0).reshape(1, 4, 4)
    squeezed = Squeeze((1, 4, 4))(image)
    assert squeezed[:, 0, 0].tolist() == [0.0, 1.0, 4.0, 5.0]
    assert squeezed[:, 1, 1].tolist() == [10.0, 11.0, 14.0, 15.0]
    assert torch.equal(Squeeze((1, 4, 4)).inv(squeezed), image)
    assert Squeeze((2, 6, 9), 3).output_shape == (18, 2, 3)
    many = torch.randn(2, 5, 2, 6, 9)
    assert torch.equal(Squeeze((2, 6, 9), 3).inv(Squeeze((2, 6, 9), 3)(many)), many)


def test_a_1x1_convolution_has_the_determinant_of_the_whole_map():
    layer = InvertibleConv1x1((3, 2, 2), permutation=[2, 0, 1]).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer.forward_and_log_det(v)[0], x).reshape(12, 12)
    torch.testing.assert_close(layer.forward_and_log_det(x)[1], torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("mask", ["channels", "checkerboard"])
@pytest.mark.parametrize("swap", [False, True])
def test_a_coupling_lets_half_pass_and_sees_no_more(mask, swap):
    layer = ImageCoupling((2, 4, 4), Affine(), mask=mask, swap=swap, hidden_channels=8)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 4, 4)
    same = layer(x) == x
    assert same.sum() == 16
    other = torch.where(same, x, torch.randn_like(x))
    slope = (layer(other) - layer(x))[~same] / (other - x)[~same]
    assert (slope > 0).all()  # given what passes, the rest is mapped point by point


def test_a_coupling_that_is_told_an_image_sees_it():
    layer = ImageCoupling((1, 4, 4), Affine(), 16 + 2, mask="checkerboard", hidden_channels=4, context_image=(1, 4, 4))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    context = torch.randn(18)
    moved = context.clone()
    moved[5] += 1.0
    assert not torch.equal(layer.condition(context)(torch.ones(1, 4, 4)), layer.condition(moved)(torch.ones(1, 4, 4)))


def test_what_leaves_early_is_normal_given_the_rest():
    split = Split(InvertibleConv1x1((1, 2, 2)), hidden_channels=4)
    with torch.no_grad():
        for parameter in split.network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    first, second = torch.randn(2, 2, 1, 2, 2)
    y = split(torch.cat([first, second], -3))
    assert torch.equal(y[:, :1], first)
    again = split(torch.cat([first, -second], -3))
    middle, apart = split(torch.cat([first, torch.zeros_like(second)], -3))[:, 1:], y[:, 1:] - again[:, 1:]
    torch.testing.assert_close(y[:, 1:] + again[:, 1:], 2 * middle)
    assert (apart / second > 0).all()


def test_actnorm_starts_wherever_it_stands():
    inner = Split(PerPixel((1, 2, 2), ActNorm(1)).inv, hidden_channels=4)
    flow = Compose([PerPixel((2, 2, 2), ActNorm(2)), inner])
    data = 5 + 3 * torch.randn(500, 2, 2, 2)
    initialize_actnorms(flow, data)
    noise = flow.inv(data)
    torch.testing.assert_close(noise.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(noise.transpose(0, 1).flatten(1).std(1), torch.ones(2), atol=1e-3, rtol=0)
    before = [p.clone() for p in flow.parameters()]
    initialize_actnorms(flow, 2 * data)
    assert all(torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))


def test_logit_preprocessing_has_its_jacobian():
    layer = LogitPreprocessing((2, 3), 0.05).double()
    y = torch.rand(2, 3, dtype=torch.float64)
    x, log_det = layer.inverse_and_log_det(y)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer.inverse_and_log_det(v)[0], y).reshape(6, 6)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("name", flows.names("image"))
def test_a_flow_of_images_is_the_identity_at_first_and_has_the_shape_of_its_images(name):
    flow = flows.get(name)((1, 8, 12), num_steps=2, hidden_channels=8)
    x = torch.randn(3, 1, 8, 12)
    torch.testing.assert_close(flow(x), x)
    q = pf.FlowDistribution(flow)
    assert q.event_shape == (1, 8, 12) and q.sample((2,)).shape == (2, 1, 8, 12)
    assert q.support.event_dim == 3


@pytest.mark.parametrize("name", flows.names("image"))
def test_every_pixel_moves_every_other(name):
    flow = flows.get(name)((1, 4, 4), num_steps=4, hidden_channels=8).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(1, 4, 4, dtype=torch.float64)).reshape(16, 16)
    assert (jacobian != 0).all()


def test_a_glow_learns_stripes():
    """Images of two brightnesses in stripes that are all up or all down; independent pixels have 15 log 2 nats more."""
    up = torch.rand(600, 1, 1, 1) < 0.5
    stripes = torch.arange(4).remainder(2).bool().expand(1, 4, 4)
    images = torch.where(stripes ^ up, 1.0, 14.0) + torch.randint(0, 2, (600, 1, 4, 4))
    flow = flows.of_pixels(flows.glow((1, 4, 4), num_levels=1, num_steps=4, hidden_channels=16), 16)
    fit = pf.fit_density(flow, images, batch_size=64, lr=1e-2, max_epochs=40, seed=0, progress=False)
    assert fit.distribution.transform.log_det_kind == "bound"
    nats = -fit.log_prob(images).mean().item()
    bits = pf.diagnostics.bits_per_dim(fit.log_prob(images), (1, 4, 4))
    assert abs(float(bits.mean()) - nats / (16 * math.log(2))) < 0.05  # another draw of the noise
    truth = 16 * math.log(2) + math.log(2)
    assert truth < nats < truth + 15 * math.log(2) * 0.75, nats
    draws = fit.sample(50, seed=0)
    assert draws.shape == (50, 1, 4, 4) and bool((draws == draws.round()).all())


def test_images_fit_by_name():
    images = torch.randn(64, 1, 4, 4)
    fit = pf.fit_density("glow", images, max_epochs=1, seed=0, progress=False, flow_options={"num_steps": 1, "hidden_channels": 4})
    assert fit.log_prob(images).shape == (64,)
    with pytest.raises(ValueError, match="flow of vectors; flows of images are"):
        pf.fit_density("real_nvp", images, progress=False)
    with pytest.raises(ValueError, match="flow of images; flows of vectors are"):
        pf.fit_density("glow", images.flatten(1), progress=False)
    with pytest.raises(ValueError, match="standardise must be False for images"):
        pf.fit_density("glow", images, standardise=True, progress=False)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: pf.diagnostics.bits_per_dim(torch.zeros(2), (0, 4)), "event_shape"),
        (lambda: Squeeze((1, 5, 4)), "multiples of factor=2"),
        (lambda: Squeeze((4, 4)), "three positive integers"),
        (lambda: flows.glow((1, 28, 28), num_levels=3), "multiples of 8"),
        (lambda: ImageCoupling((1, 4, 4), Affine()), "two channels at least"),
        (lambda: ImageCoupling((2, 4, 4), Affine(), mask="rows"), "mask must be"),
        (lambda: ImageCoupling((2, 1, 1), Affine(), mask="checkerboard"), "two pixels"),
        (lambda: ImageCoupling((2, 4, 4), Affine(), 3, context_image=(1, 4, 4)), "context_image"),
        (lambda: PerPixel((3, 4, 4), ActNorm(2)), "one of 3 variables"),
        (lambda: Split(Squeeze((1, 4, 4))), "keep their shape"),
        (lambda: LogitPreprocessing((2,), 0.5), "alpha"),
        (lambda: LogitPreprocessing((2,), 0.0).inv(torch.tensor([0.5, 1.5])), "0.5 to 1.5"),
        (lambda: LogitPreprocessing((2,)).inv(torch.tensor([0.5, -0.2])), "-0.2"),
        (lambda: Compose([Squeeze((1, 4, 4)), Squeeze((1, 4, 4))]), "they must agree"),
    ],
)
def test_bad_arguments_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()
