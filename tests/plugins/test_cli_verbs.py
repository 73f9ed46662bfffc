"""The verbs: each is its function with the same defaults, writes a record that repeats it, and refuses what is wrong in one line."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import dig_plugins
from dig_core.errors import CheckpointError
from dig_plugins import cli, models, tasks
from dig_plugins.cli import judging, materials, sampling, training
from dig_plugins.tasks import chains

ROOT = Path(dig_plugins.__file__).parents[1]
NAME = "alanine-dipeptide"
VERBS = {
    sampling.sample: "sample", sampling.density: "density", sampling.mc: "mc", sampling.interpolate: "interpolate",
    materials.design: "design", judging.validate: "validate", judging.doctor: "doctor", training.openmm: "train_openmm",
    training.protein: "train_protein", training.molecule: "train_molecule", training.adsorption: "train_adsorption",
    training.crystal: "train_crystal",
}  # fmt: skip
SYSTEM = {"of", "force_field", "temperature", "adsorbate", "calculator"}
"""Options that become one argument, ``given``, of the functions that have it."""


def record(path: Path) -> dict:
    """Strict JSON that says what was run, on what, and how to repeat it."""

    def refuse(word: str):
        raise AssertionError(f"{path.name} holds {word}, which is not JSON")

    held = json.loads(path.read_text(), parse_constant=refuse)
    assert held["schema"] == 1 and held["command"].startswith("dig-plugins ") and held["device"] and held["units"]
    assert {"python", "dig-plugins", "torch", "numpy"} <= set(held["versions"])
    assert len(held["model_sha256"]) == 64
    return held


# The same in Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS, ids=VERBS.values())
def test_defaults_are_those_of_the_function(verb):
    task = inspect.signature(getattr(tasks, VERBS[verb])).parameters
    options = {name: p.default for name, p in inspect.signature(verb).parameters.items() if name not in ("threads", "more")}
    system = SYSTEM if "given" in task else set()
    assert {options[name] for name in system & set(options)} <= {None}
    for name, default in options.items():
        if name in system:
            continue
        wanted = task[{"forcefield": "force_field"}.get(name, name)].default
        same = default is wanted or (isinstance(default, Path) and str(default) == wanted) or default == wanted
        assert same, f"{name}: the verb has {default}, the function {wanted}"
    missing = set(task) - set(options) - {"given", "progress", "batch", "force_field"}
    assert not missing, f"no option for {missing}"


def commands(app, path: tuple[str, ...] = ()):
    from typer.main import get_command

    command = get_command(app) if not path else app
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from commands(inner, (*path, name))
        else:
            yield (*path, name), inner


def test_help_of_every_verb_has_an_example_that_parses():
    seen = 0
    for path, command in commands(cli.app):
        (example,) = re.findall(r"Example: dig-plugins (.*)", command.help)
        words = shlex.split(example)
        assert tuple(words[: len(path)]) == path
        command.make_context(path[-1], words[len(path) :])
        assert all(getattr(option, "help", "?") for option in command.params)
        seen += 1
    assert seen == 17


def test_completion_knows_models_and_does_not_load_torch(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_DIG_PLUGINS_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    code = "import sys; sys.argv = ['dig-plugins']; from dig_plugins.cli import app; import atexit\n"
    code += "atexit.register(lambda: print('torch' in sys.modules)); app(prog_name='dig-plugins')"
    environment["COMP_WORDS"] = "dig-plugins sample alanine-t"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["alanine-tetrapeptide", "False"], done.stderr


def test_version(call):
    assert call("--version")[:2] == (0, f"dig-plugins {dig_plugins.__version__}\n")


# Verbs -------------------------------------------------------------------------------------------------------------------


def test_a_sample_is_recorded_and_its_density_is_found_again(call, tmp_path):
    pytest.importorskip("openmm")
    assert call("sample", NAME, "-n", "12", "--out", "a.npz", "--seed", "5")[0] == 0
    held = record(tmp_path / "a.json")
    assert held["seed"] == 5 and held["samples"] == 12 and held["model_sha256"] == models.index()[NAME]["sha256"]
    assert 0 < held["effective_sample_size"] <= 12
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob("*.png"))  # --no-report, as the fixture calls it
    code, out, err = call("density", NAME, "a.npz", "--out", "d.csv", "--seed", "1", "--paths", "16")
    assert code == 0, err
    assert "12 structures" in out and record(tmp_path / "d.json")["paths"] == 16
    assert call("density", NAME, "a.npz", "--out", "d.npz", "--seed", "1", "--paths", "16")[0] == 0
    with np.load(tmp_path / "a.npz") as drawn, np.load(tmp_path / "d.npz") as found, open(tmp_path / "d.csv") as stream:
        rows = list(csv.DictReader(stream))
        for name in ("log_q", "energy", "log_weight"):
            assert np.array_equal(found[name], [float(row[name]) for row in rows])
        assert np.allclose(found["energy"], drawn["energies"], atol=0.05)
        assert np.allclose(found["log_weight"], -found["energy"] - found["log_q"])
        # log q over paths is an estimate of what the draw itself estimated.
        assert np.abs(found["log_weight"] - drawn["log_weights"]).mean() < 1.5


def test_a_chain_that_was_cut_off_is_the_chain(call, tmp_path, monkeypatch):
    """Between writing a segment and the state that counts it a process may die; nothing is lost, nothing is doubled."""
    pytest.importorskip("openmm")
    options = ["--md-steps", "10", "--proposals", "8", "--save", "1"]
    assert call("mc", NAME, "--blocks", "3", "--seed", "3", "--out", "whole", *options)[0] == 0
    save, saves = chains._save, []

    def dying(place, **arrays):
        saves.append(place.name)
        if saves == ["000000.npz", "state.npz", "000001.npz", "state.npz"]:
            raise KeyboardInterrupt
        save(place, **arrays)

    monkeypatch.setattr(chains, "_save", dying)
    code, _, err = call("mc", NAME, "--blocks", "3", "--seed", "3", "--out", "cut", *options)
    assert code == 130 and "interrupted" in err
    monkeypatch.setattr(chains, "_save", save)
    (tmp_path / "cut" / ".state.1.tmp.npz").write_bytes(b"half")
    assert call("mc", NAME, "--blocks", "2", "--out", "cut", *options)[0] == 0
    code, out, err = call("mc", NAME, "--blocks", "3", "--out", "cut", *options)
    assert code == 0 and "seed 3" in out, err
    for name in ("trajectory.xtc", "trajectory.pdb", "proposals.csv", "samples.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    assert not list((tmp_path / "cut").rglob(".*.tmp.*"))
    held = record(tmp_path / "cut" / "run.json")
    assert held["blocks"] == 3 and held["proposals_made"] == 24 and held["md_ps"] == pytest.approx(0.03)
    with open(tmp_path / "cut" / "proposals.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 24 and np.mean([int(row["accepted"]) for row in rows]) == pytest.approx(held["acceptance"])
    with FileLock(tmp_path / "cut" / "lock"):
        code, out, err = call("mc", NAME, "--blocks", "4", "--out", "cut", *options)
    assert code == 2 and "another process works on the chain" in err
    code, out, err = call("mc", NAME, "--blocks", "4", "--out", "cut", "--md-steps", "20", "--proposals", "8")
    assert code == 2 and "md_steps 10, not 20" in err


def test_a_path_leads_from_one_structure_to_the_other(call, tmp_path):
    pytest.importorskip("openmm")
    from dig_plugins.openmm import file_system, model_system, sample
    from dig_plugins.openmm.files import read_frames, write_frames

    system = model_system(NAME)
    ends = sample(NAME, 2, seed=4).positions
    for name, frame in zip(("start.pdb", "end.pdb"), ends, strict=True):
        write_frames(tmp_path / name, system.topology, frame[None])
    code, out, err = call("interpolate", NAME, "start.pdb", "end.pdb", "-n", "3", "--steps", "12", "--out", "p")
    assert code == 0, err
    held = record(tmp_path / "p" / "run.json")
    assert held["frames"] == 3 and np.allclose([held["energies"][0], held["energies"][-1]], held["energies_of_given_ends"], atol=0.5)
    assert (tmp_path / "p" / "path.xtc").is_file() and read_frames(tmp_path / "p" / "path.pdb", system.topology).shape == (1, 22, 3)
    given = file_system(tmp_path / "start.pdb", models.index()[NAME]["force_field"], 300)
    assert np.allclose(given.positions, ends[0], atol=1e-3)


def test_crystals_are_designed_into_a_directory(call, tmp_path):
    pytest.importorskip("pymatgen")
    code, out, err = call("design", "C6", "-n", "2", "--steps", "4", "--target", ":3", "--seed", "1", "--out", "d")
    assert code == 0, err
    held = record(tmp_path / "d" / "run.json")
    assert held["designs"] == 2 and held["seed"] == 1 and "gap" in held["targets"] and "2 designs" in out
    assert call("density", "carbon", "d/designs.cif", "--of", "C6", "--steps", "4", "--out", "q.csv")[0] == 0
    assert record(tmp_path / "q.json")["n"] == 2


def test_a_protein_is_trained_on_weighed_and_interpolated(call, tmp_path):
    """Two structures of eight residues and hardly any training: what counts is that files, seeds and records go along."""
    pytest.importorskip("mdtraj")
    import torch

    from dig_core.coordinates import Backbone
    from dig_core.system.protein import protein
    from dig_plugins.mdtraj import write_backbones

    descriptor, i = protein("MKGAVLPD"), torch.arange(8).double()
    line = torch.stack([3.6 * i, torch.cos(2 * i), torch.sin(2 * i)], -1)
    pos = torch.stack([line, line * torch.tensor([0.9, 1.0, 1.0])])
    pos = (pos - pos.mean(1, keepdim=True)) / 10
    geometry = Backbone().decode({"pos": pos, "rot": torch.zeros_like(pos)}, descriptor)
    write_backbones(tmp_path / "p.pdb", geometry, descriptor)
    train = ["train", "protein", "p.pdb", "--steps", "2", "--batch", "1", "--out", "t"]
    assert call(*train, "--seed", "4")[0] == 0
    held = record(tmp_path / "t" / "run.json")
    assert held["finished"] and held["seed"] == 4 and held["proteins"] == 1 and held["structures"] == [2]
    assert held["model_sha256"] == models.sha256(tmp_path / "t" / "model.safetensors")
    # The same command goes on, here with nothing left to do, and keeps its seed.
    assert call(*train)[0] == 0 and record(tmp_path / "t" / "run.json")["seed"] == 4
    code, out, err = call("density", "t/model.safetensors", "p.pdb", "--steps", "4", "--out", "d.csv")
    assert code == 0 and "2 structures" in out, err
    code, out, err = call("interpolate", "t/model.safetensors", "p.pdb", "p.pdb", "-n", "3", "--steps", "2", "--out", "path")
    assert code == 0, err
    held = record(tmp_path / "path" / "run.json")
    assert held["frames"] == 3 and held["sequence"] == "MKGAVLPD" and held["kind"] == "protein"
    code, out, _ = call("validate", "t/model.safetensors", "--steps", "4")
    assert code == 4 and "draws are whole" in out


def test_conformers_are_sampled_and_weighed(call, tmp_path):
    pytest.importorskip("rdkit")
    from dig_core.dig import Card, DiG
    from dig_core.training.molecule import internal_model
    from dig_plugins.rdkit import convert, internal_coordinates

    mol = convert.of_smiles("OO")
    coordinates = internal_coordinates(mol, convert.to_geometry(convert.embed(mol, 20, seed=1)), 300.0)
    card = Card(name="peroxide", temperature=300.0, energy="MMFF94s (RDKit)", steps=8)
    network = internal_model(coordinates, width=32, blocks=2)
    DiG(network, coordinates, convert.describe(mol), card).save(tmp_path / "p.safetensors")
    code, out, err = call("sample", "p.safetensors", "--of", "OO", "-n", "30", "--seed", "2", "--out", "c.sdf")
    assert code == 0 and "30 conformers" in out, err
    held = record(tmp_path / "c.json")
    assert held["kind"] == "conformers" and held["temperature_K"] == 300
    assert call("density", "p.safetensors", "c.sdf", "--of", "OO", "--out", "d.npz")[0] == 0
    energies = [float(text) for text in re.findall(r"<energy>.*\n(\S+)", (tmp_path / "c.sdf").read_text())]
    with np.load(tmp_path / "d.npz") as found:
        # kcal/mol over kT at 300 K; SDF holds 1e-4 Angstrom.
        assert np.allclose(found["energy"], np.array(energies) / 0.596161, atol=0.05)
    code, _, err = call("sample", "p.safetensors", "--of", "CO", "--out", "e.sdf")
    assert code == 2 and "atoms" in err


def test_adsorbates_are_weighed(call, tmp_path):
    pytest.importorskip("ase")
    from ase.build import fcc111

    fcc111("Cu", (2, 2, 2), vacuum=6).write(tmp_path / "slab.traj")
    code, _, err = call("adsorb", "slab.traj", "--adsorbate", "H", "--model", "adsorb-fcc111", "-n", "3", "--seed", "1", "--out", "run")
    assert code == 0, err
    record(tmp_path / "run" / "run.json")
    slab = ["--of", "slab.traj", "--adsorbate", "H", "--calculator", "emt", "--temperature", "500"]
    code, out, err = call("density", "adsorb-fcc111", "run/samples.extxyz", *slab, "--steps", "4", "--out", "d.csv")
    assert code == 0 and "3 structures" in out and "-E/kT - log q" in out, err
    assert record(tmp_path / "d.json")["temperature_K"] == 500


def test_models_are_pulled_and_used_by_name(call, tmp_path, monkeypatch):
    monkeypatch.setenv("DIG_PLUGINS_CACHE", str(tmp_path / "cache"))
    file = models.path("adsorb-fcc111")
    code, out, err = call("models", "pull", file.as_uri(), "--name", "mine")
    assert code == 0 and models.sha256(file) in out, err
    assert "mine" in call("models", "list")[1]
    code, out, _ = call("models", "show", "mine")
    assert code == 0 and json.loads(out)["registry"]["url"] == file.as_uri()
    code, out, err = call("models", "pull", file.as_uri(), "--name", "other", "--sha256", "0" * 64)
    assert code == 2 and "nothing was kept" in err
    assert call("models", "pull", "https://127.0.0.1:9/a.safetensors")[0] == 3


def test_doctor_says_what_is_here(call, tmp_path, monkeypatch):
    code, out, err = call("doctor", "--out", "d.json")
    assert code == 0, out
    held = json.loads((tmp_path / "d.json").read_text())
    assert held["problems"] == [] and held["timing"]["structures_per_second"] > 0 and set(held["engines"]) == set(tasks.machine.ENGINES)
    for name, numbers in held["platforms"].items():
        assert numbers["error_kJ_per_mol"] < 0.05, name
    # A model that was damaged, and an engine that is there but does not work, are problems.
    monkeypatch.setattr(models, "index", lambda: {"carbon": {**json.loads(json.dumps(INDEX["carbon"])), "sha256": "0"}})
    monkeypatch.setitem(tasks.machine.ENGINES, "ase", ("ase", "ase.nothing_of_that_name"))
    code, out, _ = call("doctor", "--no-timing")
    assert code == 3 and "'carbon'" in out and "ase.nothing_of_that_name" in out


INDEX = models.index()


# Wiring: what is parsed arrives ------------------------------------------------------------------------------------------

WIRES = {
    "train_openmm": (
        "train openmm --pdb a.pdb --forcefield b.xml c.xml --temperature 310 --frames f.xtc --budget 2h --out o --seed 7",
        {"pdb": Path("a.pdb"), "force_field": ["b.xml", "c.xml"], "temperature": 310, "frames": Path("f.xtc"), "budget": "2h"},
    ),
    "train_protein": (
        "train protein a.pdb b.xtc --structure s.pdb --chain B --model backbones --steps 5 --batch 2 --apart 3 --out o --seed 7",
        {"files": [Path("a.pdb"), Path("b.xtc")], "structure": Path("s.pdb"), "chain": "B", "model": "backbones", "steps": 5, "apart": 3},
    ),
    "train_molecule": (
        "train molecule CCO --temperature 310 --variant MMFF94 --budget 1h --out o --seed 7",
        {"molecule": "CCO", "temperature": 310, "variant": "MMFF94", "budget": "1h"},
    ),
    "train_adsorption": (
        "train adsorption s.traj --adsorbate CO --calculator emt --frames f.traj --model adsorb-general --temperature 310 "
        "--evaluations 9 --steps 5 --yielding --out o --seed 7",
        {"slab": Path("s.traj"), "adsorbate": "CO", "calculator": "emt", "frames": Path("f.traj"), "model": "adsorb-general",
         "temperature": 310, "evaluations": 9, "steps": 5, "yielding": True},
    ),
    "train_crystal": (
        "train crystal C8 --calculator emt --temperature 3000 --pressure 10 --evaluations 9 --steps 5 --out o --seed 7",
        {"composition": "C8", "calculator": "emt", "temperature": 3000, "pressure": 10, "evaluations": 9, "steps": 5},
    ),
    "validate": (
        "validate m.safetensors --of x.pdb --forcefield a.xml --forcefield b.xml --temperature 310 -n 500 --structures s.xtc --steps 5 "
        "--out o --seed 7",
        {"model": "m.safetensors", "given": tasks.Given("x.pdb", ("a.xml", "b.xml"), 310), "n": 500, "structures": Path("s.xtc")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIRES)
def test_what_is_parsed_arrives(name, call, monkeypatch):
    command, wanted = WIRES[name]
    signature, got = inspect.signature(getattr(tasks, name)), {}

    def taken(*arguments, **options):
        got.update(signature.bind(*arguments, **options).arguments)
        raise CheckpointError("enough")

    monkeypatch.setattr(tasks, name, taken, raising=False)
    assert call(*command.split())[0] == 2
    assert {key: got[key] for key in wanted} == wanted
    assert got["out"] == Path("o") and got["seed"] == 7


# Bad inputs ----------------------------------------------------------------------------------------------------------------

BAD = {
    "no such model": "density methane a.pdb",
    "no such structures": f"density {NAME} absent.pdb",
    "structures of something else": f"density {NAME} water.pdb",
    "garbage as PDB": f"density {NAME} garbage.pdb",
    "garbage as npz": f"density {NAME} garbage.npz",
    "kind of density": f"density {NAME} water.pdb --kind exact",
    "table": f"density {NAME} water.pdb --out a.xlsx",
    "crystals without a composition": "sample carbon",
    "composition": "sample carbon --of 8C!",
    "adsorbates have a verb": "sample adsorb-general",
    "no force field": f"sample {NAME} --of water.pdb",
    "unknown force field": f"sample {NAME} --of water.pdb --forcefield absent.xml",
    "force field that is none": f"sample {NAME} --of water.pdb --forcefield garbage.pdb",
    "another molecule": f"sample {NAME} --of water.pdb --forcefield amber99sbildn.xml --forcefield tip3p.xml",
    "ending of crystals": "sample carbon --of C6 --out a.xtc",
    "no blocks": f"mc {NAME} --blocks 0",
    "scheme": f"mc {NAME} --scheme gibbs",
    "chain of crystals": "mc carbon --of C6",
    "directory of something else": f"mc {NAME} --out full",
    "one structure is no path": f"interpolate {NAME} water.pdb water.pdb -n 1",
    "path into a full directory": f"interpolate {NAME} water.pdb water.pdb --out full",
    "path of crystals": "interpolate carbon water.pdb water.pdb --of C6",
    "target": "design C6 --target wide",
    "composition to design": "design C2.5",
    "elements": "design NaCl",
    "designs into a full directory": "design C6 --out full",
    "few proposals": f"validate {NAME} -n 10",
    "record": f"validate {NAME} --out a.txt",
    "slab": "train adsorption absent.traj --adsorbate H --calculator emt",
    "calculator": "train crystal C6 --calculator nothing --temperature 300",
    "SMILES": "train molecule C(",
    "budget": "train molecule CC --budget soon",
    "no structure to train on": "train openmm --pdb absent.pdb --forcefield a.xml --temperature 300",
    "no protein": "train protein absent.pdb",
    "water is no protein": "train protein water.pdb",
    "address": "models pull ftp://example.org/a.safetensors",
    "unknown name": "models pull methane",
}
WATER = """\
HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00           O
HETATM    2  H1  HOH A   1       0.957   0.000   0.000  1.00  0.00           H
HETATM    3  H2  HOH A   1      -0.240   0.927   0.000  1.00  0.00           H
END
"""


@pytest.mark.parametrize("command", BAD.values(), ids=list(BAD))
def test_bad_inputs_are_one_line_and_code_2(command, call, tmp_path, monkeypatch):
    for engine in ("openmm", "ase", "pymatgen", "mdtraj", "rdkit"):
        pytest.importorskip(engine)
    monkeypatch.setenv("DIG_PLUGINS_CACHE", str(tmp_path / "full"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    (tmp_path / "water.pdb").write_text(WATER)
    for name in ("garbage.pdb", "garbage.npz"):
        (tmp_path / name).write_bytes(b"\x00garbage\xff" * 30)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(*command.split())
    assert code == 2 and out == "", err
    assert err.startswith("dig-plugins: ") and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before, "something was begun"
