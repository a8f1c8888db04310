"""Fuzzing: 200 cases a family in ``make test``, 5,000 in ``make fuzz``; what came is counted and printed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_CASES", "200")),
    deadline=None,
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")

SEEN: dict[str, Counter[str]] = {}


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Counts how a case of this family ended."""
    seen = SEEN.setdefault(request.node.name, Counter())
    return lambda how: seen.update([how])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for family, seen in SEEN.items():
        words = ", ".join(f"{how} {number:,}" for how, number in seen.most_common())
        terminalreporter.write_line(f"fuzz: {family}: {sum(seen.values()):,} cases: {words}")
