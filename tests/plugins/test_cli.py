"""The command line: the demonstration writes what it says, and bad inputs are one line on stderr and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dig_plugins
from dig_core.errors import StateError
from dig_plugins import cli, models
from dig_plugins.models import __file__ as models_file

ROOT = Path(dig_plugins.__file__).parents[1]
NAME = "alanine-dipeptide"
SHIPPED = (Path(models_file).parent / "index.json").exists()

needs_model = pytest.mark.skipif(not SHIPPED, reason="no model ships yet: models/index.json is missing")


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """``python -m dig_plugins.cli`` in a process of its own, as a user runs it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENMM_CPU_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dig_plugins.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


# The demonstration -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    pytest.importorskip("openmm")
    pytest.importorskip("matplotlib")
    where = tmp_path_factory.mktemp("demo")
    done = shell("demo", "--out", "d", "--seconds", "2", "--seed", "1", cwd=where)
    assert done.returncode == 0, done.stderr
    return where / "d", done


@pytest.fixture(scope="module")
def summary(demonstration) -> dict:
    return json.loads((demonstration[0] / "run.json").read_text())


@needs_model
def test_demo_says_what_it_found_and_where(demonstration):
    directory, done = demonstration
    assert "acceptance" in done.stdout and "proposals/s" in done.stdout
    assert f"report: {Path('d') / 'report.html'}" in done.stdout
    assert "Traceback" not in done.stderr
    assert {p.name for p in directory.iterdir()} == {
        "trajectory.xtc", "trajectory.pdb", "samples.npz", "proposals.csv", "run.json", "report.png", "report.html",
    }  # fmt: skip


@needs_model
def test_run_json_holds_what_is_needed_to_do_it_again(summary):
    assert summary["seed"] == 1 and summary["model"] == NAME
    assert summary["model_sha256"] == models.index()[NAME]["sha256"]
    assert "demo --out d --seconds 2 --seed 1" in summary["command"]
    assert {"python", "dig-plugins", "torch", "openmm", "numpy"} <= set(summary["versions"])
    assert set(summary["cite"]) == {"dig-plugins", "torch", "openmm"} and all("doi:" in work for work in summary["cite"].values())
    assert summary["temperature_K"] == 300 and summary["device"] and summary["units"] and summary["energy_platform"]


@needs_model
def test_run_json_agrees_with_the_files(demonstration, summary):
    directory, _ = demonstration
    with np.load(directory / "samples.npz") as held:
        n, log_weights, accepted = len(held["positions"]), held["log_weights"], held["accepted"]
        assert held["positions"].shape == (n, 22, 3) and int(held["seed"]) == 1
        finite = held["reason"] == 0
        assert np.allclose(log_weights[finite], -held["u"][finite] - held["log_q"][finite])
    assert summary["proposals"] == n > 0
    assert summary["acceptance"] == pytest.approx(accepted.mean())
    weights = np.exp(log_weights - log_weights.max())
    assert summary["raw_ess"] == pytest.approx(weights.sum() ** 2 / (n * (weights**2).sum()))
    assert summary["proposals_per_second"] == pytest.approx(n / summary["seconds"])
    assert 2 <= summary["seconds"] < 20 and summary["plain_md"]["seconds"] >= summary["seconds"]
    rows = (directory / "proposals.csv").read_text().splitlines()
    assert len(rows) == n + 1
    assert sum(summary["failed"].values()) == sum(not row.endswith("none") for row in rows[1:])


@needs_model
def test_trajectory_has_a_frame_a_proposal(demonstration, summary):
    mdtraj = pytest.importorskip("mdtraj")
    directory, _ = demonstration
    trajectory = mdtraj.load(directory / "trajectory.xtc", top=directory / "trajectory.pdb")
    assert trajectory.n_frames == summary["proposals"] and trajectory.n_atoms == 22
    with np.load(directory / "samples.npz") as held:
        assert np.allclose(trajectory.xyz, held["positions"], atol=1.5e-3)


@needs_model
def test_report_is_one_page_with_its_figure(demonstration):
    directory, _ = demonstration
    page = (directory / "report.html").read_text()
    assert "<html" in page and "data:image/png;base64," in page
    assert (directory / "report.png").read_bytes().startswith(b"\x89PNG")


@needs_model
def test_no_time_at_all_is_one_block(call, tmp_path):
    pytest.importorskip("openmm")
    code, out, err = call("demo", "--out", "d", "--seconds", "1e-6", "--seed", "3", "--report")
    assert code == 0, err
    held = json.loads((tmp_path / "d" / "run.json").read_text())
    assert held["proposals"] > 0 and held["plain_md"]["picoseconds"] > 0 and str(Path("d") / "report.html") in out


# Other verbs -----------------------------------------------------------------------------------------------------------


@needs_model
def test_sample_writes_what_was_asked_for(call, tmp_path):
    pytest.importorskip("openmm")
    code, out, err = call("sample", NAME, "-n", "20", "--out", "a.npz", "--seed", "5")
    assert code == 0, err
    assert "20 structures" in out and "seed 5" in out and "a.npz" in out
    with np.load(tmp_path / "a.npz") as held:
        assert held["positions"].shape == (20, 22, 3)


@needs_model
def test_models_are_listed_one_a_line(call):
    code, out, err = call("models", "list")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(models.index())
    assert "300 K" in lines[0] and "MIT" in lines[0]


@needs_model
def test_a_model_s_card_is_json(call):
    code, out, err = call("models", "show", NAME)
    assert code == 0 and err == ""
    assert json.loads(out)["temperature"] == 300


def test_help_names_every_verb(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(verb in out for verb in ("demo", "sample", "models"))


# Bad inputs --------------------------------------------------------------------------------------------------------------

BAD = {
    "no time": ["demo", "--out", "d", "--seconds", "0"],
    "negative time": ["demo", "--out", "d", "--seconds", "-3"],
    "time that is not a number": ["demo", "--out", "d", "--seconds", "nan"],
    "endless": ["demo", "--out", "d", "--seconds", "inf"],
    "unknown model": ["demo", "--out", "d", "--model", "methane"],
    "missing checkpoint": ["demo", "--out", "d", "--model", "absent.safetensors"],
    "checkpoint without a system": ["demo", "--out", "d", "--model", "{shipped}"],
    "negative seed": ["demo", "--out", "d", "--seed", "-1"],
    "not empty": ["demo", "--out", "full"],
    "a file": ["demo", "--out", "full/file"],
    "no samples": ["sample", NAME, "-n", "0", "--out", "a.npz"],
    "unknown model to sample": ["sample", "methane", "--out", "a.npz"],
    "format": ["sample", NAME, "--out", "a.trr"],
    "directory": ["sample", NAME, "--out", "absent/a.npz"],
    "seed of samples": ["sample", NAME, "--seed", "-7", "--out", "a.npz"],
    "unknown card": ["models", "show", "methane"],
    "garbage": ["models", "show", "full/garbage.safetensors"],
}


@needs_model
@pytest.mark.parametrize("arguments", BAD.values(), ids=list(BAD))
def test_bad_inputs_are_one_line_and_code_2(arguments, call, tmp_path):
    pytest.importorskip("openmm")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    (tmp_path / "full" / "garbage.safetensors").write_bytes(b"garbage" * 20)
    code, out, err = call(*(argument.format(shipped=models.path(NAME)) for argument in arguments))
    assert code == 2 and out == ""
    assert err.startswith("dig-plugins: ") and len(err.splitlines()) == 1
    # Nothing was begun: no directory made, no file written or changed.
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "kept" and len(list((tmp_path / "full").iterdir())) == 2


@needs_model
def test_bad_input_in_a_process_of_its_own(tmp_path):
    done = shell("models", "show", "methane", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"dig-plugins: {done.stderr[13:].strip()}\n" and NAME in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["demo"], ["sample"], ["dance"], ["demo", "--out", "d", "--seconds", "soon"]], ids=" ".join
)
def test_usage_errors_are_code_2_too(arguments, call, tmp_path):
    code, _, err = call(*arguments)
    assert code == 2 and "Usage" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def failing(error: BaseException):
    def run(*args, **options):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (StateError("the current state has log weight -inf."), 2, "log weight -inf"),
        (ImportError("dig_plugins.openmm needs OpenMM: pip install 'dig-plugins[openmm]'."), 3, "pip install"),
        (OSError(28, "No space left on device"), 3, "No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["ours", "import", "disk", "ctrl-c"],
)
def test_failures_have_codes_of_their_own(error, code, words, call, monkeypatch):
    pytest.importorskip("openmm")
    import dig_plugins.openmm

    monkeypatch.setattr(dig_plugins.openmm, "demo", failing(error), raising=False)
    found, out, err = call("demo", "--out", "d")
    assert found == code and out == ""
    assert err.startswith("dig-plugins: ") and words in err and len(err.splitlines()) == 1


def test_bugs_are_not_hidden(monkeypatch):
    """An error that nobody raised on purpose keeps its traceback."""
    pytest.importorskip("openmm")
    import dig_plugins.openmm

    monkeypatch.setattr(dig_plugins.openmm, "demo", failing(ZeroDivisionError("a bug")), raising=False)
    monkeypatch.setattr(sys, "argv", ["dig-plugins", "demo", "--out", "d"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
