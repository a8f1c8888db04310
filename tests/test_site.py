"""What the pages of the site say exists: names of the package, pages and pictures, tutorials in order."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import pyro_flows as pf

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
ROOMS = "data diagnostics distributions flows guides infer io manifolds nn studies testing transforms".split()
CODE = re.compile(r"```(?:python|\{code-cell\})[^\n]*\n(.*?)```", re.DOTALL)


def missing(dotted: str) -> bool:
    """Whether a name such as ``flows.get`` leads nowhere in the package."""
    found = pf
    for part in dotted.split("."):
        if not hasattr(found, part) and importlib.util.find_spec(f"{found.__name__}.{part}") is None:
            return True
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(f"{found.__name__}.{part}")
        if not isinstance(found, type(pf)):  # what a class or a function has is its own affair
            return False
    return False


def names_of_code(code: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="pf"), attr=room), attr=name):
                found.add(f"{room}.{name}")
            case ast.Attribute(value=ast.Name(id="pf"), attr=name):
                found.add(name)
            case ast.ImportFrom(module=str(module)) if module.startswith("pyro_flows"):
                room = module.removeprefix("pyro_flows").lstrip(".")
                found |= {f"{room}.{alias.name}".lstrip(".") for alias in node.names}
    return found


def names_of_text(text: str) -> set[str]:
    inline = " ".join(re.findall(r"`([^`\n]+)`", CODE.sub("", text)))
    by_room = re.findall(rf"(?<![\w./-])((?:{'|'.join(ROOMS)})(?:\.[A-Za-z_]\w*)+)(?!\.(?:py|md))\b", inline)
    return set(re.findall(r"\bpf\.([A-Za-z_][\w.]*)", inline)) | {name for name in by_room if not name.endswith((".py", ".md"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_name_of_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    names = names_of_text(text)
    for code in CODE.findall(text):
        names |= names_of_code("\n".join(line for line in code.splitlines() if not re.match(r":[a-z-]+:", line)))
    assert not [name for name in sorted(names) if missing(name.rstrip("."))]


def test_a_name_that_is_not_there_is_found():
    assert missing("flows.no_such_flow") and missing("no_such_name") and not missing("flows.get")
    assert names_of_code("pf.flows.gone(3)\nfrom pyro_flows.infer import away") == {"flows.gone", "flows", "infer.away"}
    assert names_of_text("call `pf.absent(x)` or `studies.vanished`, not `examples/flows.py`") == {"absent", "studies.vanished"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_and_pictures_that_a_page_links_to_exist(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)", text):
        assert "generated/" in target or (page.parent / target).exists(), target


def test_every_tutorial_is_listed_in_order():
    listed = re.findall(r"^(\d\d_\w+)$", (DOCS / "tutorials" / "index.md").read_text(), flags=re.MULTILINE)
    assert listed == sorted(path.stem for path in (DOCS / "tutorials").glob("[0-9]*.md"))
    assert len(listed) == 12


def test_broken_links_of_a_built_site_are_found(tmp_path):
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "check_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "a.html").write_text('<p id="here"><a href="#here">x</a><a href="b.html#there">x</a><img src="c.png">')
    (tmp_path / "b.html").write_text('<a href="a.html#here">x</a><a href="https://example.org">x</a>')
    assert module.broken(tmp_path) == ["a.html: b.html#there: no such anchor", "a.html: c.png"]
