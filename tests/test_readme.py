"""What the README says is so."""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import pyro_flows as pf

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_readme_stays_short():
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_what_the_readme_links_to_is_there(target):
    assert (ROOT / target).is_file()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(examples/[\w/.]+)`", README))))
def test_example_named_in_the_readme_is_there(name):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("index", range(len(SCRIPTS)))
def test_names_used_in_the_readme_exist(index):
    for node in ast.walk(ast.parse(SCRIPTS[index])):
        match node:
            case ast.Attribute(value=ast.Name(id="pf"), attr=name):
                assert hasattr(pf, name), name
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="pf"), attr=room), attr=name):
                assert hasattr(getattr(pf, room), name), f"{room}.{name}"


def test_transform_of_the_readme_passes_its_own_check(monkeypatch):
    (script,) = [script for script in SCRIPTS if "class Scale" in script]
    module = types.ModuleType("readme_script")  # a module of its own, so that the class can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__dict__.update(torch=torch, pf=pf)
    exec(script, module.__dict__)
    assert module.Scale(3).input_dim == 3
