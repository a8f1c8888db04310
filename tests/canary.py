"""An object that shows whether a pickle was run."""

from __future__ import annotations

import os
from typing import Any


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: object) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))
