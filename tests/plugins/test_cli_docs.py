"""The commands of docs/command-line.md are carried out, in their order and in one directory, with small numbers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import dig_plugins
from dig_plugins import cli
from tests.plugins.pages import browse, browser, looks_right, says_what_the_record_says, self_contained

PAGE = Path(dig_plugins.__file__).parents[1] / "docs" / "command-line.md"
FENCE = re.compile(r"(?:<!-- (only shown|long): [^>]+? -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = (
    (r"^doctor$", "doctor --no-timing"),
    (r"^(validate .*)-n \d+", r"\1-n 300"),
    (r"^((?!validate).*)-n \d+", r"\1-n 4"),
    (r"--blocks \d+", "--blocks 1 --md-steps 10"),
    (r"--target 4\.0", "--target :9 --steps 4"),
    (r"^(interpolate .*)", r"\1 --steps 8"),
    (r"^(sample carbon .*)", r"\1 --steps 4"),
    (r"--budget \d+min", "--budget 1s"),
    (r"--steps 4000", "--steps 2"),
    (r"--evaluations \d+", "--evaluations 100 --steps 10"),
)


def commands(marker: str) -> list[str]:
    """Of fences with that marker."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    lines = [line for found in FENCE.finditer(text) if (found[1] or "") == marker and not found[2] for line in found[3].splitlines()]
    return [line.removeprefix("dig-plugins ") for line in lines]


def carry_out(lines: list[str], monkeypatch, where: Path) -> None:
    for engine in ("openmm", "ase", "pymatgen", "mdtraj", "rdkit"):
        pytest.importorskip(engine)
    from ase.build import fcc111

    monkeypatch.chdir(where)
    fcc111("Cu", (2, 2, 2), vacuum=6).write("slab.traj")
    for found in FENCE.finditer(PAGE.read_text(encoding="utf-8")):
        if found[2] == "toml":
            Path(found[3].splitlines()[0].removeprefix("# ")).write_text(found[3])
    for line in lines:
        for pattern, small in SMALL:
            line = re.sub(pattern, small, line)
        monkeypatch.setattr(sys, "argv", ["dig-plugins", *line.split()])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, line


def reports_of(where: Path) -> list[Path]:
    """One beside every record, which says what the record says, loads nothing, and looks right in a browser where there is one."""
    records = [*where.rglob("run.json"), *(file for file in where.glob("*.json") if "schema" in json.loads(file.read_text()))]
    found = []
    for record in records:
        page = record.with_name("report.html") if record.name == "run.json" else record.with_suffix(".html")
        says_what_the_record_says(self_contained(page), json.loads(record.read_text()))
        assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        found.append(page)
    for shown in browse(found) if browser() else []:
        looks_right(shown)
    return found


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not here")
def test_commands_of_the_page(monkeypatch, tmp_path):
    lines = commands("")
    assert len(lines) >= 10
    carry_out(lines, monkeypatch, tmp_path)
    assert {page.stem if page.stem != "report" else page.parent.name for page in reports_of(tmp_path)} == {
        "ala", "density", "validation", "carbon", "chain", "path", "designs", "co", "few",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not here")
def test_trainings_of_the_page(monkeypatch, tmp_path):
    """A training with the least budget still does all of its stages: minutes."""
    carry_out(["sample alanine-dipeptide -n 1 --out ala.xtc", "sample ubiquitin -n 1 --out protein.pdb"], monkeypatch, tmp_path)
    carry_out(commands("long"), monkeypatch, tmp_path)
    names = {path.parent.name for path in tmp_path.glob("*/model.safetensors")}
    assert names == {"mine", "ethane", "protein", "hydrogen", "crystals"}
    assert {path.parent.name for path in tmp_path.glob("*/run.json")} == names
    assert names < {page.parent.name for page in reports_of(tmp_path)}
