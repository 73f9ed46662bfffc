"""The verb ``adsorb``: what it writes agrees with itself and can be read again; bad inputs are one line and leave nothing behind."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

pytest.importorskip("ase")
pytest.importorskip("matplotlib")

from ase.build import fcc111, molecule
from ase.calculators.emt import EMT
from ase.io import read, write

from dig_core.errors import IncompatibleError
from dig_plugins import cli, models
from dig_plugins.ase.adsorption import AdsorptionEnsemble, SiteSet, SiteSurface, calculator_named

NAME = "adsorb-general"
pytestmark = pytest.mark.skipif(NAME not in models.index(), reason=f"{NAME} does not ship yet")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The command line in an empty directory with a slab: returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    write("slab.traj", fcc111("Pt", (2, 2, 3), a=3.98, vacuum=8.0))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dig-plugins", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def test_files_agree_and_can_be_read_again(call, tmp_path):
    code, out, err = call("adsorb", "slab.traj", "--adsorbate", "CO", "-n", "24", "--out", "run", "--seed", "1")
    assert code == 0, err
    where = tmp_path / "run"
    assert {p.name for p in where.iterdir()} == {
        "samples.extxyz", "sites.md", "sites.json", "map.png", "run.json", "report.html", "report.png",
    }  # fmt: skip
    summary, ensemble = json.loads((where / "run.json").read_text()), AdsorptionEnsemble.read(where / "samples.extxyz")
    assert len(ensemble) == summary["samples"] == 24 and summary["seed"] == 1 and summary["correction"] == "none"
    assert summary["model"] == NAME and summary["model_sha256"] == models.index()[NAME]["sha256"]
    assert summary["energy"] == "none" and summary["energy_calls"] == 0 and summary["used"] == int(ensemble.used.sum())
    assert "adsorb slab.traj --adsorbate CO" in summary["command"] and {"torch", "ase"} <= set(summary["versions"])
    assert len(SiteSet.read(where / "sites.json")) == summary["sites"] > 0
    assert (where / "sites.md").read_text() in out and "Raw" in out
    assert (where / "map.png").read_bytes().startswith(b"\x89PNG")
    assert np.isfinite(ensemble.log_q).all() and not read(where / "samples.extxyz", ":")[0].pbc[2]


def test_the_seed_decides(call, tmp_path):
    for name in ("one", "two"):
        assert call("adsorb", "slab.traj", "--adsorbate", "O", "-n", "4", "--out", name, "--seed", "3")[0] == 0
    first, second = (AdsorptionEnsemble.read(tmp_path / name / "samples.extxyz").positions for name in ("one", "two"))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("way", ["reweight", "mc"])
def test_a_calculator_of_one_s_own_makes_it_exact(way, call, tmp_path, monkeypatch):
    mine = types.ModuleType("mine")
    mine.make = lambda: SiteSurface.from_table("Pt", "O").calculator()
    monkeypatch.setitem(sys.modules, "mine", mine)
    options = ["--adsorbate", "O", "-n", "16", "--calculator", "mine:make", "--correct", way]
    code, out, err = call("adsorb", "slab.traj", *options, "--out", "run", "--seed", "2")
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["correction"] == way and summary["energy_calls"] >= 16 and "sitesurface" in summary["energy"].lower()
    ensemble = AdsorptionEnsemble.read(tmp_path / "run" / "samples.extxyz")
    assert summary["effective_sample_size"] == pytest.approx(ensemble.effective_sample_size())
    assert {"reweight": "Reweighted", "mc": "Corrected"}[way] in out


def test_the_adsorbate_may_be_a_file(call, tmp_path):
    write("mine.xyz", molecule("CO")[[1, 0]])
    assert call("adsorb", "slab.traj", "--adsorbate", "mine.xyz", "-n", "4", "--out", "run", "--seed", "1")[0] == 0
    ensemble = AdsorptionEnsemble.read(tmp_path / "run" / "samples.extxyz")
    assert str(ensemble.template.symbols[list(ensemble.adsorbate)]) == "CO"


BAD = {
    "no slab": (["adsorb", "absent.traj"], "no file"),
    "not a structure": (["adsorb", "kept/file.xyz"], "cannot be read"),
    "adsorbate": (["adsorb", "slab.traj", "--adsorbate", "Unobtainium"], "g2"),
    "adsorbate not seen": (["adsorb", "slab.traj", "--adsorbate", "NH3"], "fit_adsorption"),
    "metal not seen": (["adsorb", "lead.traj"], "Pb"),
    "bulk": (["adsorb", "bulk.traj"], "vacuum"),
    "model": (["adsorb", "slab.traj", "--model", "adsorb-everything"], "shipped models"),
    "model of a molecule": (["adsorb", "slab.traj", "--model", "alanine-dipeptide"], "one system"),
    "temperature": (["adsorb", "slab.traj", "--temperature", "-5"], "-5"),
    "no samples": (["adsorb", "slab.traj", "-n", "0"], "at least 1"),
    "correction": (["adsorb", "slab.traj", "--correct", "hope"], "hope"),
    "correction without energy": (["adsorb", "slab.traj", "--correct", "mc"], "energy"),
    "calculator": (["adsorb", "slab.traj", "--calculator", "vasp"], "module:Class"),
    "class": (["adsorb", "slab.traj", "--calculator", "ase.calculators.emt:Potential"], "Potential"),
    "class with arguments": (["adsorb", "slab.traj", "--calculator", "ase.atoms:Atom.nothing"], "no class"),
    "not empty": (["adsorb", "slab.traj", "--out", "kept"], "not empty"),
    "seed": (["adsorb", "slab.traj", "--seed", "-1"], "seed"),
}


@pytest.mark.parametrize("arguments, words", BAD.values(), ids=list(BAD))
def test_bad_inputs_are_one_line_and_code_2(arguments, words, call, tmp_path):
    write("lead.traj", fcc111("Pb", (2, 2, 3), vacuum=8.0))
    write("bulk.traj", fcc111("Pt", (2, 2, 3), a=3.98, periodic=True))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file.xyz").write_text("nothing\nof use\n")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    defaults = {"--adsorbate": "O", "--out": "run"}
    added = [word for option, value in defaults.items() if option not in arguments for word in (option, value)]
    code, out, err = call(*arguments, *added)
    assert code == 2 and out == "", err
    assert err.startswith("dig-plugins: ") and len(err.splitlines()) == 1 and words in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_calculators_by_name(monkeypatch):
    assert isinstance(calculator_named("emt"), EMT)
    assert isinstance(calculator_named("ase.calculators.emt:EMT"), EMT)
    for name, package in (("chgnet", "chgnet"), ("sevennet", "sevenn")):
        monkeypatch.setitem(sys.modules, f"{package}.{'model' if name == 'chgnet' else 'calculator'}", None)
        with pytest.raises(ImportError, match=f"pip install {package}"):
            calculator_named(name)
    with pytest.raises(ImportError):
        calculator_named("no_such_module:Class")
    with pytest.raises(IncompatibleError, match="module:Class"):
        calculator_named("lots")
