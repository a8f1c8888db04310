"""What is registered, as a table."""

from __future__ import annotations

from typing import get_args

from .registry import Event, info, names

_IMAGE = (1, 28, 28)
_DOMAINS = {
    "vector": "real vectors",
    "image": "images",
    "sphere": "unit vectors",
    "torus": "angles, numbers",
    "simplex": "proportions",
}

HEADER = ("flow", "cheap direction", "inverse", "conditional", "domain", "smoothness", "parameters", "paper")


def table(input_dim: int = 8) -> list[tuple[str, ...]]:
    """A row for every registered flow: what it costs, how it inverts, where its values are.

    ``cheap direction``: ``forward`` draws in one pass, ``inverse`` scores in one. ``conditional``: whether it takes a context.
    ``smoothness``: how often the density can be differentiated. ``parameters``: with default options, without a context.

    Args:
        input_dim: Number of variables D at which parameters are counted.

    Returns:
        Rows of :data:`HEADER`.

    Example:
        >>> rows = {row[0]: row for row in table(2)}
        >>> rows["affine"][1:6]
        ('both', 'closed', 'yes', 'real vectors', 'smooth')
    """
    rows: list[tuple[str, ...]] = []
    for name in (name for event in get_args(Event) for name in names(event)):
        entry = info(name)
        of_image = entry.event == "image"
        size = _IMAGE if of_image else input_dim
        flow = entry.factory(size)
        conditional = "yes" if entry.factory(size, 1).context_dim == 1 else "no"
        domain = _DOMAINS[entry.event]
        count = f"{sum(parameter.numel() for parameter in flow.parameters()):,}" + (f" at {_IMAGE}" if of_image else "")
        rows.append((name, entry.cheap, entry.inverse, conditional, domain, entry.smoothness, count, entry.paper))
    return rows
