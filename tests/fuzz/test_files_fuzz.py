"""Damaged and forged files: an error that names one, or what was saved; nothing is run, and nothing else is written."""

from __future__ import annotations

import json
import pickle
import shutil

import hypothesis.strategies as st
import pytest
import torch
from canary import Canary
from hypothesis import given
from safetensors.torch import load_file, save_file

import pyro_flows as pf
from pyro_flows.infer import CheckpointFolder

POINT = torch.tensor([[0.3, -0.7]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    q = pf.FlowDistribution(pf.flows.get("real_nvp")(2, num_layers=2), pf.distributions.StudentTBase(2))
    return pf.save(q, tmp_path_factory.mktemp("saved") / "flow")


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    path = tmp_path_factory.mktemp("noted") / "run"
    with CheckpointFolder(path) as folder:
        folder.entry("start", {"seed": "0"}).finish({"a": [1.5, None], "b": torch.arange(4.0)})
    return path


damage = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=8)),
    st.tuples(st.just("bytes"), st.binary(max_size=300)),
    st.tuples(st.just("insert"), st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=20))),
    st.tuples(st.just("header"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("pickle"), st.integers(0, 5)),
    st.tuples(st.just("link"), st.just(None)),
)


def damaged(path, what, canary):
    """Damage a file."""
    kind, how = what
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: int(how * (len(data) - 1))]
    elif kind == "flip":
        for place, bit in how:
            data[int(place * (len(data) - 1))] ^= 1 << bit
    elif kind == "bytes":
        data = bytearray(how)
    elif kind == "insert":
        at = int(how[0] * len(data))
        data[at:at] = how[1]
    elif kind == "header":
        data[:8] = how.to_bytes(8, "little")
    elif kind == "pickle":
        data = bytearray(pickle.dumps(Canary(canary), protocol=how))
    else:
        target = path.with_name("elsewhere")
        shutil.move(path, target)
        path.symlink_to(target)
        return
    path.write_bytes(bytes(data))


def loaded(path, count):
    """What is loaded; None where it is refused by an error that names the folder."""
    try:
        found = pf.load(path)
    except ValueError as error:
        count("ValueError")
        assert "copy" in str(error)
        return None
    count("loaded")
    return found


@given(what=damage, name=st.sampled_from(["config.json", "weights.safetensors"]))
def test_a_damaged_folder(what, name, saved, tmp_path_factory, count):
    root = tmp_path_factory.mktemp("case")
    path, canary = shutil.copytree(saved, root / "copy"), root / "canary"
    damaged(path / name, what, canary)
    before = sorted(root.rglob("*"))
    found = loaded(path, count)
    assert found is None or found.log_prob(POINT).shape == (1,)
    assert sorted(root.rglob("*")) == before and not canary.exists()
    shutil.rmtree(root)


@given(what=damage)
def test_a_damaged_checkpoint(what, noted, tmp_path_factory, count):
    root = tmp_path_factory.mktemp("case")
    path, canary = shutil.copytree(noted, root / "copy"), root / "canary"
    damaged(path / "0.safetensors", what, canary)
    with CheckpointFolder(path) as folder:
        try:
            entry = folder.entry("start", {"seed": "0"})
        except ValueError as error:
            count("ValueError")
            assert "0.safetensors" in str(error)
        else:
            count("read")
            assert {"a", "b", "generators"} <= entry.finished.keys()
    assert not canary.exists()
    shutil.rmtree(root)


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2**40), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["class", "args", "options", "tensor", "tuple", "dict", "function", "type", "same", "partial", "x"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)


def places(data, path=()):
    """All places of a description."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@given(new=plain, where=st.floats(0, 1), gone=st.booleans())
def test_a_forged_description(new, where, gone, saved, tmp_path_factory, count):
    root = tmp_path_factory.mktemp("case")
    path = shutil.copytree(saved, root / "copy")
    config = json.loads((path / "config.json").read_text())
    all_places = [place for place in places(config) if place]
    *outer, last = all_places[int(where * (len(all_places) - 1))]
    inner = config
    for key in outer:
        inner = inner[key]
    if gone:
        del inner[last]
    else:
        inner[last] = new
    (path / "config.json").write_text(json.dumps(config))
    found = loaded(path, count)
    assert found is None or isinstance(found, torch.nn.Module)
    shutil.rmtree(root)


@given(
    kind=st.sampled_from(["drop", "rename", "shape", "dtype", "nan", "more"]),
    place=st.floats(0, 1),
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from([torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]),
)
def test_forged_weights(kind, place, shape, dtype, saved, tmp_path_factory, count):
    root = tmp_path_factory.mktemp("case")
    path = shutil.copytree(saved, root / "copy")
    tensors = load_file(path / "weights.safetensors")
    name = sorted(tensors)[int(place * (len(tensors) - 1))]
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        tensors[name + "x"] = tensors.pop(name)
    elif kind == "shape":
        tensors[name] = torch.zeros(shape)
    elif kind == "dtype":
        tensors[name] = tensors[name].to(dtype)
    elif kind == "nan" and tensors[name].is_floating_point() and tensors[name].numel():
        tensors[name].view(-1)[0] = torch.nan
    else:
        tensors["more"] = torch.zeros(shape)
    save_file(tensors, path / "weights.safetensors")
    found = loaded(path, count)
    if found is not None:
        assert torch.isfinite(found.log_prob(POINT.to(next(found.parameters()).dtype))).all()
    shutil.rmtree(root)
