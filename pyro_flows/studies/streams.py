"""Seeds for the parts of a study: draws that must be independent must not start from the same one."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *what: object) -> int:
    """A seed of 31 bits for a part of a study.

    Draws of a prior and of a guide from generators of the same seed would be made of the same noise, so that a guide looks right or
    wrong by that alone.

    Example:
        >>> derived_seed(0, "draws") == derived_seed(0, "draws"), derived_seed(0, "draws") == derived_seed(0, "data set", 1)
        (True, False)
    """
    words = "/".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "big") % 2**31
