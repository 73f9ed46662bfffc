"""Observables of peptides: two ways to the same numbers, known structures, populations of what is known to be there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openmm")
from openmm import app, unit

from dig_plugins import models
from dig_plugins.openmm.observables import backbone_dihedrals, dipeptide_observables, peptide_observables

FOLDER = Path(models.__file__).parent


def structure(name: str) -> tuple[app.Topology, np.ndarray]:
    pdb = app.PDBFile(str(FOLDER / f"{name}.pdb"))
    return pdb.topology, np.asarray(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))


def test_the_dipeptide_is_seen_the_same_in_general():
    topology, positions = structure("alanine-dipeptide")
    frames = positions + 0.02 * np.random.default_rng(1).normal(size=(20, *positions.shape))
    general, own = peptide_observables(topology, frames), dipeptide_observables(topology, frames)
    pairs = {"bond N-CA 1": "bond ALA.N-ALA.CA", "angle N-CA-C 1": "angle ALA.N-ALA.CA-ALA.C", "sin psi 1": "sin psi"}
    pairs |= {"region left 1": "region left", "radius of gyration": "radius of gyration", "end to end": "end to end"}
    for name, known in pairs.items():
        assert np.array_equal(general[name], own[known]), name


@pytest.mark.parametrize(("name", "residues"), [("alanine-dipeptide", 1), ("alanine-tetrapeptide", 3), ("proline-dipeptide", 1)])
def test_every_residue_is_seen_and_more_than_twenty_things_in_all(name, residues):
    topology, positions = structure(name)
    found = peptide_observables(topology, positions[None])
    assert len(found) > 20 and all(x.shape == (1,) for x in found.values())
    assert sum(key.startswith("cos phi") for key in found) == residues
    assert sum(key.startswith("cis") for key in found) == residues + 1


def test_cis_and_puckers_of_a_proline_are_told_apart():
    """The structure beside the models is trans; turning everything before the peptide bond by half a turn makes it cis."""
    topology, positions = structure("proline-dipeptide")
    at = {(a.residue.name, a.name): a.index for a in topology.atoms()}
    c, n = positions[at["ACE", "C"]], positions[at["PRO", "N"]]
    axis = (n - c) / np.linalg.norm(n - c)
    turned = positions.copy()
    moved = [a.index for a in topology.atoms() if a.residue.name == "ACE"]
    arms = positions[moved] - c
    turned[moved] = c + 2 * (arms @ axis)[:, None] * axis - arms
    found = peptide_observables(topology, np.stack([positions, turned, positions * [1, 1, -1]]))
    assert found["cis PRO 2"].tolist() == [0, 1, 0] and found["cis NME 3"].tolist() == [0, 0, 0]
    down = found["pucker down PRO 2"]
    assert down[0] == down[1] != down[2]
    assert np.cos(backbone_dihedrals(topology).measure(positions[None])[0][0, 0]) == pytest.approx(found["cos phi 1"][0])
