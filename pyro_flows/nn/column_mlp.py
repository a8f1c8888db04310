"""Perceptron of columns, with one parameter and a gradient in closed form: the conditioner of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import check_hidden_dims, check_positive
from .recorded import Recorded

#: Standard deviation of the weights of a unit of one input: SiLU(a) has the second moment 1 / 2.8 for a normal a.
_STEEP = 2.8**0.5

_silu = torch.ops.aten.silu.out
_silu_backward = torch.ops.aten.silu_backward.grad_input


class ColumnMLP(Recorded, nn.Module):
    r"""Perceptron :math:`W_n\,\sigma(\dots\sigma(W_1 x + b_1)) + b_n` of points that are columns, with :math:`\sigma` the SiLU.

    All weights and biases lie in one parameter :attr:`weights`: an optimiser, Pyro's parameter store and a cache then handle one
    tensor in place of many, which takes a good part of a step where batches are small. :meth:`layers` cuts it into matrices, and
    :meth:`pack` puts matrices together, such as scales of a prior. Points as columns leave what comes out contiguous for each
    output. The last layer starts at zero, the others as those of ``torch.nn.Linear``; see :meth:`start_steep`.

    Args:
        in_dim: Size of the input.
        out_dim: Size of the output.
        hidden_dims: Widths of the hidden layers; may be empty.
        masks: Which weights are kept, a boolean matrix ``(out, in)`` for each layer; all of them if None.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> network = ColumnMLP(3, 2, (16,))
        >>> network(torch.ones(3, 5)).shape, network.weights.shape
        (torch.Size([2, 5]), torch.Size([98]))
        >>> [tuple(weight.shape) for weight, bias in network.layers()]
        [(16, 3), (2, 16)]
    """

    weights: nn.Parameter
    mask: Tensor | None

    def __init__(
        self, in_dim: int, out_dim: int, hidden_dims: Sequence[int] = (64, 64), *, masks: Sequence[Tensor] | None = None
    ) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim)
        widths = (in_dim, *check_hidden_dims(hidden_dims), out_dim)
        linear = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        for parameter in linear[-1].parameters():
            nn.init.zeros_(parameter)
        self.widths = widths
        self._shapes = [(out, inner + 1) for inner, out in zip(widths, widths[1:], strict=False)]
        self._sizes = [a * b for a, b in self._shapes]
        self.weights = nn.Parameter(self.pack([(layer.weight, layer.bias) for layer in linear]).detach())
        mask = None
        if masks is not None:
            kept = [each.to(self.weights.dtype) for each in masks]
            mask = self.pack([(each, torch.ones_like(each[:, 0])) for each in kept])
        self.register_buffer("mask", mask)

    def extra_repr(self) -> str:
        return " → ".join(map(str, self.widths)) + (", masked" if self.mask is not None else "")

    @torch.no_grad()
    def start_steep(self) -> None:
        """Draw the hidden layers anew, ones that bend more, if the last one is zero, so that the map stays what it is.

        Weights and biases of a unit with n inputs become uniform with the variance 2.8 / n, by which the values before each
        activation keep the variance 1. Those of ``torch.nn.Linear``, with a ninth of it, leave the SiLU nearly linear: good for a
        guide, as most posteriors are smooth, while a density with edges is learnt several times as fast from the steep start.
        """
        matrices = self._cut(self.weights.detach())
        if not bool(matrices[-1].any()):
            kept = self._cut(self.masked(torch.ones_like(self.weights)))
            for matrix, mask in zip(matrices[:-1], kept, strict=False):
                inputs = (mask.sum(1, keepdim=True) - 1).clamp_min(1)  # without the bias
                matrix.copy_((2 * torch.rand_like(matrix) - 1) * _STEEP * (3 / inputs).sqrt())

    @staticmethod
    def pack(layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """One vector of the weights ``(out, in)`` and biases ``(out,)`` or ``(out, 1)`` of all layers, biases as last columns.

        Example:
            >>> ColumnMLP.pack([(torch.ones(2, 2), torch.zeros(2))])
            tensor([1., 1., 0., 1., 1., 0.])
        """
        return torch.cat([torch.cat([weight, bias.reshape(-1, 1)], 1).reshape(-1) for weight, bias in layers])

    def masked(self, weights: Tensor) -> Tensor:
        """Weights, zero where they are masked."""
        return weights if self.mask is None else weights * self.mask

    def layers(self, weights: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Weight ``(out, in)`` and bias ``(out, 1)`` of each layer, masked, of the parameter or of another such vector."""
        matrices = self._cut(self.masked(self.weights if weights is None else weights))
        return [(matrix[:, :-1], matrix[:, -1:]) for matrix in matrices]

    def _cut(self, masked: Tensor) -> list[Tensor]:
        """A matrix ``(out, in + 1)`` for each layer, whose last column is the bias."""
        return [part.view(shape) for part, shape in zip(torch.split_with_sizes(masked, self._sizes), self._shapes, strict=True)]

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Map ``(in_dim, N)`` to ``(out_dim, N)``, with the parameter or with another such vector in its place."""
        for i, (weight, bias) in enumerate(self.layers(weights)):
            x = torch.addmm(bias, weight, F.silu(x) if i else x)
        return x

    def given(self, context: Tensor | None, weights: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The map of the first inputs for given others, for repeated use: weights are masked and the others taken in once.

        Args:
            context: The last inputs ``(C, N)`` or ``(C, 1)``, or None if there are none.
            weights: As for :meth:`forward`.
        """
        (first, bias), *rest = self.layers(weights)
        if context is not None:
            first, of_context = first.split([first.shape[1] - len(context), len(context)], 1)
            bias = torch.addmm(bias, of_context, context)

        def network(x: Tensor) -> Tensor:
            h = torch.addmm(bias, first, x)
            for weight, bias_ in rest:
                h = torch.addmm(bias_, weight, F.silu(h))
            return h

        return network

    # The same without autograd, and the way back

    def evaluate(self, x: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Output, and what :meth:`pullback` needs of the way there; ``weights`` as for :meth:`forward`."""
        matrices = self._cut(self.masked(weights))
        # A row of ones under the values of a layer takes the biases into the product of matrices, on the way back as well.
        values = torch.cat([x, x.new_ones(1, x.shape[1])])
        saved = [*matrices, values]
        for i, matrix in enumerate(matrices):
            if i:
                values = x.new_empty(x.shape[0] + 1, x.shape[1])
                _silu(x, out=values[:-1])
                values[-1:].fill_(1.0)
                saved += (x, values)
            x = torch.mm(matrix, values)
        return x, saved

    def pullback(
        self, saved: Sequence[Tensor], gradient: Tensor, *, to_input: bool = True, to_weights: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of input and weights.

        Args:
            saved: What :meth:`evaluate` kept.
            gradient: Gradient of the output, ``(out_dim, N)``.
            to_input: Whether that of the input is wanted.
            to_weights: Whether that of the weights is.
        """
        depth = len(self._sizes)
        matrices, rest, found = saved[:depth], saved[depth:], []
        for i in range(depth - 1, -1, -1):
            if to_weights:
                found.append(_outer(gradient, rest[2 * i]))
            if i:
                gradient = torch.mm(matrices[i][:, :-1].t(), gradient)
                _silu_backward(gradient, rest[2 * i - 1], grad_input=gradient)
        of_input = torch.mm(matrices[0][:, :-1].t(), gradient) if to_input else None
        if not to_weights:
            return of_input, None
        of_weights = torch.cat(found[::-1])
        return of_input, of_weights if self.mask is None else of_weights.mul_(self.mask)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Entries of the product of ``a`` ``(m, N)`` and the transpose of ``b`` ``(n, N)``, row by row."""
    if a.shape[0] >= b.shape[0]:
        return torch.mm(a, b.t()).view(-1)
    return torch.mm(b, a.t()).t().reshape(-1)  # products of few rows by many are slower than the other way round
