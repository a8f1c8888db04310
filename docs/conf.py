"""Settings of the documentation site, and the generator of its reference pages."""

from __future__ import annotations

import shutil
from pathlib import Path

from sphinx.application import Sphinx

import pyro_flows
from pyro_flows.flows.table import HEADER, table

project = "pyro_flows"
author = "the pyro_flows contributors"
copyright = author
version = release = pyro_flows.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = f"pyro_flows {version}"
html_show_search_summary = False  # summaries are fetched, which browsers refuse for files on the disk

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Tutorials are run when the site is built, each in its folder, and once for a state of the files.
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_merge_streams = True

autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True, "exclude-members": "TURN"}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

DOCS = Path(__file__).parent
PACKAGE = Path(pyro_flows.__file__).parent
GENERATED = DOCS / "generated"


def write_reference() -> None:
    """One page for each folder of the package, with every module in it: a new file appears without an edit here."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__main__" or parts == (PACKAGE.name, "__init__"):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        room = parts[1] if len(parts) > 2 else PACKAGE.name
        rooms.setdefault(room, []).append(module)
    for room, modules in rooms.items():
        title = room if room == PACKAGE.name else f"{PACKAGE.name}.{room}"
        lines = [title, "=" * len(title), ""]
        for module in sorted(modules):
            lines += [module, "-" * len(module), "", f".. automodule:: {module}", ""]
        (GENERATED / f"{room}.rst").write_text("\n".join(lines))
    rows = [HEADER, tuple("---" for _ in HEADER), *table()]
    lines = ["# Flows by name", "", *(" | ".join(["", *row, ""]).strip() for row in rows), ""]
    lines.append(
        "`cheap direction`: `forward` draws in one pass, `inverse` scores in one; `.inv` turns a flow round."
        " Parameters with default options at D = 8."
    )
    (DOCS / "generated" / "table.md").write_text("\n".join(lines))
    index = ["# Reference", "", "```{toctree}", ":maxdepth: 2", "", "table", *sorted(rooms), "```", ""]
    (GENERATED / "index.md").write_text("\n".join(index))


def setup(app: Sphinx) -> None:
    """Take MathJax from the disk, by an extension that copies files at the end and does not say that it may run in parallel."""
    name = "sphinx-mathjax-offline"
    app.setup_extension(name)
    app.extensions[name].parallel_read_safe = app.extensions[name].parallel_write_safe = True


write_reference()
