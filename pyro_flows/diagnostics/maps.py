"""Pictures of densities on the globe and on the torus."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .canvas import new_figure, saved

_PART = 4096


@torch.no_grad()
def plot_globe(
    log_prob: Callable[[Tensor], Tensor],
    *,
    points: Tensor | None = None,
    title: str = "",
    num_cells: int = 180,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    path: str | Path | None = None,
) -> Any:
    """Density on the sphere :math:`S^2` in Mollweide's projection, which keeps areas.

    The last axis points north, the first to longitude zero. Colours are the logarithm of the density times the area, from a
    thousandth of the largest on: zero is the uniform density.

    Args:
        log_prob: Log-density of unit vectors ``(N, 3)``, such as that of a ``FlowDistribution``.
        points: Unit vectors ``(M, 3)`` to be drawn over it.
        title: Title.
        num_cells: Number of cells from pole to pole.
        dtype: Of the unit vectors that ``log_prob`` gets; torch's default if None.
        device: Where it gets them.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If ``num_cells`` is not positive, or ``points`` have another shape.

    Example:
        >>> from pyro_flows.manifolds import UniformSphere
        >>> figure = plot_globe(UniformSphere(3).log_prob, num_cells=10)
        >>> len(figure.axes)
        2
    """
    _check(num_cells, points, 3)
    latitude = (
        torch.arange(num_cells, dtype=dtype or torch.get_default_dtype(), device="cpu") + 0.5
    ) * math.pi / num_cells - math.pi / 2
    longitude = (torch.arange(2 * num_cells, dtype=latitude.dtype, device="cpu") + 0.5) * math.pi / num_cells - math.pi
    ring = latitude.cos()[:, None]
    grid = torch.stack(
        [ring * longitude.cos(), ring * longitude.sin(), latitude.sin()[:, None].expand(-1, 2 * num_cells)], -1
    ).reshape(-1, 3)
    grid = grid / grid.norm(dim=-1, keepdim=True)
    values = torch.cat([log_prob(part.to(device)).cpu() for part in grid.split(_PART)]).reshape(num_cells, -1) + math.log(
        4 * math.pi
    )
    figure = new_figure(9, 5)
    axis = figure.add_subplot(projection="mollweide")
    highest = float(values.nan_to_num(-math.inf).max())
    if not math.isfinite(highest):
        raise ValueError("log_prob must give finite numbers somewhere on the sphere, and gives none")
    mesh = axis.pcolormesh(
        longitude.numpy(),
        latitude.numpy(),
        values.reshape(num_cells, -1).numpy(),
        cmap="viridis",
        vmin=highest - math.log(1000) if highest > 1e-3 else -1.0,
        vmax=highest if highest > 1e-3 else 1.0,
        shading="nearest",
        rasterized=True,
    )
    if points is not None:
        at = points.detach().cpu()
        axis.scatter(torch.atan2(at[:, 1], at[:, 0]), at[:, 2].clamp(-1, 1).asin(), s=1.5, c="white", linewidths=0, alpha=0.6)
    axis.set(xticklabels=[], yticklabels=[])
    axis.grid(color="#e9eaed", linewidth=0.3)
    axis.set_title(title, loc="left", fontweight="bold")
    figure.colorbar(mesh, ax=axis, shrink=0.7, label="log density, uniform = 0")
    return saved(figure, path)


@torch.no_grad()
def plot_torus(
    log_prob: Callable[[Tensor], Tensor],
    *,
    points: Tensor | None = None,
    title: str = "",
    num_cells: int = 200,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    path: str | Path | None = None,
) -> Any:
    r"""Density on the torus, of two angles from :math:`-\pi` to :math:`\pi`.

    Args:
        log_prob: Log-density of angles ``(N, 2)``, such as that of a ``FlowDistribution``.
        points: Angles ``(M, 2)`` to be drawn over it.
        title: Title.
        num_cells: Number of cells of each angle.
        dtype: Of the angles that ``log_prob`` gets; torch's default if None.
        device: Where it gets them.
        path: Where to write the picture; None to write none.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If ``num_cells`` is not positive, or ``points`` have another shape.

    Example:
        >>> from pyro_flows.manifolds import UniformTorus
        >>> len(plot_torus(UniformTorus(2).log_prob, num_cells=10).axes)
        2
    """
    _check(num_cells, points, 2)
    angle = (
        torch.arange(num_cells, dtype=dtype or torch.get_default_dtype(), device="cpu") + 0.5
    ) * 2 * math.pi / num_cells - math.pi
    grid = torch.cartesian_prod(angle, angle)
    values = torch.cat([log_prob(part.to(device)).cpu() for part in grid.split(_PART)]).reshape(num_cells, num_cells).exp()
    figure = new_figure(6, 5)
    axis = figure.subplots()
    image = axis.imshow(values.T.numpy(), origin="lower", extent=(-math.pi, math.pi, -math.pi, math.pi), cmap="viridis", vmin=0)
    if points is not None:
        at = points.detach().cpu()
        axis.scatter(at[:, 0], at[:, 1], s=2, c="white", linewidths=0, alpha=0.6)
    ticks, labels = [-math.pi, 0, math.pi], ["−π", "0", "π"]
    axis.set(xticks=ticks, xticklabels=labels, yticks=ticks, yticklabels=labels, xlabel="first angle", ylabel="second angle")
    axis.set_title(title, loc="left", fontweight="bold")
    figure.colorbar(image, ax=axis, shrink=0.8, label="density")
    return saved(figure, path)


def _check(num_cells: int, points: Tensor | None, dim: int) -> None:
    if not isinstance(num_cells, int) or num_cells < 1:
        raise ValueError(f"num_cells must be a positive integer, got {num_cells!r}")
    if points is not None and (points.dim() != 2 or points.shape[1] != dim):
        raise ValueError(f"points must have shape (M, {dim}), got {tuple(points.shape)}")


def _centres(count: int, length: float, dtype: torch.dtype | None) -> Tensor:
    """Centres of cells of an interval about zero."""
    return (torch.arange(count, dtype=dtype or torch.get_default_dtype(), device="cpu") + 0.5) * (length / count) - length / 2
