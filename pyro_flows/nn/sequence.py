"""Encoder of sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arguments import check_positive
from .recorded import Recorded
from .sets import without_padding


class GRUEncoder(Recorded, nn.Module):
    r"""Gated recurrent network that reads a sequence, in both directions if asked; its last states, made linear, are the output.

    Args:
        in_dim: Size of an element.
        out_dim: Size of the output.
        hidden_dim: Size of the state.
        num_layers: Number of layers.
        bidirectional: Read from both ends.

    Raises:
        ValueError: If a size is not a positive integer.

    References:
        Cho et al. (2014), *Learning phrase representations using RNN encoder-decoder*, https://arxiv.org/abs/1406.1078

    Example:
        >>> GRUEncoder(3, 2)(torch.zeros(5, 20, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 64, num_layers: int = 1, *, bidirectional: bool = True) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, num_layers=num_layers)
        self.recurrent = nn.GRU(in_dim, hidden_dim, num_layers, batch_first=True, bidirectional=bidirectional)
        self.last = nn.Linear(hidden_dim * (2 if bidirectional else 1), out_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map sequences ``(*, n, in_dim)`` to ``(*, out_dim)``; ``mask`` ``(*, n)`` is True where the sequence has not ended.

        Raises:
            ValueError: If the mask does not fit, is False before it is True, or leaves a sequence empty.
        """
        x, mask = without_padding(x, mask)
        flat, ended = x.reshape(-1, *x.shape[-2:]), ~mask.reshape(-1, mask.shape[-1])
        if bool((ended[:, :-1] & ~ended[:, 1:]).any()):
            raise ValueError("mask must be True up to the end of a sequence and False after it; fill gaps inside by MissingValues")
        lengths = (~ended).sum(-1)
        if not bool((lengths > 0).all()):
            raise ValueError("mask leaves a sequence without an element; leave such sequences out")
        packed = nn.utils.rnn.pack_padded_sequence(flat, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states = self.recurrent(packed)[1]
        top = states[-2:] if self.recurrent.bidirectional else states[-1:]
        return self.last(torch.cat(list(top), -1)).reshape(*x.shape[:-2], -1)
