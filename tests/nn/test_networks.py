"""MLP and MaskedMLP: who sees whom, widths, zero start."""

from __future__ import annotations

import pickle

import pytest
import torch

from pyro_flows.nn import MLP, ColumnMLP, MaskedMLP


def randomised(module, scale=0.5):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.double()


def influence(network, D, context=None):
    """Whether output i changes with input j, ``(D, D)``."""
    x = torch.randn(D, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: network.at(v, context), x)
    return (jacobian != 0).any(1)


@pytest.mark.parametrize("D", [1, 2, 5, 12])
@pytest.mark.parametrize("hidden", [(), (4,), (3, 3), (16, 7, 16)])
def test_each_output_sees_all_its_predecessors_and_nothing_else(D, hidden):
    network = randomised(MaskedMLP(D, 2, hidden_dims=hidden))
    expected = torch.ones(D, D, dtype=torch.bool).tril(-1)
    assert torch.equal(influence(network, D), expected)


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 2, 1, 0]])
@pytest.mark.parametrize("hidden", [(), (8, 8)])
def test_order_says_who_comes_before(order, hidden):
    network = randomised(MaskedMLP(4, 1, hidden_dims=hidden, order=torch.tensor(order)))
    place = torch.tensor(order)
    assert torch.equal(influence(network, 4), place[:, None] > place[None, :])


@pytest.mark.parametrize("hidden", [(), (3,), (8, 8)])
@pytest.mark.parametrize("D", [1, 4])
def test_every_output_sees_the_context(D, hidden):
    network = randomised(MaskedMLP(D, 2, 3, hidden))
    x = torch.randn(D, dtype=torch.float64)
    context = torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda c: network.at(x, c), context)
    assert (jacobian != 0).all()


def test_context_of_fewer_batch_dimensions_is_broadcast():
    network = randomised(MaskedMLP(3, 2, 2))
    x, context = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(network.at(x, context), network.at(x, context.expand(4, 5, 2)))


def test_context_of_more_batch_dimensions_and_empty_batches():
    network = randomised(MaskedMLP(3, 2, 2))
    x, context = torch.randn(3, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(network.at(x, context), network.at(x.expand(4, 5, 3), context))
    assert network.at(x.new_zeros(0, 3), context.new_zeros(0, 2)).shape == (0, 3, 2)


@pytest.mark.parametrize("c", [0, 2])
def test_a_context_that_is_missing_or_too_much_is_refused(c):
    with pytest.raises(ValueError, match=f"context_dim={c}"):
        MaskedMLP(3, 2, c).at(torch.zeros(3), None if c else torch.zeros(2))


@pytest.mark.parametrize(("D", "context"), [(2, 0), (5, 0), (1, 1), (2, 1)])
def test_no_hidden_unit_is_a_constant(D, context):
    network = MaskedMLP(D, 1, context, hidden_dims=(8, 8))
    for weight, _ in network.layers(torch.ones_like(network.weights))[:-1]:
        assert weight.any(1).all()


@pytest.mark.parametrize("network", [MaskedMLP(6, 2, hidden_dims=(300, 300)), ColumnMLP(5, 3, (300, 300))])
def test_a_steep_start_has_weights_of_variance_2_8_over_the_number_of_inputs(network):
    """At least 900 uniform weights: the standard error of their variance is 3 %."""
    torch.manual_seed(3)
    network.start_steep()
    assert not network(torch.randn(network.widths[0], 5)).any()
    for weight, _ in network.layers()[:-1]:
        kept = weight != 0
        scaled = (weight * kept.sum(1, keepdim=True).sqrt())[kept]
        assert abs(scaled.square().mean() / 2.8 - 1) < 0.15


def test_a_network_that_has_learnt_does_not_start_again():
    network = randomised(MaskedMLP(3, 2))
    before = network.weights.detach().clone()
    network.start_steep()
    assert torch.equal(network.weights, before)


def test_networks_start_at_zero_where_asked():
    x = torch.randn(5, 3)
    assert MaskedMLP(3, 2, 2).at(x, torch.randn(5, 2)).count_nonzero() == 0
    assert MLP(3, 2, zero_init=True)(x).count_nonzero() == 0
    assert MLP(3, 2)(x).count_nonzero() > 0


def test_masks_are_saved_and_follow_the_module():
    state = MaskedMLP(3, 2, order=torch.tensor([1, 2, 0])).state_dict()
    other = MaskedMLP(3, 2)
    other.load_state_dict(state)
    randomised(other)
    assert torch.equal(influence(other, 3), torch.tensor([1, 2, 0])[:, None] > torch.tensor([1, 2, 0])[None, :])


def test_activation_is_used_and_pickled():
    torch.manual_seed(0)
    network = MLP(2, 1, (8,), activation=torch.tanh)
    x = torch.randn(4, 2)
    first, last = network.layers
    torch.testing.assert_close(network(x), last(torch.tanh(first(x))))
    torch.testing.assert_close(pickle.loads(pickle.dumps(network))(x), network(x))


@pytest.mark.parametrize("hidden", [(), (8,), (8, 5)])
def test_network_of_columns_is_the_perceptron_of_its_layers_and_its_pullback_the_gradient(hidden):
    torch.manual_seed(0)
    network = randomised(ColumnMLP(3, 4, hidden))
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    h = x.T
    for i, (weight, bias) in enumerate(network.layers()):
        h = torch.nn.functional.linear(torch.nn.functional.silu(h) if i else h, weight, bias[:, 0])
    torch.testing.assert_close(network(x), h.T)
    gradient = torch.randn(4, 6, dtype=torch.float64)
    expected = torch.autograd.grad(h.T, [x, network.weights], gradient)
    with torch.no_grad():
        output, saved = network.evaluate(x, network.weights)
        torch.testing.assert_close(output, h.T)
        torch.testing.assert_close(network.pullback(saved, gradient), expected)


def test_weights_of_layers_make_the_parameter_again():
    network = randomised(ColumnMLP(3, 4, (5,)))
    torch.testing.assert_close(network.pack(network.layers()), network.weights, rtol=0, atol=0)


def test_masked_weights_have_no_gradient_in_either_way():
    network = randomised(MaskedMLP(4, 2))
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        output, saved = network.evaluate(x, network.weights)
        found = network.pullback(saved, 2 * output, to_input=False)[1]
    (expected,) = torch.autograd.grad(network(x).square().sum(), network.weights)
    torch.testing.assert_close(found, expected)
    assert not expected[network.mask == 0].any() and expected.any()


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: MLP(0, 2), "in_dim"),
        (lambda: MLP(2, 0), "out_dim"),
        (lambda: MLP(2, 2, (8, 0)), "hidden_dims"),
        (lambda: MLP(2, 2, 64), "hidden_dims"),
        (lambda: MaskedMLP(0, 2), "input_dim"),
        (lambda: MaskedMLP(3, 0), "out_per_dim"),
        (lambda: MaskedMLP(3, 2, -1), "context_dim"),
        (lambda: MaskedMLP(3, 2, order=torch.tensor([0, 1, 1])), "order"),
        (lambda: MaskedMLP(3, 2, order=torch.tensor([0, 1])), "order"),
    ],
)
def test_a_bad_argument_is_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()


def test_a_graph_decides_what_an_output_sees():
    """The Jacobian has the pattern of the graph, with hidden layers narrower than the number of different sets of parents."""
    adjacency = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]) > 0
    for hidden in ((), (2,), (16, 3)):
        network = randomised(MaskedMLP(5, 2, 1, hidden, adjacency=adjacency))
        jacobian = torch.autograd.functional.jacobian(lambda x: network.at(x, x.new_ones(1)), torch.randn(5).double())  # noqa: B023
        assert torch.equal((jacobian != 0).any(1), adjacency)
    permuted = torch.tensor([3, 0, 2, 1])
    full = permuted[:, None] > permuted[None, :]
    torch.manual_seed(0)
    first = MaskedMLP(4, 2, order=permuted)
    torch.manual_seed(0)
    second = MaskedMLP(4, 2, adjacency=full)
    assert torch.equal(first.mask, second.mask) and torch.equal(first.weights, second.weights)


def test_graphs_that_are_none_are_refused():
    cycle = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) > 0
    with pytest.raises(ValueError, match=r"a cycle among the variables \[0, 1, 2\]"):
        MaskedMLP(3, 1, adjacency=cycle)
    with pytest.raises(ValueError, match=r"a cycle among the variables \[1\]"):
        MaskedMLP(2, 1, adjacency=torch.tensor([[0, 0], [0, 1]]) > 0)
    with pytest.raises(ValueError, match=r"booleans of shape \(2, 2\), got torch.int64"):
        MaskedMLP(2, 1, adjacency=torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="order and adjacency were both given"):
        MaskedMLP(2, 1, order=[0, 1], adjacency=torch.zeros(2, 2) > 0)
