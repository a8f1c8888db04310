"""Every script in examples/ explains itself and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(script: Path, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples():
    assert len(SCRIPTS) >= 3


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_says_what_it_does(script, tmp_path):
    text = run(script, "--help", cwd=tmp_path)
    assert "--quick" in text
    assert len(text.split("options:")[0].split()) > 10


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    assert run(script, "--quick", cwd=tmp_path).strip()
    (picture,) = tmp_path.glob("*.html" if script.stem == "report" else "*.png")
    assert picture.stat().st_size > 5000
