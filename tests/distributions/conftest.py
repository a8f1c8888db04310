"""Validation is on in these tests: the first ``torch.compile`` of a process turns it off for all distributions."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest


@pytest.fixture(autouse=True)
def _validation() -> Iterator[None]:
    with pyro.validation_enabled():
        yield
