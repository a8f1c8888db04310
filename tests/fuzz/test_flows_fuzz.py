"""Every registered flow, with whatever shapes, numbers and options: right results, or an error that is meant."""

from __future__ import annotations

import functools
import inspect
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from pyro_flows import flows

#: Flows that solve an equation for every pass are too slow for thousands of cases at their usual size.
SMALL = {
    "cnf": {"hidden_dims": (8,)},
    "residual": {"num_layers": 2, "hidden_dims": (8,)},
    "proximal_residual": {"num_layers": 2},
    "convex_potential": {"num_layers": 1, "hidden_dims": (8,)},
    "umnn": {"num_layers": 2},
}
SCALES = (0.0, 1e-30, 1e-3, 1.0, 30.0, 1e3, 1e10, 1e30)
#: Round trips are asked for where points have ordinary sizes.
ORDINARY = 30.0


@functools.cache
def made(name, dim, context, dtype):
    torch.manual_seed(dim + 10 * context)
    known = inspect.signature(flows.get(name)).parameters
    flow = flows.get(name)(dim, context, **{key: value for key, value in SMALL.get(name, {}).items() if key in known}).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.eval()


@st.composite
def cases(draw):
    name = draw(st.sampled_from(flows.names("vector")))
    dim, context = draw(st.integers(1, 5)), draw(st.integers(0, 2))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    batch = draw(st.lists(st.integers(0, 3), max_size=2))
    scale = draw(st.sampled_from(SCALES))
    spoilt = draw(st.sampled_from([None, None, math.nan, math.inf, -math.inf]))
    return name, dim, context, dtype, batch, scale, spoilt, draw(st.integers(0, 2**31))


@given(case=cases())
def test_passes(case, count):
    name, dim, context, dtype, batch, scale, spoilt, seed = case
    flow = made(name, dim, context, dtype)
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(*batch, dim, dtype=dtype, generator=generator)
    c = torch.randn(*batch, context, dtype=dtype, generator=generator) if context else None
    if spoilt is not None and x.numel():
        x.view(-1)[0] = spoilt
    flow = flow if flow.cheap_direction != "inverse" else flow.inv
    try:
        y, log_det = flow.forward_and_log_det(x, c)
    except ArithmeticError:
        assert spoilt is not None or scale > ORDINARY or flow.inverse_kind == "solved" or flow.eager_only
        return count("ArithmeticError")
    assert y.shape == x.shape and log_det.shape == x.shape[:-1] and y.dtype == log_det.dtype == dtype
    rows = torch.isfinite(x).all(-1)
    if scale > ORDINARY:
        return count("far out")
    assert torch.isfinite(y[rows]).all() and torch.isfinite(log_det[rows]).all()
    try:
        back, minus = flow.inverse_and_log_det(y[rows], None if c is None else c[rows])
    except ArithmeticError:
        return count("ArithmeticError of the inverse")
    tolerance = (2e-2 if dtype is torch.float32 else 1e-4) * (1 + scale)
    assert torch.allclose(back, x[rows], atol=tolerance, rtol=0) and torch.allclose(minus, -log_det[rows], atol=10 * tolerance)
    return count("round trip")


@given(case=cases(), wrong=st.sampled_from(["dimension", "scalar", "context", "integers", "no tensor"]))
def test_wrong_input_is_named(case, wrong, count):
    name, dim, context, dtype, batch, *_ = case
    flow = made(name, dim, context, dtype)
    x = torch.zeros(*batch, dim, dtype=dtype)
    c = torch.zeros(*batch, context, dtype=dtype) if context else None
    if wrong == "context" and not context:
        return  # flows without one leave it to other layers
    if wrong == "dimension":
        x = torch.zeros(*batch, dim + 1, dtype=dtype)
    elif wrong == "scalar":
        x = torch.zeros((), dtype=dtype)
    elif wrong == "context":
        c = torch.zeros(*batch, context + 1, dtype=dtype)
    elif wrong == "integers":
        x = x.long()
    else:
        x = [0.0] * dim
    for way in (flow.forward_and_log_det, flow.inverse_and_log_det):
        with pytest.raises(ValueError):
            way(x, c)
    return count(wrong)


VALUES = [
    *(-1, 0, 1, 2, 3, 10**9, 1.5, math.nan, math.inf, -math.inf, None, True, False),
    *("x", "", (), (0,), (3,), (2.5,), (4, 4), [4], ("a",), torch.ones(2)),
]
HEAVY = ("num", "embedding", "hidden", "degree", "bins", "units", "layers", "factor", "channels", "steps", "components")


@st.composite
def wild_options(draw):
    name = draw(st.sampled_from(flows.names("vector")))
    known = [key for key, each in inspect.signature(flows.get(name)).parameters.items() if each.kind is each.KEYWORD_ONLY]
    chosen = draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else []
    options = {}
    for key in chosen:
        value = draw(st.sampled_from(range(len(VALUES))))
        if isinstance(VALUES[value], int) and VALUES[value] == 10**9 and any(part in key for part in HEAVY):
            value = 0  # so large a network is the user's wish
        options[key] = VALUES[value]
    return (
        name,
        draw(st.sampled_from([-1, 0, 1, 2, 3, 1.5, None, "2", True])),
        draw(st.sampled_from([-1, 0, 1, 0.5, None])),
        options,
    )


@given(case=wild_options())
def test_options_are_refused_or_work(case, count):
    name, dim, context, options = case
    try:
        flow = flows.get(name)(dim, context, **options)
    except ValueError as error:
        assert str(error)
        return count("ValueError")
    flow = flow.inv if flow.cheap_direction == "inverse" else flow
    x = torch.randn(2, dim)
    y, _ = flow.forward_and_log_det(x, torch.zeros(2, context) if context else None)
    assert y.shape == x.shape
    return count("works")
