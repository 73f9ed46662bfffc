"""One network for any molecule: it stands where the coordinates say, does not see its company, and its weights are exact untrained."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

Chem = pytest.importorskip("rdkit.Chem")
from rdkit.Chem import rdMolAlign  # noqa: E402

from dig_core.coordinates import Internal  # noqa: E402
from dig_core.coordinates.measure import dihedral  # noqa: E402
from dig_core.dig import Card, DiG  # noqa: E402
from dig_core.errors import IncompatibleError, UnsupportedError  # noqa: E402
from dig_core.nn.conformer import ConformerGraphormer  # noqa: E402
from dig_core.nn.rows import stacked  # noqa: E402
from dig_core.score import NoiseScore  # noqa: E402
from dig_core.training.loop import LoopConfig, optimise  # noqa: E402
from dig_core.training.losses import Frames  # noqa: E402
from dig_core.training.molecules import Molecules, handed, internal_process  # noqa: E402
from dig_core.types import Geometry  # noqa: E402
from dig_plugins.rdkit import basins, compare, convert, minima, reference  # noqa: E402
from dig_plugins.rdkit.conformers import sample_conformers  # noqa: E402
from dig_plugins.rdkit.energy import MMFFEnergy  # noqa: E402
from dig_plugins.rdkit.transfer import on_molecule  # noqa: E402

TINY = {"width": 16, "layers": 1, "heads": 2, "basis": 8}
KINDS = ("CCCO", "CC#CCO", "CC(C)(C)C(=O)NC1CCCC1", "C[C@H](O)C(F)(F)F", "CNCC")
"""An end group; a straight angle; a ring and an amide; a stereo centre; a nitrogen that inverts."""


@pytest.fixture(autouse=True)
def short_streams(monkeypatch):
    monkeypatch.setattr("dig_core.random._BLOCK", 256)


@functools.cache
def made(smiles: str):
    """Coordinates, descriptor and rough conformers."""
    mol = convert.of_smiles(smiles)
    coordinates, descriptor, rough = basins.transferable_coordinates(mol)
    return mol, coordinates, descriptor, convert.to_geometry(rough)


def network_of(smiles: str) -> ConformerGraphormer:
    """Untrained, but not silent."""
    _, coordinates, descriptor, _ = made(smiles)
    network = ConformerGraphormer.of(coordinates, descriptor, **TINY)
    torch.nn.init.normal_(network.leave.weight, generator=torch.Generator().manual_seed(1))
    return network.requires_grad_(False)


def model_of(smiles: str) -> DiG:
    _, coordinates, descriptor, _ = made(smiles)
    network = ConformerGraphormer.of(coordinates, descriptor, **TINY).requires_grad_(False)
    card = Card(name="untrained", temperature=300.0, energy="MMFF94s (RDKit)", steps=8)
    return DiG(NoiseScore(network, internal_process(**network.sizes)), coordinates, descriptor, card)


def states(smiles: str, n: int = 6):
    _, coordinates, descriptor, rough = made(smiles)
    state, _ = coordinates.encode(Geometry(rough.positions[:n]), descriptor)
    return {name: x.float() for name, x in state.items()}


@pytest.mark.parametrize("smiles", KINDS)
def test_the_network_sees_the_structure_that_the_state_decodes_to(smiles):
    """Whatever turns the molecule, it answers by the distances: they are those of the coordinates' own decoding."""
    _, coordinates, descriptor, rough = made(smiles)
    network, seen = network_of(smiles), []
    network.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    state = states(smiles)
    network(state, torch.tensor([0.5]), descriptor)
    wanted = coordinates.decode(state, descriptor).positions[:, network.rows.order[0]].float()
    distances = [(x[:, :, None] - x[:, None]).norm(dim=-1) for x in (seen[0], wanted)]
    torch.testing.assert_close(*distances, atol=2e-4, rtol=0)


def test_answers_do_not_depend_on_the_company():
    """In a padded batch with other molecules, and alone."""
    network = network_of(KINDS[0])
    rows = stacked([made(s)[1:3] for s in KINDS])
    sizes = rows.centre.shape[1], rows.torsion.shape[1]
    alone, together = [], {"shape": torch.zeros(5, sizes[0]), "torsion": torch.zeros(5, sizes[1])}
    for number, smiles in enumerate(KINDS):
        _, coordinates, descriptor, _ = made(smiles)
        state = states(smiles, 1)
        alone.append(network.on(coordinates, descriptor)(state, torch.tensor([0.3]), descriptor))
        for name, x in state.items():
            together[name][number, : x.shape[1]] = x[0]
    found = network.bound(rows.take(torch.arange(5)))(together, torch.full((5,), 0.3), made(KINDS[0])[2])
    for number, answer in enumerate(alone):
        for one, all_ in zip(answer, found, strict=True):
            for name in ("shape", "torsion"):
                size = one[name].shape[1]
                torch.testing.assert_close(all_[name][number, :size], one[name][0], atol=1e-4, rtol=1e-4)
                assert (all_[name][number, size:] == 0).all()


def test_a_smaller_batch_needs_less_padding():
    rows = stacked([made(s)[1:3] for s in KINDS]).take(torch.tensor([0, 0]))
    _, coordinates, descriptor, _ = made(KINDS[0])
    alone = stacked([(coordinates, descriptor)])
    for name, x in rows._asdict().items():
        assert torch.equal(x[1], getattr(alone, name)[0]), name


@pytest.mark.parametrize("smiles", KINDS)
def test_a_mirror_image_is_the_mirrored_state(smiles):
    """In coordinates whose rest positions are mirrored too: what the training relies on when it shows frames in a mirror."""
    _, coordinates, descriptor, rough = made(smiles)
    sign = 1.0 - 2.0 * handed(coordinates).double()
    mirrored = Internal(coordinates.zmatrix, sign * coordinates.centre, coordinates.width)
    state, _ = coordinates.encode(rough, descriptor)
    image, _ = mirrored.encode(Geometry(rough.positions * torch.tensor([1.0, 1.0, -1.0])), descriptor)
    torch.testing.assert_close(image["shape"], sign * state["shape"], atol=1e-8, rtol=0)
    gap = torch.remainder(image["torsion"] + state["torsion"] + torch.pi, 2 * torch.pi) - torch.pi
    assert float(gap.abs().max() if gap.numel() else 0.0) < 1e-8


def test_a_model_of_any_molecule_is_saved_on_one(tmp_path):
    mol, *_ = made("CCCO")
    host = model_of("CNCC")
    bound = on_molecule(host, mol)
    bound.save(tmp_path / "one.safetensors")
    first, again = (sample_conformers(mol, 5, model=m, seed=3).log_weight for m in (host, tmp_path / "one.safetensors"))
    np.testing.assert_array_equal(first, again)
    assert bound.card.system == "CCCO" and on_molecule(host, mol).descriptor.n_atoms == mol.GetNumAtoms()


def test_weights_of_a_model_of_any_molecule_are_exact():
    """Of hydrogen peroxide, whose two hands are equally likely; and no average of an untrained model's draws is."""
    mol = convert.of_smiles("OO")
    found = sample_conformers(mol, 1500, model=model_of("CCCO"), seed=2)
    turn = dihedral(convert.to_geometry(found.mol).positions, [(2, 0, 1, 3)])[:, 0].numpy()
    value, stderr = found.free_energy_difference(turn > 0, turn < 0)
    assert found.effective_sample_size() > 150 and abs(value) < 4 * stderr < 0.5
    assert found.average(np.abs(turn) < 0.7).value < 0.05 < np.mean(np.abs(turn) < 0.7)


def test_what_no_model_of_any_molecule_is_for_is_refused():
    with pytest.raises(IncompatibleError, match="stereo"):
        on_molecule(model_of("CCCO"), Chem.AddHs(Chem.MolFromSmiles("CC(F)Cl")))
    with pytest.raises(UnsupportedError, match="2: "):
        on_molecule(model_of("CCCO"), Chem.AddHs(Chem.MolFromSmiles("CC(=O)[O-].[NH4+]")))
    _, coordinates, descriptor, rough = made("CCCO")
    whitened = Internal.from_frames(descriptor, rough)
    with pytest.raises(UnsupportedError, match="whitened"):
        network_of("CNCC").on(whitened, descriptor)
    with pytest.raises(IncompatibleError, match="none"):
        Molecules([])


def test_frames_of_a_stiff_molecule_share_out_the_heat():
    """Half a kT for each way it can be bent or stretched (equipartition), up to what is not harmonic."""
    mol = convert.of_smiles("O=CF")
    coordinates, descriptor, frames = basins.basin_frames(mol, 400)
    energy = MMFFEnergy(mol, 300.0)
    low, _ = minima.minimised(convert.with_conformers(mol, coordinates.decode(frames.take(torch.tensor([0])).state, descriptor)))
    heat = energy(coordinates.decode(frames.state, descriptor)) - energy(convert.to_geometry(low))
    dimensions = sum(x.shape[1] for x in frames.state.values())
    assert len(frames) > 390 and float(heat.mean()) == pytest.approx(0.5 * dimensions, rel=0.15)


def test_training_on_several_molecules_finds_their_laws():
    systems = [made(smiles)[1:3] for smiles in ("CCCO", "CNCC")]
    rng = torch.Generator().manual_seed(0)
    data = []
    for coordinates, descriptor in systems:
        sizes = len(coordinates.centre), len(coordinates.torsion_atoms)
        narrow = {"shape": 0.2 * torch.randn(64, sizes[0], generator=rng), "torsion": 0.2 * torch.randn(64, sizes[1], generator=rng)}
        data.append((coordinates, descriptor, Frames(narrow)))
    objective = Molecules(data)
    network = ConformerGraphormer.of(*systems[0], **TINY)
    model = NoiseScore(network, internal_process(**network.sizes))
    before = objective.evaluate(model, 1)["noise"]
    found = optimise(model, objective, LoopConfig(steps=30, batch=32, rate=5e-3, warmup=5, every=30), validation=objective, progress=False)
    assert found.history[-1]["validation"] < before - 1


def test_rmsd_of_conformers():
    mol = convert.of_smiles("C[C@H](F)Cc1ccccc1")
    a, b = (convert.embed(mol, 6, seed=seed) for seed in (1, 2))
    found = compare.conformer_rmsd(a, b)
    bare = [Chem.RemoveHs(m) for m in (a, b)]
    peer = [[rdMolAlign.GetBestRMS(Chem.Mol(bare[1]), bare[0], j, i) for j in range(6)] for i in range(6)]
    np.testing.assert_allclose(found, peer, atol=1e-4)
    turned = convert.with_conformers(mol, convert.to_geometry(a).positions.numpy() @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + 3)
    np.testing.assert_allclose(np.diag(compare.conformer_rmsd(a, turned)), 0, atol=1e-6)
    assert len(compare.heavy_symmetries(mol)) == 2  # the ring turned over
    with pytest.raises(IncompatibleError, match="same atoms"):
        compare.conformer_rmsd(a, convert.of_smiles("CCO"))


def test_relaxing_changes_no_bond():
    """RDKit writes MMFF's aromaticity, which is another for this ring, on the molecule that it minimises."""
    bare = Chem.AddHs(Chem.MolFromSmiles("Nn1c(N)n[nH]c1=S"))
    orders = [str(b.GetBondType()) for b in bare.GetBonds()]
    for found in (minima.minimised(convert.embed(bare, 2))[0], convert.reference_structure(bare)):
        assert [str(b.GetBondType()) for b in found.GetBonds()] == orders


def test_distinct_minima_are_minima_and_distinct():
    rough = convert.embed(convert.of_smiles("OCCCO"), 40, seed=1)
    found = minima.distinct_minima(rough, 5, apart=0.3)
    energies = [c.GetDoubleProp("energy") for c in found.GetConformers()]
    distance = compare.conformer_rmsd(found, found) + np.eye(len(energies))
    assert len(energies) == 5 and energies == sorted(energies) and distance.min() > 0.3
    _, gradient = MMFFEnergy(found, 300.0).energy_and_gradient(convert.to_geometry(found))
    assert float(gradient.abs().max()) < 0.1
    assert energies[0] == pytest.approx(minima.minimised(rough)[1].min())


def test_what_is_withheld_is_so_with_all_its_isomers():
    smiles = ["C[C@H](F)Cl", "CC(=O)O", "c1ccccc1", "CCN", "CCO", "CCS", "CCCl", "CC=O"]
    kept = [reference.withheld(Chem.MolFromSmiles(s)) for s in smiles]
    assert 0 < sum(kept) < len(kept)
    for one, other in (("C[C@H](F)Cl", "C[C@@H](F)Cl"), ("CC(=O)O", "CC(=O)[O-]"), ("CCN", "CC[NH3+]")):
        keys = {reference.graph_key(Chem.AddHs(Chem.MolFromSmiles(s))) for s in (one, other)}
        assert len(keys) == 1


def test_the_network_is_json_and_parameters(tmp_path):
    network = network_of("CC(C)(C)C(=O)NC1CCCC1")
    again = ConformerGraphormer(**json.loads(json.dumps(network.config)))
    again.load_state_dict(network.state_dict())
    state, descriptor = states("CC(C)(C)C(=O)NC1CCCC1"), made("CC(C)(C)C(=O)NC1CCCC1")[2]
    for one, other in zip(network(state, torch.tensor([0.4]), descriptor), again(state, torch.tensor([0.4]), descriptor), strict=True):
        assert torch.equal(one["shape"], other["shape"]) and torch.equal(one["torsion"], other["torsion"])
