"""Pictures of a posterior and its predictions: marginals before and after reweighting, and data among predictive draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .canvas import new_figure, plain, saved

_INK, _PALE, _DRAWS, _REFERENCE = "#2b2d33", "#73767d", "#2a7f9e", "#d1495b"
#: Observations up to which each is shown by itself, and predictive data sets that are drawn as lines beyond.
_SINGLE, _LINES = 60, 40


def plot_marginals(draws: Tensor, names: Sequence[str], *, weights: Tensor | None = None, path: str | Path | None = None) -> Any:
    """Histograms of numbers, those of the draws filled and those of the reweighted draws as a line.

    Args:
        draws: Draws ``(S, K)``.
        names: Names of the columns.
        weights: Normalised weights ``(S,)``; None for none.
        path: Where to save the picture; None not to.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If shapes do not fit, or there is no column.

    Example:
        >>> len(plot_marginals(torch.randn(100, 2), ["a", "b"]).axes)
        2
    """
    if draws.dim() != 2 or draws.shape[1] != len(names) or not len(names) or len(draws) < 2:
        raise ValueError(f"draws must have shape (S, {len(names)}), a column for each name, got {tuple(draws.shape)}")
    values = draws.detach().double().cpu().numpy()
    mass = None if weights is None else weights.detach().double().cpu().numpy()
    if mass is not None and mass.shape != (len(values),):
        raise ValueError(f"weights must have shape ({len(values)},), got {mass.shape}")
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(max(2.3 * columns, 4.0), 1.9 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, axis in enumerate(axes.flat):
        if i >= len(names):
            axis.set_axis_off()
            continue
        column = values[:, i]
        finite = np.isfinite(column)
        low, high = np.quantile(column[finite], [0.002, 0.998]) if finite.any() else (0.0, 1.0)
        edges = np.linspace(low, high if high > low else low + 1e-9 * (1 + abs(low)), 41)
        axis.hist(column[finite], bins=edges, density=True, color=_DRAWS, alpha=0.55)
        if mass is not None:
            axis.hist(column[finite], bins=edges, density=True, weights=mass[finite], histtype="step", color=_REFERENCE)
        axis.set_title(plain(names[i]), fontsize=9, color=_INK)
        axis.set_yticks([])
        axis.tick_params(labelsize=8, colors=_PALE)
        axis.locator_params(axis="x", nbins=4)
        axis.spines[["top", "right", "left"]].set_visible(False)
    return saved(figure, path)


def plot_predictive(predictive: Tensor, observed: Tensor, *, name: str = "y", path: str | Path | None = None) -> Any:
    """Observations among what was predicted: intervals of each if they are few, else distributions of whole data sets.

    Args:
        predictive: Predictive draws ``(S, N)``.
        observed: The observations ``(N,)``.
        name: What they are.
        path: Where to save the picture; None not to.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If shapes do not fit, or nothing is finite.

    Example:
        >>> plot_predictive(torch.randn(200, 8), torch.randn(8)).axes[0].get_xlabel()
        'observation'
    """
    if predictive.dim() != 2 or observed.dim() != 1 or predictive.shape[1] != len(observed) or not len(observed):
        raise ValueError(
            f"predictive must have shape (S, N) and observed (N,), got {tuple(predictive.shape)}, {tuple(observed.shape)}"
        )
    drawn, y = predictive.detach().double().cpu().numpy(), observed.detach().double().cpu().numpy()
    drawn = np.where(np.isfinite(drawn), drawn, np.nan)
    if not np.isfinite(drawn).any() or not np.isfinite(y).any():
        raise ValueError("predictive and observed must hold finite numbers, got none")
    figure = new_figure(6.4, 3.2)
    axis = figure.subplots()
    if len(y) <= _SINGLE:
        at = np.arange(len(y))
        low, quarter, three, high = np.nanquantile(drawn, [0.05, 0.25, 0.75, 0.95], axis=0)
        axis.vlines(at, low, high, color=_DRAWS, alpha=0.45, linewidth=2, label="90 %")
        axis.vlines(at, quarter, three, color=_DRAWS, linewidth=5, label="50 %")
        axis.plot(at, y, "o", color=_REFERENCE, markersize=4.5, label="observed")
        axis.set_xlabel("observation", color=_INK)
        axis.set_ylabel(plain(name), color=_INK)
    else:
        both = np.concatenate([y[np.isfinite(y)], drawn[:_LINES][np.isfinite(drawn[:_LINES])]])
        low, high = np.quantile(both, [0.002, 0.998])
        whole = np.array_equal(y[np.isfinite(y)], np.round(y[np.isfinite(y)])) and high - low < 60
        edges = np.arange(math.floor(low) - 0.5, math.ceil(high) + 1) if whole else np.linspace(low, high + 1e-12, 41)
        for i, row in enumerate(drawn[:_LINES]):
            row = row[np.isfinite(row)]
            label = "predicted" if i == 0 else None
            axis.hist(row, bins=edges, density=True, histtype="step", color=_DRAWS, alpha=0.25, linewidth=0.8, label=label)
        axis.hist(y[np.isfinite(y)], bins=edges, density=True, histtype="step", color=_REFERENCE, linewidth=1.8, label="observed")
        axis.set_xlabel(plain(name), color=_INK)
        axis.set_yticks([])
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=_PALE)
    return saved(figure, path)
