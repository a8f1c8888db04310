"""Pictures of draws, weights and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .canvas import new_figure, plain, saved

_INK, _PALE, _GRID = "#2b2d33", "#73767d", "#e9eaed"
_DRAWS, _REFERENCE = "#2a7f9e", "#d1495b"
_POINTS = 4000
_CENTRES = 2000


def plot_pairs(
    draw_sets: Mapping[str, tuple[Any, Any]],
    *,
    reference: tuple[Any, Any] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    reference_label: str = "reference",
    path: str | Path | None = None,
) -> Any:
    """Scatter plots of pairs side by side on the same axes, one panel per set of draws.

    Args:
        draw_sets: Draws ``(x, y)``, each ``(S,)``, by the title of their panel. A title's first line is set in bold,
            the lines after it, such as a verdict, under it.
        reference: Draws ``(x, y)`` of the truth; lines around the densest 50 and 90 per cent of them go over every
            panel.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis.
        reference_label: What to call the reference in the legend.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no set of draws, or one is not a pair of as many finite numbers, two at least.

    Example:
        >>> figure = plot_pairs({"noise": (torch.randn(100), torch.randn(100))})
        >>> len(figure.axes)
        1
    """
    if not draw_sets:
        raise ValueError("draw_sets must hold at least one pair of draws, got none")
    pairs = {title: _pair(pair, f"draws of {title!r}") for title, pair in draw_sets.items()}
    truth = None if reference is None else _pair(reference, "reference")
    figure, axes = _figure(4.4 * len(pairs) + 0.5, 4.6, len(pairs))
    limits = _limits([*pairs.values(), *([] if truth is None else [truth])])
    axes[0].set_xlim(limits[0])
    axes[0].set_ylim(limits[1])
    for axis, (title, pair) in zip(axes, pairs.items(), strict=True):
        points = pair[:, :: math.ceil(pair.shape[1] / _POINTS)]
        opacity = float(np.clip(700 / points.shape[1], 0.16, 0.7))
        axis.scatter(*points, s=7, alpha=opacity, linewidths=0, color=_DRAWS, rasterized=True)
        if truth is not None:
            _contours(axis, truth, limits)
        _title(axis, title)
        axis.set_xlabel(plain(xlabel), color=_INK)
    axes[0].set_ylabel(plain(ylabel), color=_INK)
    if truth is not None:
        _legend(axes[-1], reference_label)
    return saved(figure, path)


def plot_weights(log_weights: Any, path: str | Path | None = None) -> Any:
    """Histogram of log importance weights: a spike where the guide is right, a right tail where it is thin.

    Args:
        log_weights: Log-weights in nats, ``(S,)``; those that are not finite are counted in the title.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If none is finite.

    Example:
        >>> plot_weights(torch.randn(100)).axes[0].get_ylabel()
        'draws'
    """
    values = _numbers(log_weights)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ValueError("log_weights must hold at least one finite value, got none")
    centred = finite - finite.mean()
    figure, (axis,) = _figure(5.6, 3.4)
    reach = max(float(np.abs(centred).max()), 0.01) * 1.03
    axis.hist(centred, bins=np.linspace(-reach, reach, 82), color=_DRAWS, alpha=0.85, log=True)
    axis.set_xlim(-reach, reach)
    axis.axvline(0, color=_REFERENCE, linewidth=1.2)
    axis.set_xlabel("log-weight minus its mean, nats", color=_INK)
    axis.set_ylabel("draws", color=_INK)
    left_out = values.size - finite.size
    note = f", {left_out:,} of weight zero left out" if left_out else ""
    _title(axis, f"Log importance weights\nsd {centred.std():.3g} nats{note}")
    return saved(figure, path)


def plot_losses(losses: Sequence[float] | Tensor, path: str | Path | None = None) -> Any:
    """The negative ELBO over the steps, each step a dot and a running median through them.

    Args:
        losses: Negative ELBO in nats of every step; steps where it is not finite are left out.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If none is finite.

    Example:
        >>> plot_losses([3.0, 2.0, 1.0]).axes[0].get_xlabel()
        'step'
    """
    values = _numbers(losses)
    steps = np.arange(1, values.size + 1)[np.isfinite(values)]
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("losses must hold at least one finite value, got none")
    figure, (axis,) = _figure(5.6, 3.4)
    axis.plot(steps, values, ".", markersize=2.5, alpha=0.35, color=_DRAWS, markeredgewidth=0, rasterized=True)
    window = max(1, values.size // 60)
    starts = range(0, values.size - window + 1, window)
    medians = [float(np.median(values[i : i + window])) for i in starts]
    axis.plot([float(steps[i : i + window].mean()) for i in starts], medians, color=_REFERENCE, linewidth=1.6)
    low, high = _window(values)
    axis.set_ylim(low, high)
    axis.set_xlim(0, max(steps[-1], 2))
    axis.set_xlabel("step", color=_INK)
    axis.set_ylabel("negative ELBO, nats", color=_INK)
    _title(axis, f"Training\nnow {medians[-1]:.2f} nats")
    return saved(figure, path)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure with panels side by side, on the same axes."""
    figure = new_figure(width, height)
    axes = figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_PALE)
        axis.tick_params(colors=_PALE, labelcolor=_INK, labelsize=9)
        axis.grid(color=_GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, axes


def _title(axis: Any, text: str) -> None:
    head, _, rest = text.partition("\n")
    lines = rest.count("\n") + 1 if rest else 0
    axis.set_title(plain(head), fontsize=12, fontweight="bold", color=_INK, loc="left", pad=8 + 14 * lines)
    if rest:
        axis.annotate(plain(rest), (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", fontsize=9.5, color=_PALE)


def _legend(axis: Any, label: str) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_REFERENCE, linewidth=width) for width in (1.8, 1.0)]
    axis.legend(lines, [f"50 % of the {label}", "90 %"], loc="lower right", fontsize=8.5, frameon=True, framealpha=0.85,
                edgecolor="none", labelcolor=_INK)  # fmt: skip


def _numbers(values: Any) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values must have shape (S,), got {array.shape}")
    return array


def _pair(pair: tuple[Any, Any], name: str) -> np.ndarray:
    x, y = (_numbers(values) for values in pair)
    if x.shape != y.shape or x.size < 2:
        raise ValueError(f"{name} must be two arrays of one length, two at least, got {x.shape} and {y.shape}")
    both = np.stack([x, y])
    finite = np.isfinite(both).all(0)
    if not finite.all():
        raise ValueError(f"{name} must be finite, got {int((~finite).sum())} of {x.size} that are not")
    return both


def _limits(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Ranges ``(2, 2)`` that hold nearly all of every set, one set's stray draws aside."""
    edges = np.stack([np.quantile(pair, [0.004, 0.996], axis=1) for pair in pairs])
    low, high = edges[:, 0].min(0), edges[:, 1].max(0)
    margin = 0.05 * (high - low) + 1e-9 * (np.abs(high) + 1)
    return np.stack([low - margin, high + margin], axis=1)


def _window(values: np.ndarray) -> tuple[float, float]:
    """From the lowest loss to a little above where the second half of training went; the steep start may leave "
    "the top.
    """
    low = float(values.min())
    later = float(np.quantile(values[values.size // 2 :], 0.99))
    high = min(float(values.max()), low + 4 * (later - low)) if later > low else float(values.max())
    margin = 0.05 * (high - low) + 1e-9 * (abs(high) + 1)
    return low - margin, high + margin


def _contours(axis: Any, pair: np.ndarray, limits: np.ndarray) -> None:
    """Lines around the densest 50 and 90 per cent of the draws."""
    centres = pair[:, :: math.ceil(pair.shape[1] / _CENTRES)]
    spread = centres.std(1, keepdims=True)
    if not spread.min() > 0:
        return
    x, y = np.meshgrid(*(np.linspace(low, high, 140) for low, high in limits))
    grid = np.stack([x.ravel(), y.ravel()])
    at_draws, at_grid = _adaptive_density(centres / spread, centres / spread, grid / spread)
    levels = np.unique(np.quantile(at_draws, [0.1, 0.5]))
    heights = at_grid.reshape(x.shape)
    axis.contour(x, y, heights, levels=levels, colors="white", linewidths=[3.0, 3.6][-len(levels) :], alpha=0.7)
    axis.contour(x, y, heights, levels=levels, colors=_REFERENCE, linewidths=[1.0, 1.8][-len(levels) :])


def _adaptive_density(centres: np.ndarray, *places: np.ndarray) -> list[np.ndarray]:
    """Abramson's kernel density, narrow where draws are dense: one width for all would blur the neck of a funnel."""
    count = centres.shape[1]
    width = np.full(count, 0.8 * count ** (-1 / 6))
    pilot = _kernel_sum(centres, width, centres)
    width = width * np.clip(np.sqrt(np.exp(np.log(pilot).mean()) / pilot), 0.2, 4.0)
    return [_kernel_sum(centres, width, place) for place in places]


def _kernel_sum(centres: np.ndarray, width: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Gaussian kernels of their own widths at the centres ``(2, N)``, summed at the places ``(2, M)``."""
    chunks = np.array_split(places, math.ceil(places.shape[1] / 2000), axis=1)
    return np.concatenate([
        (np.exp(-0.5 * ((chunk[:, :, None] - centres[:, None, :]) ** 2).sum(0) / width**2) / width**2).mean(1)
        for chunk in chunks
    ])  # fmt: skip
