"""Names of the numbers that a site's value holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def numbered(name: str, shape: Sequence[int]) -> list[str]:
    """Names of the numbers of a site, in the order of its flattened value.

    Example:
        >>> numbered("theta", (2,)), numbered("mu", ())
        (['theta[0]', 'theta[1]'], ['mu'])
    """
    return [f"{name}[{', '.join(map(str, index))}]" if index else name for index in np.ndindex(*shape)]
