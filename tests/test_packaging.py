"""The distribution: one version everywhere, and checkpoints inside the wheel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dig_core

ROOT = Path(__file__).parents[1]
DATA = {".safetensors", ".json", ".pdb", ".npz"}


def stated_version(name: str, pattern: str) -> str:
    found = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(found) == 1, f"{name} states its version {len(found)} times"
    return found[0]


def test_one_version():
    assert stated_version("pyproject.toml", r'^version = "([^"]+)"$') == dig_core.__version__
    assert stated_version("CITATION.cff", r'^version: "?([^"\s]+)"?$') == dig_core.__version__


def test_constraints_name_every_requirement():
    names = re.compile(r"^([A-Za-z0-9_-]+)(?=[=><])")
    pinned = {m[1].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if (m := names.match(line))}
    wanted = set(re.findall(r'"([A-Za-z0-9_-]+)>=', (ROOT / "pyproject.toml").read_text()))
    assert {name.lower() for name in wanted} - {"hatchling"} <= pinned | {"distributed"}


def test_every_listed_checkpoint_is_there():
    index = ROOT / "dig_plugins/models/index.json"
    if not index.exists():
        pytest.skip("no models/index.json yet")
    named = set(re.findall(r'"([^"/\s]+\.safetensors)"', json.dumps(json.loads(index.read_text()))))
    assert named <= {path.name for path in index.parent.glob("*.safetensors")}


@pytest.mark.slow
def test_wheel_holds_code_and_checkpoints(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr or built.stdout
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    models = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("dig_plugins/models/*") if path.suffix in DATA}
    code = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("dig_*/**/*.py")}
    assert models and models | code | {"dig_core/py.typed", "dig_plugins/py.typed"} <= names
    assert not any(name.startswith(("tests/", "examples/", "benchmarks/")) for name in names)
