"""Pictures of draws, weights and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

_INK, _FLOW, _REFERENCE = "#222222", "#1f6f8b", "#d1495b"


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=_INK, labelsize=9)
    return figure, axes


def _numbers(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _save(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def plot_pairs(
    draw_sets: Mapping[str, tuple[Any, Any]],
    *,
    reference: tuple[Any, Any] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    path: str | Path | None = None,
) -> Any:
    """Scatter plots of pairs side by side on the same axes, one panel per set of draws.

    Args:
        draw_sets: Draws ``(x, y)``, each ``(S,)``, by the title of their panel.
        reference: Draws ``(x, y)`` of the truth, whose density is drawn as contours over every panel.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no set of draws.

    Example:
        >>> figure = plot_pairs({"noise": (torch.randn(100), torch.randn(100))})
        >>> len(figure.axes)
        1
    """
    if not draw_sets:
        raise ValueError("draw_sets must hold at least one pair of draws, got none")
    figure, axes = _figure(4.6 * len(draw_sets) + 0.4, 4.6, len(draw_sets))
    for axis, (title, (x, y)) in zip(axes, draw_sets.items(), strict=True):
        axis.scatter(_numbers(x), _numbers(y), s=5, alpha=0.22, linewidths=0, color=_FLOW, rasterized=True)
        if reference is not None:
            _contours(axis, _numbers(reference[0]), _numbers(reference[1]))
        axis.set_title(title, fontsize=11, color=_INK)
        axis.set_xlabel(xlabel, color=_INK)
    axes[0].set_ylabel(ylabel, color=_INK)
    everything = [*draw_sets.values(), *([reference] if reference is not None else [])]
    for set_limits, i in ((axes[0].set_xlim, 0), (axes[0].set_ylim, 1)):
        values = np.concatenate([_numbers(pair[i]) for pair in everything])
        low, high = np.quantile(values, [0.001, 0.999])
        margin = 0.05 * (high - low) + 1e-12
        set_limits(low - margin, high + margin)
    return _save(figure, path)


def _contours(axis: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Lines around the densest 50 and 90 per cent of the draws."""
    from scipy.stats import gaussian_kde

    keep = slice(None, None, max(1, len(x) // 4000))
    density = gaussian_kde(np.stack([x[keep], y[keep]]))
    levels = np.quantile(density(np.stack([x[keep], y[keep]])), [0.1, 0.5])
    grid_x, grid_y = np.meshgrid(*(np.linspace(*np.quantile(v, [0.0005, 0.9995]), 80) for v in (x, y)))
    heights = density(np.stack([grid_x.ravel(), grid_y.ravel()])).reshape(grid_x.shape)
    axis.contour(grid_x, grid_y, heights, levels=np.unique(levels), colors=_REFERENCE, linewidths=1.2)


def plot_weights(log_weights: Any, path: str | Path | None = None) -> Any:
    """Histogram of log importance weights around their mean: narrow where the guide is right, with a right tail where it is too thin.

    Args:
        log_weights: Log-weights in nats, ``(S,)``.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Example:
        >>> plot_weights(torch.randn(100)).axes[0].get_ylabel()
        'draws'
    """
    figure, (axis,) = _figure(5.0, 3.2)
    values = _numbers(log_weights)
    values = values[np.isfinite(values)]
    axis.hist(values - values.mean(), bins=60, color=_FLOW, log=True)
    axis.set_xlabel("log-weight minus its mean, nats", color=_INK)
    axis.set_ylabel("draws", color=_INK)
    return _save(figure, path)


def plot_losses(losses: Sequence[float], path: str | Path | None = None) -> Any:
    """The negative ELBO over the steps, each step a dot and a running median through them.

    Args:
        losses: Negative ELBO in nats of every step.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there are no losses.

    Example:
        >>> plot_losses([3.0, 2.0, 1.0]).axes[0].get_xlabel()
        'step'
    """
    values = _numbers(losses)
    if values.size == 0:
        raise ValueError("losses must hold at least one value, got none")
    figure, (axis,) = _figure(5.5, 3.2)
    steps = np.arange(1, len(values) + 1)
    axis.plot(steps, values, ".", ms=2, alpha=0.3, color=_FLOW)
    window = max(1, len(values) // 60)
    chunks = range(0, len(values) - window + 1, window)
    axis.plot(
        [i + window / 2 for i in chunks], [np.median(values[i : i + window]) for i in chunks], color=_REFERENCE, lw=1.5
    )
    low, high = values.min(), np.quantile(values, 0.98)
    axis.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
    axis.set_xlabel("step", color=_INK)
    axis.set_ylabel("negative ELBO, nats", color=_INK)
    return _save(figure, path)
