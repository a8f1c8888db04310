"""Groups of rows, by the k-means of scipy."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def k_means(rows: Tensor, num_groups: int, seed: int) -> Tensor:
    """The group of each row, by k-means from a start of k-means++. A group may stay empty.

    Args:
        rows: Points ``(N, D)``.
        num_groups: Number of groups.
        seed: Of the start.

    Returns:
        Integers ``(N,)``.

    Example:
        >>> k_means(torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]]), 2, 0).unique().tolist()
        [0, 1]
    """
    from scipy.cluster.vq import kmeans2  # loaded when used: it takes a while

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        _, group = kmeans2(rows.detach().double().cpu().numpy(), num_groups, iter=50, minit="++", seed=seed)
    return torch.as_tensor(group, dtype=torch.long, device=rows.device)
