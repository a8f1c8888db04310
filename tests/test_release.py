"""What a release is made of: the built distributions, what they hold and what they say of themselves."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pyro_flows as pf

ROOT = Path(__file__).parent.parent


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it and not from the clone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_sdist_holds_the_sources_and_no_data_of_others(built):
    with tarfile.open(built[0]) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    tops = {name.split("/")[0] for name in names}
    assert {"pyro_flows", "README.md", "LICENSE", "pyproject.toml"} <= tops
    assert not tops & {"tests", "shared", "benchmarks", "docs"}
    assert not [name for name in names if name.endswith((".zip", ".csv", ".nc", ".npy", ".idx"))]


def test_the_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    assert {name.split("/")[0] for name in names} == {"pyro_flows", f"pyro_flows-{pf.__version__}.dist-info"}
    assert "pyro_flows/py.typed" in names and "pyro_flows/data/eight_schools.json" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pyro_flows").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    message = email.message_from_string(metadata)
    assert message["Name"] == "pyro-flows" and message["Version"] == pf.__version__
    assert message["License-Expression"] == "Apache-2.0" and message["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in message.get_all("Classifier")
    assert len([line for line in message.get_all("Requires-Dist") if "extra ==" not in line]) == 13
    assert message.get_payload().startswith("# pyro_flows")


def test_the_wheel_works_where_it_is_installed(built, tmp_path):
    """Beside the packages of this environment, not from the clone; in an environment of its own with --slow."""
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", built[1])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    code = "import pyro_flows as pf; print(pf.__file__, len(pf.data.eight_schools().y), len(pf.flows.names()))"
    where, schools, flows = run(sys.executable, "-c", code, cwd=tmp_path, env=environment).split()
    assert where.startswith(str(tmp_path)) and schools == "8" and int(flows) == len(pf.flows.names())
    said = run(sys.executable, "-m", "pyro_flows", "--version", cwd=tmp_path, env=environment)
    assert said.strip() == f"pyro_flows {pf.__version__}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_a_release_installs_into_a_fresh_environment(kind, built, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", built[kind == "wheel"])
    run(python, "-m", "pyro_flows", "demo", "--quick", "--no-progress", "--out", tmp_path / "demo", cwd=tmp_path)
    assert (tmp_path / "demo" / "posterior.png").exists()


def test_the_version_stands_in_one_place():
    (line,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "pyro_flows" / "__init__.py").read_text(), flags=re.MULTILINE)
    assert line == pf.__version__
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and line not in project
    assert line not in (ROOT / "CITATION.cff").read_text()
    base = line.split(".dev")[0]
    assert f"## {base}" in (ROOT / "CHANGELOG.md").read_text()
