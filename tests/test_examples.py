"""Every example runs as a user would run it, in its fast mode."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openmm")
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example(script):
    if script.stem.startswith(("ase", "adsorption")):
        pytest.importorskip("ase")
    if script.stem.startswith("carbon"):
        pytest.importorskip("pymatgen")
    if script.stem.startswith("protein"):
        pytest.importorskip("mdtraj")
    done = subprocess.run([sys.executable, str(script), "--fast"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
