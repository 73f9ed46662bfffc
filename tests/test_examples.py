"""Every example runs as a user would run it, in its fast mode."""

import csv
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
    if script.stem.startswith(("protein", "train_together")):
        pytest.importorskip("mdtraj")
    done = subprocess.run([sys.executable, str(script), "--fast"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_torchrun_gives_the_losses_of_one_process(tmp_path):
    pytest.importorskip("mdtraj")
    script = str(Path(__file__).parents[1] / "examples/train_together.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    losses = []
    for name, how in (("alone", []), ("together", launcher)):
        done = subprocess.run(
            [sys.executable, *how, script, "--fast", "--out", str(tmp_path / name)], capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("model:") == 1, "the first process alone tells"
        with open(tmp_path / name / "stages/0-denoise/log.csv", encoding="utf-8", newline="") as file:
            losses.append([float(row["training"]) for row in csv.DictReader(file)])
    assert len(losses[0]) == 20 and losses[1] == pytest.approx(losses[0], rel=1e-4)
