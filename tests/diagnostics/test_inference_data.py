"""Arviz data: its groups, names and attributes, there and back through a file; nothing heavy loads before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import pyro_flows.diagnostics.arviz as bridge
from pyro_flows.diagnostics import from_groups, summary, to_inference_data, to_netcdf

SIZE = 50
SCHOOLS = ["A", "B", "C"]


def stats(size: int = SIZE) -> dict[str, torch.Tensor]:
    return {"log_p": torch.randn(size), "log_q": torch.randn(size), "log_weight": torch.randn(size).double()}


def schools(**kwargs):
    options = {
        "log_likelihood": {"y": torch.randn(SIZE, 3)},
        "posterior_predictive": {"y": torch.randn(SIZE, 3)},
        "observed_data": {"y": torch.tensor([1.0, 2.0, 3.0])},
        "attrs": {"flow": "nsf"},
        "dims": {"theta": ["school"], "y": ["school"]},
        "coords": {"school": SCHOOLS},
    } | kwargs
    return to_inference_data({"mu": torch.randn(SIZE), "theta": torch.randn(SIZE, 3)}, **stats(), **options)


def test_groups_hold_one_chain_with_named_dimensions():
    data = schools()
    assert dict(data["posterior"]["theta"].sizes) == {"chain": 1, "draw": SIZE, "school": 3}
    assert dict(data["posterior"]["mu"].sizes) == {"chain": 1, "draw": SIZE}
    assert list(data["posterior"]["theta"].coords["school"].values) == SCHOOLS
    for group in ("log_likelihood", "posterior_predictive"):
        assert dict(data[group]["y"].sizes) == {"chain": 1, "draw": SIZE, "school": 3}
    assert dict(data["observed_data"]["y"].sizes) == {"school": 3}
    assert set(data["sample_stats"].data_vars) == {"log_p", "log_q", "log_weight"}


def test_values_survive_a_file(tmp_path):
    arviz = bridge.load()
    data = schools(attrs={"flow": "nsf", "starts": {"plain": -31.2}, "seed": 3, "quick": False, "none": None, "lr": 1e-3})
    path = to_netcdf(data, tmp_path / "posterior.nc")
    back = arviz.from_netcdf(str(path), engine="h5netcdf")
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "observed_data"):
        for name, value in data[group].data_vars.items():
            assert np.array_equal(back[group][name].values, value.values)
            assert back[group][name].dims == value.dims
    attrs = back["posterior"].attrs
    assert (attrs["flow"], attrs["seed"], attrs["lr"]) == ("nsf", 3, 1e-3)
    assert json.loads(attrs["starts"]) == {"plain": -31.2}
    assert (attrs["quick"], attrs["none"]) == ("false", "null")


@pytest.mark.parametrize(
    "value",
    [
        *(True, None, 2**70, float("nan"), float("inf"), "", "größer", [1, 2], {"a": float("nan")}, {1: (2, 3)}),
        *(torch.tensor(3), np.float32(2.5), np.arange(3), torch.float32, ValueError("x")),
    ],
)
def test_any_attribute_survives_a_file(value, tmp_path):
    data = to_inference_data({"x": torch.zeros(SIZE)}, **stats(), attrs={"value": value})
    path = to_netcdf(data, tmp_path / "x.nc")
    back = bridge.load().from_netcdf(str(path), engine="h5netcdf")["posterior"].attrs["value"]
    assert isinstance(back, (str, int, float, np.generic))
    if isinstance(value, dict):
        json.loads(back, parse_constant=pytest.fail)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_any_kind_of_number_survives_a_file(dtype, tmp_path):
    values = torch.arange(SIZE).remainder(2).to(dtype)
    data = to_inference_data({"x": values}, **stats())
    back = bridge.load().from_netcdf(str(to_netcdf(data, tmp_path / "x.nc")), engine="h5netcdf")
    assert np.array_equal(back["posterior"]["x"].values[0].astype(float), values.double().numpy())


def test_pointwise_log_likelihood_without_event_dimensions_keeps_the_plate_name():
    data = to_inference_data(
        {"x": torch.zeros(SIZE)},
        **stats(),
        log_likelihood={"y": torch.zeros(SIZE, 3)},
        observed_data={"y": torch.zeros(3, 2)},
        dims={"y": ["school", "part"]},
    )
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert data["observed_data"]["y"].dims[0] == "school"


def test_groups_that_are_not_given_are_left_out():
    data = to_inference_data({"x": torch.zeros(SIZE)}, **stats())
    assert "log_likelihood" not in data and "observed_data" not in data


@pytest.mark.parametrize(
    ("posterior", "kwargs", "name"),
    [
        ({}, {}, "at least one site"),
        ({"x": torch.zeros(SIZE + 1)}, {}, "number of draws"),
        ({"x": torch.tensor(1.0)}, {}, "shape"),
        (
            {"x": torch.zeros(SIZE)},
            {"log_likelihood": {"y": torch.zeros(3)}, "posterior_predictive": {"y": torch.zeros(SIZE)}},
            "draws",
        ),
        ({"a/x": torch.zeros(SIZE)}, {}, "'/'"),
        ({"x": torch.zeros(SIZE, 2)}, {"dims": {"x": ["x"]}}, "name of a site"),
    ],
)
def test_wrong_data_is_refused(posterior, kwargs, name):
    with pytest.raises(ValueError, match=name):
        to_inference_data(posterior, **stats(), **kwargs)


def test_summary_shows_no_diagnostics_of_chains():
    table = summary(schools(), var_names=["mu", "theta"])
    assert {"mean", "sd"} <= set(table.columns)
    assert not [name for name in table.columns if "hat" in name or "ess" in name or "mcse" in name]
    assert list(table.index) == ["mu", *(f"theta[{school}]" for school in SCHOOLS)]


def test_empty_groups_are_dropped():
    data = from_groups({"posterior": {"x": np.zeros((1, 5))}, "observed_data": {}})
    assert "observed_data" not in data


def test_only_the_announcement_of_arviz_is_silenced(monkeypatch):
    def importing(text):
        def fake(name, *args, **kwargs):
            warnings.warn(text, FutureWarning, stacklevel=2)
            return original(name, *args, **kwargs)

        return fake

    original = __import__
    monkeypatch.setattr("builtins.__import__", importing("\nArviZ is undergoing a major refactor to improve flexibility"))
    bridge.load.__wrapped__()
    monkeypatch.setattr("builtins.__import__", importing("something else"))
    with pytest.warns(FutureWarning, match="something else"):
        bridge.load.__wrapped__()


def test_arviz_and_matplotlib_load_when_first_used():
    code = (
        "import sys, pyro_flows.diagnostics; print([n for n in ('arviz', 'matplotlib', 'xarray', 'h5netcdf') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_summary_of_several_chains_has_the_figures_of_chains():
    draws = np.random.default_rng(0).normal(size=(2, 200))
    assert "r_hat" in summary(from_groups({"posterior": {"x": draws}}))
    assert "r_hat" not in summary(from_groups({"posterior": {"x": draws[:1]}}))
