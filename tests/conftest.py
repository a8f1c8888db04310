"""What every test runs under: one thread, fixed seeds, an empty parameter store, and options for slow and GPU tests."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: runs with --slow")
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """Seed 0 and an empty parameter store before each test; float32 on the CPU as default, also after it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()
    left = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    if left is not torch.float32:
        pytest.fail(f"the test left {left} as the default dtype")
