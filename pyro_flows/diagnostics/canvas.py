"""A figure that leaves pyplot's state alone, and where it goes."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, of a size in inches, with a canvas of its own, which notebooks show without pyplot.

    Example:
        >>> new_figure(4.0, 3.0)._repr_png_()[1:4]
        b'PNG'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def plain(text: str) -> str:
    """A text that matplotlib sets as it is, without mathematics between dollar signs.

    Example:
        >>> len(plain("a$b"))
        4
    """
    return text.replace("$", r"\$")


def saved(figure: Any, path: str | Path | None) -> Any:
    """The figure, written to a path if there is one.

    Example:
        >>> saved(new_figure(4.0, 3.0), None).axes
        []
    """
    if path is not None:
        figure.savefig(path, dpi=160)
    return figure
