"""Proteins in and out of files: what comes back, what is left out with a note, what is refused and by which words."""

from __future__ import annotations

import gzip
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

pytest.importorskip("mdtraj")

import mdtraj

from dig_core.coordinates import Backbone
from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.system.protein import crop, protein, residues
from dig_core.types import Geometry
from dig_plugins.mdtraj import (
    match,
    of_trajectory,
    read_backbones,
    read_embeddings,
    to_trajectory,
    topology,
    write_backbones,
)

THREE = {"A": "ALA", "G": "GLY", "S": "SER", "P": "PRO", "H": "HIS", "K": "LYS"}
SEQUENCE = "AGSPHKA"


def chain(descriptor, n=1, seed=0):
    """(n, A, 3) Angstrom: residue after residue bonded with ideal peptides, torsions about those of a strand."""
    known, rng = residues(descriptor), np.random.default_rng(seed)
    frames = np.empty((n, descriptor.n_atoms, 3))
    for frame in frames:
        trace = [np.array([0.0, 1.0, 0.3]), np.array([0.0, 0.0, 0.0]), np.array([1.4, 0.4, 0.0])]
        places = []
        for _ in known.kind:
            turn = rng.normal(0.0, 10.0, 3) + [135.0, 180.0, -120.0]
            for length, angle, torsion in ((1.329, 117.0, turn[0]), (1.458, 121.7, turn[1]), (1.525, 111.0, turn[2])):
                trace.append(follow(*trace[-3:], length, angle, torsion))
            places.append(np.stack(trace[-3:]))
        filled = np.full((len(known.kind), 5, 3), np.nan)
        filled[:, :3] = places
        flat = torch.from_numpy(filled)[known.atoms >= 0][None]
        state, _ = Backbone().encode(Geometry(flat), descriptor)
        frame[:] = Backbone().decode(state, descriptor).positions[0]
    return Geometry(torch.from_numpy(frames))


def follow(a, b, c, length, angle, torsion):
    """The point at ``length`` from c, by its angle with b and its torsion about b-c, in degrees."""
    angle, torsion = np.radians(angle), np.radians(torsion)
    x = (c - b) / np.linalg.norm(c - b)
    z = np.cross(b - a, x)
    z /= np.linalg.norm(z)
    return c + length * (-np.cos(angle) * x + np.sin(angle) * (np.cos(torsion) * np.cross(z, x) + np.sin(torsion) * z))


def line(name, residue, number, xyz, letter="A", *, alternate="", insertion="", occupancy=1.0, record="ATOM", element=None):
    x, y, z = xyz
    return (
        f"{record:<6s}{1:5d}  {name:<3s}{alternate or ' ':1s}{residue:<4s}{letter:1s}{number:>4}{insertion or ' ':1s}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{0:6.2f}          {element or name[0]:>2s}\n"
    )


def lines(sequence=SEQUENCE, numbers=None, letter="A", seed=0, shift=0.0, **names):
    """One line an atom, (residue index, name) -> line."""
    descriptor = protein(sequence)
    known, found = residues(descriptor), OrderedDict()
    positions = chain(descriptor, seed=seed).positions[0].numpy() + shift
    numbers = numbers or range(1, len(sequence) + 1)
    for r, number in enumerate(numbers):
        for name, index in zip(("N", "CA", "C", "O", "CB"), known.atoms[r].tolist(), strict=True):
            if index >= 0:
                found[r, name] = line(name, names.get(f"r{r}", THREE[sequence[r]]), number, positions[index], letter)
    return found


def text(found):
    return "".join(found.values()) + "END\n"


@pytest.fixture
def write(tmp_path):
    def put(content, name="x.pdb"):
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return put


def spoken(backbones):
    return " ".join(backbones.notes)


# Round trips


@pytest.mark.parametrize(("ending", "precision"), [(".pdb", 6e-4), (".xtc", 6e-3), (".dcd", 1e-5), (".h5", 1e-5)])
def test_frames_come_back(tmp_path, ending, precision):
    """To the precision of the format, with the sequence, numbers and chains, and glycine without CB."""
    if ending == ".h5":
        pytest.importorskip("tables")
    descriptor = protein("AGSPHKAAGK", numbers=[-3, -2, -1, 0, 1, 5, 6, 1, 2, 3], chains=[0] * 7 + [1] * 3)
    geometry = Geometry(torch.cat([chain(descriptor, 3, seed).positions + 5.0 * seed for seed in (1, 2)]))
    path = tmp_path / f"x{ending}"
    write_backbones(path, geometry, descriptor)
    alone = ending in (".pdb", ".h5")
    back = read_backbones(path, None if alone else tmp_path / "x.pdb")
    torch.testing.assert_close(back.geometry.positions, geometry.positions, atol=precision, rtol=0)
    assert torch.equal(back.descriptor.node, descriptor.node) and torch.equal(back.descriptor.bonds, descriptor.bonds)
    assert back.labels[0] == "A:-3" and back.labels[-1] == "B:3"
    assert {file.name for file in tmp_path.iterdir()} == {path.name if alone else "x.pdb", path.name}


@pytest.mark.parametrize("ending", [".pdb", ".cif", ".gro", ".xtc"])
def test_what_mdtraj_writes_is_read(tmp_path, ending):
    """And a trajectory in memory is the same as one in a file."""
    descriptor = protein(SEQUENCE, numbers=range(4, 11))
    geometry = chain(descriptor, 2)
    trajectory = to_trajectory(geometry, descriptor)
    path = tmp_path / f"x{ending}"
    if ending == ".cif" and not hasattr(trajectory, "save_cif"):
        pytest.skip("MDTraj writes mmCIF since 1.11")
    trajectory.save_cif(str(path), keepIds=True) if ending == ".cif" else trajectory.save(str(path))
    back = read_backbones(path, trajectory.topology if ending == ".xtc" else None)
    torch.testing.assert_close(back.geometry.positions, geometry.positions, atol=6e-3, rtol=0)
    assert torch.equal(back.descriptor.node, descriptor.node)
    inside = of_trajectory(trajectory)
    torch.testing.assert_close(inside.geometry.positions, geometry.positions, atol=1e-5, rtol=0)
    assert torch.equal(inside.descriptor.node, descriptor.node)


def test_mdtraj_reads_what_is_written(tmp_path):
    descriptor = protein("AGSKA", numbers=[1, 2, 3, 1, 2], chains=[0, 0, 0, 1, 1])
    geometry = chain(descriptor, 2)
    write_backbones(tmp_path / "x.dcd", geometry, descriptor)
    found = mdtraj.load(str(tmp_path / "x.dcd"), top=str(tmp_path / "x.pdb"))
    np.testing.assert_allclose(10 * found.xyz, geometry.positions.numpy(), atol=1e-4)
    names = [(str(atom.residue.name), atom.residue.resSeq, atom.name) for atom in found.topology.atoms]
    assert names == [(str(atom.residue.name), atom.residue.resSeq, atom.name) for atom in topology(descriptor).atoms]
    assert [chain.chain_id for chain in found.topology.chains] == ["A", "B"]
    assert {frozenset((a.index, b.index)) for a, b in topology(descriptor).bonds} == {
        frozenset(bond) for bond in descriptor.bonds.tolist()
    }


def test_frames_of_a_file_come_back_from_their_state(tmp_path):
    """decode(encode(frames)) keeps N, CA and C of ideal residues up to the centroid, after a file in between."""
    descriptor = protein(SEQUENCE)
    write_backbones(tmp_path / "x.dcd", chain(descriptor, 4), descriptor)
    back = read_backbones(tmp_path / "x.dcd", tmp_path / "x.pdb")
    coordinates = Backbone()
    state, _ = coordinates.encode(back.geometry, back.descriptor)
    found, alpha = coordinates.decode(state, back.descriptor).positions, residues(descriptor).atoms[:, 1]
    given = back.geometry.positions - back.geometry.positions[:, alpha].mean(1, keepdim=True)
    torch.testing.assert_close(found, given, atol=1e-4, rtol=0)


def test_compressed_files_are_read(tmp_path):
    (tmp_path / "x.pdb.gz").write_bytes(gzip.compress(text(lines()).encode()))
    assert read_backbones(tmp_path / "x.pdb.gz").geometry.positions.shape == (1, 34, 3)


def test_stride_takes_every_which_frame(tmp_path):
    descriptor = protein("AAA")
    write_backbones(tmp_path / "x.xtc", chain(descriptor, 7), descriptor)
    write_backbones(tmp_path / "y.pdb", chain(descriptor, 7), descriptor)
    to_trajectory(chain(descriptor, 7), descriptor).save_trr(str(tmp_path / "z.trr"))
    for arguments in ((tmp_path / "x.xtc", tmp_path / "x.pdb"), (tmp_path / "y.pdb",), (tmp_path / "z.trr", tmp_path / "y.pdb")):
        every = read_backbones(*arguments).geometry.positions
        torch.testing.assert_close(read_backbones(*arguments, stride=3).geometry.positions, every[::3])
    with pytest.raises(IncompatibleError, match="stride"):
        read_backbones(tmp_path / "y.pdb", stride=0)


# What is left out or mended


def test_what_is_no_backbone_is_left_out_and_noted(write):
    found = lines()
    extra = [
        line("H", "ALA", 1, (9, 9, 9)),
        line("CG", "HIS", 5, (9, 9, 8)),
        line("C", "ACE", 0, (9, 9, 7)),
        line("N", "NME", 8, (9, 9, 7)),
        "TER\n",
        line("N", "GLY", 90, (20, 0, 0), record="HETATM") + line("CA", "GLY", 90, (21, 0, 0), record="HETATM"),
        line("C", "GLY", 90, (21, 1, 0), record="HETATM"),
        *[line("O", "HOH", 100 + k, (30, k, 0), record="HETATM") for k in range(3)],
        line("NA", "NA", 200, (40, 0, 0), record="HETATM", element="NA"),
        line("C1", "ADP", 201, (50, 0, 0), record="HETATM") + line("C2", "ADP", 201, (51, 0, 0), record="HETATM"),
    ]
    plain, mixed = read_backbones(write(text(found))), read_backbones(write("".join(found.values()) + "".join(extra), "y.pdb"))
    torch.testing.assert_close(mixed.geometry.positions, plain.geometry.positions)
    assert not plain.notes
    for words in ("1 hydrogen", "ACE 0", "NME 8", "GLY 90", "3 waters", "1 ion, NA", "ADP 201", "1 other atom"):
        assert words in spoken(mixed), words


def test_missing_atoms_are_rebuilt_and_noted(write):
    """Where O and CB of ideal residues were, wherever the structure stands."""
    whole, found = read_backbones(write(text(lines(shift=20.0)))), lines(shift=20.0)
    for key in [(2, "O"), (4, "CB"), (6, "O")]:
        del found[key]
    back = read_backbones(write(text(found), "y.pdb"))
    atoms = residues(back.descriptor).atoms
    error = (back.geometry.positions - whole.geometry.positions)[0].norm(dim=-1)
    assert float(error.max()) < 5e-3 and float(error[atoms[2, 3]]) > 0
    assert "O is built by ideal geometry: SER 3 of chain A, ALA 7 of chain A" in spoken(back)
    assert "CB is built by ideal geometry: HIS 5 of chain A" in spoken(back)


def test_residues_without_a_frame_are_a_gap(write):
    found = lines()
    del found[3, "N"]
    back = read_backbones(write(text(found)))
    assert residues(back.descriptor).number.tolist() == [1, 2, 3, 5, 6, 7]
    assert residues(back.descriptor).follows().tolist() == [True, True, False, True, True]
    assert "without N, CA or C: PRO 4" in spoken(back) and "1 between SER 3 of chain A and HIS 5" in spoken(back)


@pytest.mark.parametrize(("occupancies", "expected"), [((0.3, 0.7), "B"), ((0.5, 0.5), "A"), ((0.6, 0.4), "A")])
def test_of_alternate_locations_one_is_taken(write, occupancies, expected):
    found, places = lines(), {"A": 0.3, "B": -0.3}
    place = np.array([float(found[4, "CB"][k : k + 8]) for k in (30, 38, 46)])
    found[4, "CB"] = "".join(
        line("CB", "HIS", 5, place + places[which], alternate=which, occupancy=share)
        for which, share in zip("AB", occupancies, strict=True)
    )
    back = read_backbones(write(text(found)))
    kept = back.geometry.positions[0, residues(back.descriptor).atoms[4, 4]].numpy()
    np.testing.assert_allclose(kept, place + places[expected], atol=1e-3)
    assert "alternate locations" in spoken(back) and "HIS 5" in spoken(back)


@pytest.mark.parametrize(
    ("name", "replace", "letter"),
    [("MSE", None, "M"), ("HSD", None, "H"), ("HIP", None, "H"), ("CYX", None, "C"), ("ASH", None, "D"), ("SEP", {"SEP": "SER"}, "S")],
)
def test_names_that_mean_a_standard_residue(write, name, replace, letter):
    back = read_backbones(write(text(lines(r2=name))), replace=replace)
    assert "ACDEFGHIKLMNPQRSTVWY"[residues(back.descriptor).kind[2]] == letter
    assert f"{name} is read as" in spoken(back)


def test_a_residue_can_be_left_out(write):
    back = read_backbones(write(text(lines(r2="SEP"))), replace={"SEP": None})
    assert residues(back.descriptor).number.tolist() == [1, 2, 4, 5, 6, 7]
    assert "as asked: SEP 3 of chain A" in spoken(back)


def test_numbers_and_chains_are_the_files(write):
    content = text(lines(numbers=[1, 2, 3, 4, 9, 10, 11])).replace("END\n", "TER\n") + text(lines("AAA", letter="C", shift=40.0))
    back = read_backbones(write(content))
    known = residues(back.descriptor)
    assert known.number.tolist() == [1, 2, 3, 4, 9, 10, 11, 1, 2, 3] and known.chain.tolist() == [0] * 7 + [1] * 3
    assert "0 is A, 1 is C" in spoken(back) and "bonded though numbers" in spoken(back)
    for chosen in ("C", 1):
        alone = read_backbones(write(content), chain=chosen)
        torch.testing.assert_close(alone.geometry.positions, back.geometry.positions[:, -15:])
        assert residues(alone.descriptor).chain.tolist() == [0] * 3


def test_numbers_that_fall_begin_a_chain(write):
    content = text(lines("AAA", letter=" ")).replace("END\n", "") + text(lines("GGG", letter=" ", shift=40.0))
    back = read_backbones(write(content))
    assert residues(back.descriptor).chain.tolist() == [0, 0, 0, 1, 1, 1] and "numbers fall from ALA 3 to GLY 1" in spoken(back)


@pytest.mark.parametrize("end", ["TER\n", line("OXT", "ALA", 3, (9, 9, 9), " ")])
def test_chains_without_letters_end_where_the_file_says(write, end):
    """As files of Amber have them: numbers that go on, an end or the last oxygen between the molecules."""
    content = "".join(lines("AAA", letter=" ").values()) + end + text(lines("GGG", [4, 5, 6], letter=" ", shift=40.0))
    back = read_backbones(write(content))
    assert residues(back.descriptor).chain.tolist() == [0, 0, 0, 1, 1, 1]
    assert read_backbones(write(content), chain=1).labels == ("4", "5", "6")


def test_modified_residues_of_a_chain_stay_in_it(write):
    """Though their records are those of ligands."""
    content = "".join(row if r != 2 else row.replace("ATOM  ", "HETATM") for (r, _), row in lines(r2="MSE").items())
    assert len(read_backbones(write(content + "TER\n")).labels) == 7


def test_insertion_codes_are_counted_on(write):
    """Bonded neighbours follow each other, whatever the code; the labels keep what the file says."""
    codes = [(1, " "), (2, " "), (2, "A"), (2, "B"), (3, " "), (4, " "), (6, " ")]
    rows = [(r, row[:22] + "{:4d}{}".format(*codes[r]) + row[27:]) for (r, _), row in lines().items()]
    back = read_backbones(write("".join(row for _, row in rows)))
    assert residues(back.descriptor).number.tolist() == list(range(1, 8))
    assert back.labels == ("A:1", "A:2", "A:2A", "A:2B", "A:3", "A:4", "A:6")
    assert "insertion codes" in spoken(back) and "A:6 is 7" in spoken(back)
    apart = read_backbones(write("".join(row if r < 3 else row[:30] + f"{float(row[30:38]) + 30:8.3f}" + row[38:] for r, row in rows)))
    assert residues(apart.descriptor).number.tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert "too far apart" not in spoken(back) and "SER 2A of chain A and PRO 2B of chain A" in spoken(apart)


def test_gaps_that_numbers_hide_are_named(write):
    content = "".join(row if r < 4 else row[:30] + f"{float(row[30:38]) + 30:8.3f}" + row[38:] for (r, _), row in lines().items())
    back = read_backbones(write(content))
    assert "hide a gap" in spoken(back) and "PRO 4 of chain A and HIS 5 of chain A" in spoken(back)
    assert "SER 3" not in spoken(back)


def test_models_may_differ_in_atoms_not_in_residues(write):
    one, two, three = lines(seed=1), lines(seed=2), lines(seed=3)
    one[0, "H"] = line("H", "ALA", 1, (9, 9, 9))
    del two[0, "CB"]
    models = [f"MODEL     {k:4d}\n" + "".join(rows.values()) + "ENDMDL\n" for k, rows in enumerate((one, two), 1)]
    back = read_backbones(write("".join(models)))
    assert back.geometry.positions.shape == (2, 34, 3) and "CB is built by ideal geometry: ALA 1" in spoken(back)
    for key in [key for key in three if key[0] == 6]:
        del three[key]
    with pytest.raises(IncompatibleError, match="model 1 has 7 residues and model 3 has 6"):
        read_backbones(write("".join(models) + "MODEL        3\n" + text(three)))


def test_chains_that_a_periodic_box_cuts_are_put_together():
    """Whatever cell the atoms are moved by, in a triclinic box too; whole frames stay as they are."""
    descriptor = protein("AGSPHKAAGK", numbers=[*range(1, 8), *range(1, 4)], chains=[0] * 7 + [1] * 3)
    geometry = chain(descriptor, 5)
    cell = torch.tensor([[40.0, 0.0, 0.0], [10.0, 38.0, 0.0], [-8.0, 5.0, 36.0]], dtype=torch.float64).expand(5, 3, 3)
    turns = torch.randint(-1, 2, (5, descriptor.n_atoms, 3), generator=torch.Generator().manual_seed(3)).double()
    turns[:, residues(descriptor).atoms[[0, 7], 1]] = 0
    turns[4] = 0
    cut = Geometry(geometry.positions + torch.einsum("fai,fij->faj", turns, cell), cell)
    back = of_trajectory(to_trajectory(cut, descriptor))
    torch.testing.assert_close(back.geometry.positions, geometry.positions, atol=1e-4, rtol=0)
    assert "4 of 5 frames" in spoken(back)
    with pytest.raises(IncompatibleError, match="too far apart for bonds in frame 0.*image the trajectory"):
        of_trajectory(to_trajectory(Geometry(cut.positions), descriptor))


MMCIF = """data_X
_entry.id X
_struct.title
;a title of several lines
loop_ that is none
;
loop_
_atom_site.group_PDB
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.auth_seq_id
_atom_site.auth_asym_id
_atom_site.pdbx_PDB_model_num
"""


def test_mmcif_has_what_pdb_has(write):
    """Numbers and chains of the authors, several models, molecules that are no part of the chain, quoted names."""
    rows = []
    for model in (1, 2):
        for (r, name), row in lines(seed=model).items():
            rows.append(f"ATOM {name} . {row[17:20]} A {r + 1} ? {row[30:54]} {r + 50} Z {model}")
        rows += [f"HETATM {name} . GLY B . ? 30 {k} 0 90 Z {model}" for k, name in enumerate(("N", "CA", "C"))]
        rows.append(f"HETATM \"O5'\" . ADP C . ? 30 30 0 91 Z {model}")
    cif = read_backbones(write(MMCIF + "\n".join(rows) + "\n#\nloop_\n_other.thing\n1\n", "x.cif"))
    for k, seed in enumerate((1, 2)):
        torch.testing.assert_close(cif.geometry.positions[k], read_backbones(write(text(lines(seed=seed)))).geometry.positions[0])
    assert residues(cif.descriptor).number.tolist() == list(range(50, 57)) and cif.labels[0] == "Z:50"
    assert "free amino acids: GLY 90" in spoken(cif)


# What is refused


def broken(kind):
    found = lines()
    if kind == "unknown":
        return text(lines(r2="SEP"))
    if kind == "not finite":
        return text(found).replace(found[3, "CA"][30:38], "     nan", 1)
    if kind == "no numbers":
        return text(found).replace(found[3, "CA"][30:38], "********", 1)
    if kind == "alphas":
        return "".join(row for (_, name), row in found.items() if name == "CA")
    if kind == "one place":
        return "".join(row[:30] + f"{0:8.3f}" * 3 + row[54:] if r == 3 else row for (r, _), row in found.items())
    if kind == "hand":
        n, alpha, carbon, beta = (
            np.array([float(found[4, name][k : k + 8]) for k in (30, 38, 46)]) for name in ("N", "CA", "C", "CB")
        )
        normal = np.cross(n - alpha, carbon - alpha)
        beta = beta - 2 * (beta - alpha) @ normal / (normal @ normal) * normal
        found[4, "CB"] = line("CB", "HIS", 5, beta)
        return text(found)
    if kind == "mirror":
        return "".join(row[:30] + f"{-float(row[30:38]):8.3f}" + row[38:] for row in found.values())
    if kind == "waters":
        return line("O", "HOH", 1, (0, 0, 0))
    return ""


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("unknown", UnsupportedError, 'SEP 3 of chain A.*replace={"SEP": "SER"}.*leave it out'),
        ("not finite", StateError, "CA of PRO 4 of chain A.*frame 0"),
        ("no numbers", IncompatibleError, "line 16.*columns 31 to 54"),
        ("alphas", IncompatibleError, "only C-alphas.*N, CA, C"),
        ("one place", IncompatibleError, "PRO 4 of chain A.*one place"),
        ("hand", UnsupportedError, "HIS 5 of chain A is a D-amino acid"),
        ("mirror", UnsupportedError, "D-amino acid.*mirror image"),
        ("waters", IncompatibleError, "no residue with N, CA and C; it has HOH"),
        ("empty", IncompatibleError, "no atoms"),
    ],
)
def test_what_cannot_be_read_is_named(write, kind, error, words):
    with pytest.raises(error, match=words):
        read_backbones(write(broken(kind)))


def test_chains_that_are_not_there_are_named(write):
    for chain_ in ("B", 1):
        with pytest.raises(IncompatibleError, match=rf"no chain {chain_!r}.*0 \(A\)"):
            read_backbones(write(text(lines())), chain=chain_)


def test_an_unknown_residue_in_another_chain_is_no_matter(write):
    content = text(lines()).replace("END\n", "") + text(lines("AAA", letter="B", shift=40.0, r1="SEP"))
    assert len(read_backbones(write(content), chain="A").labels) == 7
    with pytest.raises(UnsupportedError, match="SEP 2 of chain B"):
        read_backbones(write(content))


def test_a_trajectory_needs_the_structure_of_its_atoms(tmp_path, write):
    descriptor = protein("AAA")
    write_backbones(tmp_path / "x.xtc", chain(descriptor, 2), descriptor)
    with pytest.raises(IncompatibleError, match=r"structure='.*x\.pdb'"):
        read_backbones(tmp_path / "x.xtc")
    with pytest.raises(IncompatibleError, match="15 atoms in a frame and its structure 34"):
        read_backbones(tmp_path / "x.xtc", write(text(lines()), "y.pdb"))
    with pytest.raises(IncompatibleError, match="no file"):
        read_backbones(tmp_path / "gone.xtc", tmp_path / "x.pdb")
    (tmp_path / "z.xtc").write_bytes(b"nothing")
    with pytest.raises(IncompatibleError, match=r"z\.xtc cannot be read"):
        read_backbones(tmp_path / "z.xtc", tmp_path / "x.pdb")
    (tmp_path / "x.docx").write_bytes(b"nothing")
    with pytest.raises(UnsupportedError, match="no trajectory that MDTraj reads"):
        read_backbones(tmp_path / "x.docx", tmp_path / "x.pdb")


def test_replacements_must_be_standard(write):
    with pytest.raises(IncompatibleError, match="'XYZ'.*expected one of ALA"):
        read_backbones(write(text(lines(r2="SEP"))), replace={"SEP": "XYZ"})


# Matching


def test_files_match_one_descriptor(write):
    """Whatever the order of the chains; what differs is named."""
    parts = [text(lines("AAA", letter="A", seed=1)), text(lines("GSK", letter="B", seed=2, shift=40.0))]
    back = read_backbones(write("".join(parts).replace("END\n", "")))
    wanted = protein("GSKAAA", numbers=[1, 2, 3] * 2, chains=[1] * 3 + [0] * 3)
    found = match(back, wanted)
    assert found.descriptor is wanted and found.labels == ("B:1", "B:2", "B:3", "A:1", "A:2", "A:3")
    torch.testing.assert_close(found.geometry.positions, back.geometry.positions.roll(14, 1))
    with pytest.raises(IncompatibleError, match="expected ALA 2 of chain 1, got SER"):
        match(back, protein("GAKAAA", numbers=[1, 2, 3] * 2, chains=[1] * 3 + [0] * 3))
    with pytest.raises(IncompatibleError, match="expected ALA 4 of chain 0, which the frames have not"):
        match(back, protein("AAAA"))
    few = crop(wanted, torch.tensor([0, 1]))
    with pytest.raises(IncompatibleError, match="ALA 1 of chain 0.*leave=True"):
        match(back, few)
    assert match(back, few, leave=True).geometry.positions.shape == (1, 9, 3)


# Writing


def test_a_structure_in_the_way_stays(tmp_path, write):
    descriptor, foreign = protein("AAA"), write(text(lines()))
    with pytest.raises(IncompatibleError, match="in the way"):
        write_backbones(tmp_path / "x.xtc", chain(descriptor), descriptor)
    assert foreign.read_text() == text(lines()) and len(list(tmp_path.iterdir())) == 1
    foreign.unlink()
    for n in (2, 3):
        write_backbones(tmp_path / "x.xtc", chain(descriptor, n), descriptor)
        assert len(read_backbones(tmp_path / "x.xtc", tmp_path / "x.pdb").geometry.positions) == n


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("x.docx", {}, UnsupportedError, r"\.xtc, \.dcd, \.h5, \.pdb"),
        ("x.pdb", {"scale": float("nan")}, StateError, "not finite"),
        ("x.pdb", {"scale": 1e5}, UnsupportedError, "coordinates"),
        ("x.pdb", {"numbers": [1, 2, 10000]}, UnsupportedError, "10000"),
        ("x.xtc", {"drop": 1}, IncompatibleError, r"\(F, 15, 3\)"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(tmp_path, name, change, error, words):
    descriptor = protein("AAA", numbers=change.get("numbers"))
    positions = chain(descriptor).positions[:, change.get("drop", 0) :] * change.get("scale", 1.0)
    with pytest.raises(error, match=words):
        write_backbones(tmp_path / name, Geometry(positions), descriptor)
    assert not list(tmp_path.iterdir())


# Embeddings


def arrays(n=4):
    rng = np.random.default_rng(2)
    return rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(n, n, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["plain", "group", "batch", "half"])
def test_archives_hold_embeddings(tmp_path, kind):
    single, pair = arrays()
    prefix, lead = "representations/" if kind == "group" else "", (None,) if kind == "batch" else ()
    np.savez(tmp_path / "x.npz", **{f"{prefix}single": single[lead], f"{prefix}pair": pair[lead], "plddt": np.zeros(3)})
    if kind == "half":
        np.savez(tmp_path / "x.npz", single=single)
    found = read_embeddings(tmp_path / "x.npz")
    np.testing.assert_array_equal(found.single, single)
    assert found.couple is None if kind == "half" else np.array_equal(found.couple, pair)
    assert protein("AAAA", single=found.single, couple=found.couple).single.shape == (4, 6)


def test_the_last_layer_of_a_language_model(tmp_path):
    layers = {6: torch.zeros(4, 8), 33: torch.full((4, 8), 2.0).bfloat16()}
    contacts = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    content = {"label": "x", "representations": layers, "mean_representations": {33: torch.zeros(8)}, "contacts": contacts}
    torch.save(content, tmp_path / "x.pt")
    assert read_embeddings(tmp_path / "x.pt").single.max() == 2.0
    assert read_embeddings(tmp_path / "x.pt", single=6).single.max() == 0.0
    assert read_embeddings(tmp_path / "x.pt", couple="contacts").couple.shape == (4, 4, 1)
    with pytest.raises(IncompatibleError, match="no '12'.*'33'"):
        read_embeddings(tmp_path / "x.pt", single=12)
    torch.save({"label": "x", "mean_representations": {33: torch.zeros(8)}}, tmp_path / "y.pt")
    with pytest.raises(IncompatibleError, match="per_tok"):
        read_embeddings(tmp_path / "y.pt")


def test_arrays_alone_are_told_by_their_dimensions(tmp_path):
    single, pair = arrays()
    np.save(tmp_path / "x.npy", single)
    torch.save(torch.from_numpy(pair), tmp_path / "x.pt")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x.npy").single, single)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x.pt").couple, pair)


class Loud:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def test_nothing_is_unpickled(tmp_path):
    """Not from a pickle, nor from what looks like an archive or a tensor."""
    for name in ("x.pkl", "x.pickle"):
        (tmp_path / name).write_bytes(pickle.dumps(Loud()))
        with pytest.raises(UnsupportedError, match=r"(?s)run any code.*numpy\.savez\('x\.npz'"):
            read_embeddings(tmp_path / name)
    np.savez(tmp_path / "x.npz", single=np.array([Loud()], dtype=object))
    np.save(tmp_path / "x.npy", np.array([Loud()], dtype=object))
    torch.save({"representations": {1: Loud()}}, tmp_path / "x.pt")
    for name in ("x.npz", "x.npy", "x.pt"):
        with pytest.raises(IncompatibleError, match="cannot be read"):
            read_embeddings(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"single": np.zeros((3, 2)), "pair": np.zeros((4, 4, 2))}, "3 residues.*4"),
        ({"single": np.zeros(3)}, r"\(N, C\), got float64 of \(3,\)"),
        ({"pair": np.zeros((3, 4, 2))}, r"\(N, N, C\)"),
        ({"single": np.array([[np.inf]])}, "not finite"),
        ({"single": np.array([["a"]])}, "numbers"),
        ({"msa": np.zeros((3, 2))}, "no 'single'; it has 'msa'"),
    ],
)
def test_embeddings_that_do_not_fit_are_named(tmp_path, content, words):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(IncompatibleError, match=words):
        read_embeddings(tmp_path / "x.npz")
