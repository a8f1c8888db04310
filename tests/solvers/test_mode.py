"""Whether a solver may look at values."""

from __future__ import annotations

import pytest
import torch

from pyro_flows.solvers import is_eager


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_eager_mode_is_told_from_tracing():
    seen = []

    def look(x):
        seen.append(is_eager())
        return x * 2

    look(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2))
    torch.func.grad(lambda x: look(x).sum())(torch.ones(2))
    torch.jit.trace(look, torch.ones(2), check_trace=False)
    assert seen == [True, False, False, False]


def test_fake_tensors_are_not_eager():
    from torch.fx.experimental.proxy_tensor import make_fx

    seen = []

    def look(x):
        seen.append(is_eager())
        return x * 2

    make_fx(look, tracing_mode="fake")(torch.ones(2))
    assert seen == [False]


def test_compiled_code_is_not_eager():
    def look(x):
        return x * (2 if is_eager() else 3)

    assert torch.compile(look, fullgraph=True, backend="eager")(torch.ones(1)).tolist() == [3.0]
    assert look(torch.ones(1)).tolist() == [2.0]
