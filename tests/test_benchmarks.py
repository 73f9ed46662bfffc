"""The benchmarks run at smoke sizes, write what they say they write, and guard the measured results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openmm")

ROOT = Path(__file__).parents[1]


def python(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_quick_run_makes_every_result_and_the_page(tmp_path):
    done = python("benchmarks/run.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(records) == {"density", "exactness", "overheads", "proposals", "rates", "startup"}
    page = (tmp_path / "RESULTS.md").read_text()
    for record in records.values():
        assert record["quick"] and record["figures"] and record["machine"]["processor"]
        assert all(figure["what"] in page for figure in record["figures"])


def test_smoke_sizes_do_not_overwrite_measured_results():
    assert "--out" in python("benchmarks/run.py", "--quick").stderr
    assert "--out" in python("benchmarks/density.py", "--quick").stderr


def test_density_at_smoke_sizes(tmp_path):
    done = python("benchmarks/density.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    laws, densities = json.loads((tmp_path / "density.json").read_text())["tables"]
    assert len(laws["rows"]) == 6 and len(densities["rows"]) == 1


def test_committed_results_are_full_runs_and_stand_on_the_page():
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    page = (ROOT / "benchmarks/RESULTS.md").read_text() if files else ""
    for file in files:
        record = json.loads(file.read_text())
        assert not record["quick"], f"{file.name} holds smoke sizes"
        named = [figure["what"].replace("|", "\\|") for figure in record["figures"]]  # as cells of a table are written
        assert all(name in page for name in named), "run `python benchmarks/page.py`"
