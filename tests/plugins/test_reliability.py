"""Damaged files of every engine, killed chains: an error that says so, or the right answer."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_core.system.protein import protein
from dig_core.types import Geometry
from dig_plugins.claim import claimed
from dig_plugins.models import cache
from dig_plugins.tasks import chains
from tests.core.mutations import json_mutated, mutated, survives

COUNTS = [15, pytest.param(int(os.environ.get("DIG_FUZZ", 2000)), marks=pytest.mark.slow)]
"""Damaged files a reader; the slow tests take as many as DIG_FUZZ says."""
ALA2 = Path(chains.__file__).parents[1] / "models" / "alanine-dipeptide.pdb"


@pytest.mark.parametrize("count", COUNTS)
def test_structures_of_openmm(count, tmp_path):
    pytest.importorskip("openmm")
    from dig_plugins.openmm.files import read_frames, read_pdb

    place, topology = tmp_path / "a.pdb", read_pdb(ALA2).topology
    place.write_bytes(ALA2.read_bytes())
    survives(lambda: read_frames(place, topology), place, count)
    place = tmp_path / "a.npz"
    np.savez(place, positions=np.random.default_rng(1).random((3, topology.getNumAtoms(), 3)))
    survives(lambda: read_frames(place, topology), place, count, same=np.array_equal)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["samples.npz", "run.json", "backbones.xtc"])
def test_ensembles_of_backbones(name, count, tmp_path):
    pytest.importorskip("mdtraj")
    from dig_plugins.mdtraj.ensemble import BackboneEnsemble, Counts

    descriptor = protein("AGS")
    positions = 3 * torch.randn(4, descriptor.n_atoms, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    index, counts = np.arange(4), Counts(*[1] * len(Counts._fields))
    made = BackboneEnsemble(Geometry(positions), descriptor, index, index > 0, counts, 5, np.zeros(4), {"radius": np.ones(4)})
    made.write(tmp_path / "x")
    survives(lambda: BackboneEnsemble.read(tmp_path / "x"), tmp_path / "x" / name, count, json_mutated if name == "run.json" else mutated)


@pytest.mark.parametrize("name", ["échantillons 世界", "a b/é.xtc", "é.dcd"])
def test_any_name_of_an_ensemble_will_do(name, tmp_path):
    pytest.importorskip("mdtraj")
    from dig_plugins.mdtraj.convert import read_positions
    from dig_plugins.mdtraj.ensemble import BackboneEnsemble, Counts

    descriptor, place = protein("AGS"), tmp_path / name
    positions = 3 * torch.randn(2, descriptor.n_atoms, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    BackboneEnsemble(Geometry(positions), descriptor, np.arange(2), np.ones(2, bool), Counts(*[2] * len(Counts._fields)), 5).write(place)
    assert torch.allclose(BackboneEnsemble.read(place).geometry.positions, positions, atol=6e-3)
    file = place if place.suffix else place / "backbones.xtc"
    assert np.allclose(read_positions(file, file.with_suffix(".pdb")), positions.numpy() / 10, atol=6e-4)


@pytest.mark.parametrize("count", COUNTS)
def test_structures_and_sites_of_ase(count, tmp_path):
    pytest.importorskip("ase")
    from ase.build import fcc111

    from dig_plugins.ase.adsorption import SiteSet
    from dig_plugins.ase.adsorption.ensemble import AdsorptionEnsemble
    from dig_plugins.ase.convert import read, write
    from tests.plugins.test_adsorption_sites import site_set

    for name in ("a.extxyz", "a.traj"):
        write(tmp_path / name, [fcc111("Pt", (1, 1, 2), vacuum=5.0)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            survives(lambda name=name: read(tmp_path / name), tmp_path / name, count)
    site_set([np.zeros(2)], probabilities=[1.0]).write(tmp_path / "a.json")
    survives(lambda: SiteSet.read(tmp_path / "a.json"), tmp_path / "a.json", count, json_mutated)
    with pytest.raises(ValueError, match="adsorb|ensemble"):
        AdsorptionEnsemble.read(tmp_path / "a.extxyz")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["a.cif", "a.extxyz", "a.json", "a.json.gz"])
def test_crystals_of_pymatgen(name, count, tmp_path):
    pytest.importorskip("pymatgen")
    from dig_plugins.pymatgen.designs import Designs
    from dig_plugins.pymatgen.files import read_structures
    from tests.plugins.known_crystals import diamond

    place = tmp_path / name
    Designs((diamond(),), np.array([True])).write(place)
    damage = json_mutated if name == "a.json" else mutated
    survives(lambda: (read_structures(place), Designs.read(place)), place, count, damage)


@pytest.mark.parametrize("count", COUNTS)
def test_gap_networks(count, tmp_path):
    pytest.importorskip("pymatgen")
    from dig_plugins.pymatgen.gap.learned import LearnedGap

    place = tmp_path / "gap.safetensors"
    LearnedGap.load().save(place)
    survives(lambda: LearnedGap.load(place).card, place, count, same=lambda one, other: one == other)


# What people bring: structures, trajectories, arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["a.pdb", "a.cif", "a.pdb.gz"])
def test_structures_of_proteins(name, count, tmp_path):
    pytest.importorskip("mdtraj")
    from dig_plugins.mdtraj import read_backbones
    from tests.plugins.test_mdtraj_backbones import MMCIF, lines, text

    place, content = tmp_path / name, text(lines("AGS"))
    if name == "a.cif":
        rows = [f"ATOM {kind} . {row[17:20]} A {r + 1} ? {row[30:54]} {r + 1} A 1" for (r, kind), row in lines("AGS").items()]
        content = MMCIF + "\n".join(rows) + "\n"
    place.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    survives(lambda: read_backbones(place), place, count)


@pytest.mark.parametrize("count", COUNTS)
def test_headers_of_trajectories(count, tmp_path):
    """MDTraj's reader in C would write beyond its memory."""
    pytest.importorskip("mdtraj")
    from dig_plugins.mdtraj import read_backbones, to_trajectory
    from tests.plugins.test_mdtraj_backbones import chain

    descriptor = protein("AGS")
    trajectory, place = to_trajectory(chain(descriptor, 3), descriptor), tmp_path / "a.xtc"
    trajectory.save(str(place))
    trajectory[0].save(str(tmp_path / "a.pdb"))

    def header(content: bytes, rng: np.random.Generator) -> bytes:
        """Of what is checked before: magic, atoms twice, precision, coding, size."""
        at = 4 * int(rng.choice([0, 1, 13, 14, 21, 22]))
        return content[:at] + int(rng.choice([-1, 0, 2**31 - 1])).to_bytes(4, "big", signed=True) + content[at + 4 :]

    survives(lambda: read_backbones(place, tmp_path / "a.pdb"), place, count, header)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.pt"])
def test_embeddings(name, count, tmp_path):
    pytest.importorskip("mdtraj")
    from dig_plugins.mdtraj import read_embeddings

    place, single = tmp_path / name, np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    if name == "a.npz":
        np.savez(place, single=single, pair=np.zeros((4, 4, 2), np.float32))
    elif name == "a.npy":
        np.save(place, single)
    else:
        torch.save({"label": "x", "representations": {6: torch.zeros(4, 6), 33: torch.from_numpy(single)}}, place)
    survives(lambda: read_embeddings(place), place, count)


@pytest.mark.parametrize("count", COUNTS)
def test_pockets_and_ligands(count, tmp_path):
    pytest.importorskip("rdkit")
    from rdkit import Chem

    from dig_plugins.rdkit import of_sdf
    from dig_plugins.rdkit.pockets import read_pocket
    from dig_plugins.tasks.makers import _records

    mol = Chem.AddHs(Chem.MolFromSequence("GH"), addResidueInfo=True)
    Chem.rdDistGeom.EmbedMolecule(mol, randomSeed=7)
    place = tmp_path / "a.pdb"
    place.write_text("\n".join(row for row in Chem.MolToPDBBlock(mol).splitlines() if row.startswith("ATOM")) + "\nEND\n")
    survives(lambda: read_pocket(place, mol), place, count)
    place = tmp_path / "a.sdf"
    place.write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    survives(lambda: (of_sdf(place), _records(mol, place)), place, count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_ensembles_and_images_of_adsorbates(name, count, tmp_path):
    pytest.importorskip("ase")
    from dig_plugins.ase.adsorption import read_images
    from dig_plugins.ase.adsorption.ensemble import AdsorptionEnsemble
    from tests.plugins.test_adsorption_sites import ensemble

    place = tmp_path / name
    ensemble(np.array([[0.0, 0.0, 14.0], [1.0, 1.0, 14.0]]), temperature=300.0, log_q=np.zeros(2)).write(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(lambda: (read_images(place), AdsorptionEnsemble.read(place)), place, count)


def test_images_of_more_atoms_than_lines_are_refused_at_once(tmp_path):
    """ASE reads as many lines as the number says, be they there or not."""
    pytest.importorskip("ase")
    pytest.importorskip("pymatgen")
    from dig_plugins.ase.convert import read
    from dig_plugins.pymatgen.files import read_structures

    place, image = tmp_path / "a.extxyz", '1\nLattice="3 0 0 0 3 0 0 0 3" pbc="T T T"\nC 0 0 0\n'
    for text, count in ((2 * image, 2), (image + "\n", 1)):
        place.write_text(text)
        assert len(read(place)) == len(read_structures(place)) == count
    for damaged in ("133717164502" + image[1:], image + "7" + image[1:]):
        place.write_text(damaged)
        for reader in (read, read_structures):
            with pytest.raises(ValueError, match="atoms does not fit into"):
                reader(place)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
def test_formulas_and_smiles(count, tmp_path):
    """Text that people type; molecules that such text happens to mean are made."""
    pytest.importorskip("rdkit")
    pytest.importorskip("pymatgen")
    from dig_plugins.ase.crystal import _numbers
    from dig_plugins.pymatgen.convert import atomic_numbers
    from dig_plugins.rdkit import of_smiles

    place = tmp_path / "typed"

    def typed(content: bytes, rng: np.random.Generator) -> bytes:
        text, letters = list(content.decode()), list("CHSiOnc()[]{}=#@/.0123456789+-*:% e\0\u00e9\u00b2")
        for _ in range(rng.integers(1, 4)):
            at, gone, come = int(rng.integers(1 + len(text))), int(rng.integers(2)), int(rng.integers(2))
            text[at : at + gone] = [str(rng.choice(letters))] * come
        return "".join(text).encode()

    for text, read in (("C8Si2(OH)3", atomic_numbers), ("C8Si2(OH)3", _numbers), ("C[C@H](N)C(=O)O", of_smiles)):
        place.write_text(text)
        survives(lambda read=read: read(place.read_text()), place, count, typed)


@pytest.mark.parametrize("count", COUNTS)
def test_seeds_of_trainings(count, tmp_path):
    from dig_plugins.tasks.trainings import _seed

    (tmp_path / "run.json").write_text(json.dumps({"seed": 3, "finished": True, "history": []}))
    survives(lambda: _seed(tmp_path, None), tmp_path / "run.json", count, json_mutated)


@pytest.mark.parametrize("count", COUNTS)
def test_chains(count, tmp_path):
    state = {"seed": np.uint64(3), "segments": 1, "platform": "CPU", "statistics": json.dumps({"proposed": 1}), "context": np.zeros(9)}
    chains._save(tmp_path / "state.npz", **state)
    survives(lambda: chains._state(tmp_path), tmp_path / "state.npz", count, same=lambda one, other: repr(one) == repr(other))
    (tmp_path / "segments").mkdir()
    chains._save(tmp_path / "segments" / "000000.npz", positions=np.zeros((2, 3, 3)), u=np.ones(2))
    survives(lambda: list(chains._segments(tmp_path)), tmp_path / "segments" / "000000.npz", count)
    about = {"model_sha256": "abc", "timestep_fs": 1.0, "seed": 3}

    def claim():
        with claimed(tmp_path, about, "chain"):
            pass

    claim()
    survives(claim, tmp_path / "settings.json", count, json_mutated)


@pytest.mark.parametrize("count", COUNTS)
def test_records_of_the_cache(count, tmp_path, monkeypatch):
    """What is not a record is no model: the cache is asked by every call, and must not stop them."""
    from dig_plugins.cli.registry import listed

    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    place, rng = tmp_path / "models" / "x.json", np.random.default_rng(1)
    place.parent.mkdir()
    place.with_suffix(".safetensors").write_bytes(b"x")
    whole = json.dumps({"url": "https://a/x.safetensors", "sha256": cache.digest(place.with_suffix(".safetensors")), "size": 1}).encode()
    found = 0
    for _ in range(count):
        place.write_bytes(json_mutated(whole, rng))
        found += sum(cache.intact(record) for record in cache.cached().values())
        listed()
    assert found < count


CHAIN = {"blocks": 4, "md_steps": 10, "proposals": 8, "save": 1, "seed": 3, "progress": False, "report": False}


def chain_in(place: Path) -> None:
    chains.mc("alanine-dipeptide", place, **CHAIN)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
@pytest.mark.parametrize("wanted", [int(os.environ.get("DIG_KILLS", 100))])
def test_killed_chains_go_on_as_if_nothing_had_been(wanted, tmp_path):
    """kill -9 at any moment: the files are, number by number, those of the chain that was left alone."""
    pytest.importorskip("openmm")
    # Forks of a server that has imported what takes long and used nothing: one that has used OpenMM holds threads that are gone.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "dig_plugins.openmm"])

    def files(place: Path) -> tuple[bytes, bytes]:
        return (place / "proposals.csv").read_bytes(), (place / "trajectory.xtc").read_bytes()

    def killed(place: Path, after: float | None) -> bool:
        child = processes.Process(target=chain_in, args=(place,))
        child.start()
        child.join(after)
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        return child.exitcode != 0

    assert not killed(tmp_path / "first", None)  # which starts the server
    began = time.monotonic()
    assert not killed(tmp_path / "alone", None)
    seconds, rng, kills, trial = time.monotonic() - began, np.random.default_rng(1), 0, 0
    while kills < wanted:
        place, after, trial = tmp_path / f"chain {trial} é", seconds, trial + 1
        while killed(place, rng.uniform(0.1, 1.0) * after):
            kills, after = kills + 1, 1.3 * after  # a machine that is busier by now has to start, too
        assert files(place) == files(tmp_path / "alone")
    print(f"{kills} kills in {trial} chains")
