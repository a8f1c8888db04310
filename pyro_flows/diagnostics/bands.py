"""Picture of tests of uniformity: differences of distribution functions with simultaneous bands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .canvas import new_figure, plain, saved
from .uniformity import LEVEL, Uniformity


def plot_bands(tests: Mapping[str, Uniformity], *, xlabel: str = "rank / S", path: str | Path | None = None) -> Any:
    """Differences of distribution functions from the uniform one, a panel each, with bands that hold 95 % of them as a whole.

    Args:
        tests: Tests, by the title of their panel.
        xlabel: Label of the horizontal axes.
        path: Where to save the picture; None not to.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there are none.

    Example:
        >>> from pyro_flows.diagnostics import uniformity_test
        >>> plot_bands({"x": uniformity_test(torch.arange(1000) % 100, 99)}).axes[0].get_title()
        'x, p = 1'
    """
    if not tests:
        raise ValueError("tests must hold one at least, got none")
    columns = min(4, len(tests))
    rows = math.ceil(len(tests) / columns)
    figure = new_figure(max(3.2 * columns, 4.0), 2.6 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, (name, test) in zip(axes.flat, tests.items(), strict=False):
        axis.fill_between(test.places, test.lower, test.upper, step="mid", color="0.85", label="95 % band")
        axis.step(test.places, test.difference, where="mid", color="tab:red" if test.p_value < LEVEL else "tab:blue")
        axis.axhline(0, color="0.5", linewidth=0.7)
        axis.set_title(f"{plain(name)}, p = {test.p_value:.2g}", fontsize=9)
    for axis in axes.flat[len(tests) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes[:, 0]:
        axis.set_ylabel("ECDF - uniform")
    return saved(figure, path)
