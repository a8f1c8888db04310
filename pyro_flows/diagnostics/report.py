"""A report of text, tables and pictures, as one file for a browser and as text."""

from __future__ import annotations

import base64
import html
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .printed import Printed

#: Dots per inch of the pictures.
_DPI = 110


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Args:
        header: Names of the columns.
        rows: Their entries, as many in each row.

    Example:
        >>> print(Table(("site", "mean"), [("mu", "4.41")]).text())
        site  mean
        mu    4.41
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Columns one beside the other."""
        lines = [tuple(self.header), *map(tuple, self.rows)]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.header))]
        return "\n".join("  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in lines)

    def html(self) -> str:
        """The same for a browser."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        body = "\n".join("<tr>" + "".join(f"<td>{html.escape(entry)}</td>" for entry in row) + "</tr>" for row in self.rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


@dataclass(frozen=True)
class Picture:
    """A figure and what it shows, in words.

    Args:
        figure: A matplotlib figure.
        caption: The words.

    Example:
        >>> from pyro_flows.diagnostics import plot_weights
        >>> Picture(plot_weights(torch.randn(100)), "Weights").html().startswith("<figure><img")
        True
    """

    figure: Any
    caption: str

    def html(self) -> str:
        """The picture itself, in the text of the file."""
        stream = io.BytesIO()
        self.figure.savefig(stream, dpi=_DPI, format="png")
        data = base64.b64encode(stream.getvalue()).decode()
        words = html.escape(self.caption, quote=True)
        return f'<figure><img src="data:image/png;base64,{data}" alt="{words}"><figcaption>{words}</figcaption></figure>'


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        title: Its heading.
        parts: Paragraphs, tables and pictures, in their order.

    Example:
        >>> print(Section("Data", ["12 rows."]).text())
        Data
        ----
        12 rows.
    """

    title: str
    parts: Sequence[str | Table | Picture] = field(default_factory=list)

    def text(self) -> str:
        """Paragraphs and tables; pictures by their captions."""
        words = [
            part if isinstance(part, str) else part.text() if isinstance(part, Table) else f"[picture] {part.caption}"
            for part in self.parts
        ]
        return "\n".join([self.title, "-" * len(self.title), "\n\n".join(words)])

    def html(self) -> str:
        """The same for a browser."""
        parts = "\n".join(f"<p>{html.escape(part)}</p>" if isinstance(part, str) else part.html() for part in self.parts)
        return f"<section><h2>{html.escape(self.title)}</h2>\n{parts}\n</section>"


@dataclass(frozen=True)
class Report(Printed):
    """Sections under a title, with a mark that is seen first.

    ``print(report)`` gives the text, ``save`` a file for a browser that needs nothing else, no network either.

    Args:
        title: What it is about.
        mark: One word, such as a verdict; ``"good"``, ``"reweight"`` and ``"poor"`` have colours.
        summary: One sentence under the title.
        sections: The parts.

    Example:
        >>> report = Report("Eight schools", "good", "Use the draws as they are.", [Section("Data", ["8 schools."])])
        >>> print(report)
        Eight schools: good
        ===================
        Use the draws as they are.
        <BLANKLINE>
        Data
        ----
        8 schools.
    """

    title: str
    mark: str
    summary: str
    sections: Sequence[Section]

    def __str__(self) -> str:
        head = f"{self.title}: {self.mark}"
        return "\n".join([head, "=" * len(head), self.summary]) + "".join(f"\n\n{section.text()}" for section in self.sections)

    def html(self) -> str:
        """One page: text, tables, pictures and style."""
        kind = self.mark if self.mark in ("good", "reweight", "poor") else "none"
        title, mark = html.escape(self.title), html.escape(self.mark)
        body = "\n".join(section.html() for section in self.sections)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n'
            f'<header><h1>{title}</h1><p><span class="mark {kind}">{mark}</span> {html.escape(self.summary)}</p></header>\n'
            f"{body}\n</main></body></html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the page; what is there before is replaced at once or not at all.

        Args:
            path: The file.

        Returns:
            The path.

        Raises:
            ValueError: If the folder is not there.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise ValueError(f"path must be a file in a folder that exists, got {path}; make {path.parent} first")
        text = self.html()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return path


_STYLE = """
:root { color-scheme: light dark; --ink: #22252b; --pale: #6a6f79; --line: #e3e5e9; --page: #ffffff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --pale: #9aa0ab; --line: #343944; --page: #16181d; --card: #1f2229; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-top: 0.9rem; border-top: 1px solid var(--line); }
p { margin: 0.5rem 0; overflow-wrap: anywhere; }
.mark { display: inline-block; padding: 0.1rem 0.7rem; margin-right: 0.4rem; border-radius: 1rem; font-weight: 600; color: #fff; }
.good { background: #2b7a4b; } .reweight { background: #9a6a00; } .poor { background: #b3364a; } .none { background: #5b6170; }
.wide { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--pale); font-weight: 600; }
figure { margin: 1rem 0; padding: 0.6rem; background: var(--card); border-radius: 0.5rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 0.3rem; }
figcaption { color: var(--pale); font-size: 0.87rem; margin-top: 0.5rem; }
"""
