"""Encoders: shapes, what their output may depend on, padding and missing values, refusals."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from pyro_flows.nn import ConvEncoder, DeepSet, GRUEncoder, MissingValues, ResidualNet, SetAttention

SETS = {"deep_set": lambda: DeepSet(3, 2), "attention": lambda: SetAttention(3, 2)}
PADDED = {**SETS, "gru": lambda: GRUEncoder(3, 2), "gru_one_way": lambda: GRUEncoder(3, 2, num_layers=2, bidirectional=False)}
ALL = {
    **{name: (make, (7, 3)) for name, make in PADDED.items()},
    "residual": (lambda: ResidualNet(3, 2), (3,)),
    "image": (lambda: ConvEncoder((2, 9, 7), 2, (4, 5)), (2, 9, 7)),
    "signal": (lambda: ConvEncoder((2, 13), 2), (2, 13)),
    "missing": (lambda: MissingValues(ResidualNet(6, 2), 3), (3,)),
}


def made(make):
    torch.manual_seed(0)
    return make().double()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_any_batch_shape_gives_what_single_inputs_give(name, batch):
    make, shape = ALL[name]
    encoder, x = made(make), torch.randn(*batch, *shape, dtype=torch.float64)
    out = encoder(x)
    assert out.shape == (*batch, 2) and out.dtype == torch.float64
    rows = torch.stack([encoder(row) for row in x.reshape(-1, *shape)]).reshape(*batch, 2)
    torch.testing.assert_close(out, rows)


@pytest.mark.parametrize("name", ALL)
def test_copies_pickles_and_gradients(name):
    make, shape = ALL[name]
    encoder, x = made(make), torch.randn(4, *shape, dtype=torch.float64)
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(copied(x), encoder(x))
    encoder(x).square().sum().backward()
    missing = [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not missing


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_made_on_the_default_device(name):
    make, shape = ALL[name]
    encoder, x = made(make), torch.randn(4, *shape, dtype=torch.float64)
    with torch.device("meta"):
        out = encoder(x)
    assert out.device.type == "cpu" and torch.isfinite(out).all()


@pytest.mark.parametrize("name", SETS)
def test_the_order_of_a_set_makes_no_difference(name):
    encoder, x = made(SETS[name]), torch.randn(5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(encoder(x[:, torch.randperm(7)]), encoder(x))


@pytest.mark.parametrize("name", SETS)
def test_the_size_of_a_set_makes_one(name):
    encoder, x = made(SETS[name]), torch.randn(5, 7, 3, dtype=torch.float64)
    assert not torch.allclose(encoder(torch.cat([x, x], 1)), encoder(x))


def test_the_order_of_a_sequence_makes_one():
    encoder, x = made(PADDED["gru"]), torch.randn(5, 7, 3, dtype=torch.float64)
    assert not torch.allclose(encoder(x.flip(1)), encoder(x))


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("filling", [0.0, 1e30, math.nan])
def test_padding_makes_no_difference(name, filling):
    encoder = made(PADDED[name])
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    padded = torch.cat([x, torch.full((2, 4, 3), filling, dtype=torch.float64)], 1).requires_grad_()
    mask = (torch.arange(11) < 7).expand(2, 11)
    out = encoder(padded, mask)
    torch.testing.assert_close(out, encoder(x))
    out.sum().backward()
    assert torch.isfinite(padded.grad).all() and not padded.grad[:, 7:].any()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


@pytest.mark.parametrize("name", PADDED)
def test_sets_of_different_sizes_stand_in_one_batch(name):
    encoder, x = made(PADDED[name]), torch.randn(3, 7, 3, dtype=torch.float64)
    sizes = torch.tensor([2, 7, 1])
    out = encoder(x, torch.arange(7) < sizes[:, None])
    torch.testing.assert_close(out, torch.stack([encoder(x[i, : sizes[i]]) for i in range(3)]))


def test_an_empty_set_is_one_of_size_zero():
    x, nothing = torch.randn(3, 7, 3), torch.zeros(3, 7, dtype=torch.bool)
    out = DeepSet(3, 2)(x, nothing)
    assert torch.isfinite(out).all() and torch.equal(out[0], out[1])
    with pytest.raises(ValueError, match="without an element"):
        SetAttention(3, 2)(x, nothing)
    with pytest.raises(ValueError, match="without an element"):
        GRUEncoder(3, 2)(x, nothing)


def test_missing_values_are_told_from_zeros():
    encoder = made(lambda: MissingValues(ResidualNet(6, 2), 3))
    with torch.no_grad():
        encoder.filling.fill_(0.0)
    gap, zero = torch.tensor([[1.0, math.nan, 2.0]]).double(), torch.tensor([[1.0, 0.0, 2.0]]).double()
    assert torch.isfinite(encoder(gap)).all() and not torch.allclose(encoder(gap), encoder(zero))
    encoder(gap).sum().backward()
    assert encoder.filling.grad[1] != 0 and encoder.filling.grad[[0, 2]].tolist() == [0.0, 0.0]


def test_missing_values_inside_sets_and_masks_go_on_to_the_encoder():
    encoder = made(lambda: MissingValues(DeepSet(6, 2), 3))
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    x[0, 1, 2] = math.nan
    mask = torch.arange(5).expand(2, 5) < 3
    torch.testing.assert_close(encoder(x, mask=mask), encoder(x[:, :3]))


def test_a_residual_network_starts_linear():
    network = made(lambda: ResidualNet(3, 2, num_blocks=4))
    x, y = torch.randn(2, 6, 3, dtype=torch.float64)
    zero = network(torch.zeros(3).double())
    torch.testing.assert_close(network(x + y) - zero, network(x) + network(y) - 2 * zero)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualNet(0, 2), "in_dim must be a positive integer"),
        (lambda: ResidualNet(3, 2, num_blocks=True), "num_blocks must be a positive integer"),
        (lambda: ConvEncoder((9,), 2), r"in_shape must be \(C, H, W\) or \(C, L\)"),
        (lambda: ConvEncoder((1, 9, 9), 2, ()), "channels must hold at least one"),
        (lambda: ConvEncoder((1, 9, 9), 2, kernel_size=4), "kernel_size must be odd"),
        (lambda: SetAttention(3, 2, hidden_dim=10, num_heads=4), "multiple of num_heads"),
        (lambda: GRUEncoder(3, -1), "out_dim must be a positive integer"),
        (lambda: MissingValues("network", 3), "network must be a torch module"),
        (lambda: MissingValues(ResidualNet(6, 2), 0), "in_dim must be a positive integer"),
        (lambda: ConvEncoder((1, 9, 9), 2)(torch.zeros(4, 9, 9)), r"x must have shape \(\*, 1, 9, 9\)"),
        (lambda: MissingValues(ResidualNet(6, 2), 3)(torch.zeros(4, 6)), r"x must have shape \(\*, 3\)"),
        (lambda: DeepSet(3, 2)(torch.zeros(3)), r"x must have shape \(\*, n, in_dim\)"),
        (lambda: DeepSet(3, 2)(torch.zeros(4, 5, 3), torch.ones(4, 5)), "mask must be boolean"),
        (lambda: GRUEncoder(3, 2)(torch.zeros(1, 3, 3), torch.tensor([[True, False, True]])), "up to the end of a sequence"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
