"""Every example in a docstring of the package runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf

PACKAGE = Path(pf.__file__).parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if not name.endswith("__main__"))


def run_doctests(module) -> str:
    """What the examples of the module print that they should not; empty if all is well."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        test.globs.update({"torch": torch, "pyro": pyro, "dist": dist, "pf": pf})
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        runner.run(test, out=report.append, clear_globs=False)
    return "".join(report)


@pytest.mark.parametrize("name", module_names())
def test_examples_of_module_run(name):
    failures = run_doctests(importlib.import_module(name))
    assert not failures, failures


def test_a_wrong_example_is_reported(tmp_path, monkeypatch):
    (tmp_path / "wrong_example.py").write_text('"""\n>>> torch.zeros(1)\ntensor([1.])\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensor([0.])" in run_doctests(importlib.import_module("wrong_example"))


def public_objects() -> dict[str, object]:
    """Classes and functions that the package and its rooms export, by their dotted names."""
    found = {}
    for name in pf.__all__:
        value = getattr(pf, name)
        if isinstance(value, type(pf)):
            found |= {f"{name}.{inner}": getattr(value, inner) for inner in getattr(value, "__all__", ())}
        else:
            found[name] = value
    return {name: value for name, value in found.items() if callable(value)}


def test_every_public_name_has_an_example(capsys):
    without = []
    for name, value in public_objects().items():
        words = value.__doc__ or ""
        if ">>>" not in words and "See :" not in words:
            without.append(name)
    with capsys.disabled():
        print(f" {len(public_objects())} public names")
    assert not without
