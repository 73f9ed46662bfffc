"""Flexible pockets: energies of ligand and pocket together, the law of displacements, and moves that leave exp(-u) as it is."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rdkit.Chem import rdForceFieldHelpers as forcefields

from dig_core.coordinates import Bound
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.montecarlo.chain import MonteCarlo
from dig_core.nn import PoseGraphormer
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.training.frames import frames_of
from dig_core.types import Geometry, Samples
from dig_plugins.rdkit import (
    MMFFEnergy,
    PocketEnergy,
    of_smiles,
    read_pocket,
    sample_poses,
    to_geometry,
    with_conformers,
)
from dig_plugins.rdkit.pockets import (
    ComplexEnergy,
    Flexible,
    FlexibleProposal,
    HybridMoves,
    PocketLaw,
    PoseMoves,
    Tethered,
    describe_complex,
    pocket_law,
    relax,
    ring_forms,
    side_chains,
    stiffness_factor,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A peptide as a pocket, a ligand beside it, untrained model of both."""
    mol = Chem.AddHs(Chem.MolFromSequence("GVSLG"), addResidueInfo=True)
    rdDistGeom.EmbedMolecule(mol, randomSeed=7, useRandomCoords=True)
    forcefields.MMFFOptimizeMolecule(mol, maxIters=200)
    path = tmp_path_factory.mktemp("pdb") / "p.pdb"
    path.write_text("\n".join(line for line in Chem.MolToPDBBlock(mol).splitlines() if line.startswith("ATOM")) + "\nEND\n")
    places = mol.GetConformer().GetPositions()
    out = places[places[:, 0].argmax()] + np.array([3.5, 0.0, 0.0])
    pocket = read_pocket(path, out[None], cutoff=12.0)
    ligand = of_smiles("CCO", seed=3)
    x = to_geometry(ligand).positions
    return pocket, with_conformers(ligand, Geometry(x - x.mean(1, keepdim=True) + torch.from_numpy(out)))


def whole(pocket, ligand) -> torch.Tensor:
    return torch.cat([to_geometry(ligand).positions, torch.from_numpy(pocket.positions)[None]], 1)


# -- which atoms, and their energy ----------------------------------------------------------------------------------------


def test_side_chains_near_the_site_move_and_backbones_do_not(site):
    pocket, ligand = site
    found = side_chains(pocket, ligand, radius=30.0)
    names = {pocket.mol.GetAtomWithIdx(int(k)).GetPDBResidueInfo().GetName().strip() for k in found.atoms}
    assert {"CB", "OG", "CG1", "CD1"} <= names and not names & {"N", "CA", "C", "O"}
    few = side_chains(pocket, ligand, radius=6.0)
    assert 0 < len(few.atoms) <= len(found.atoms)
    cut = Chem.RWMol(pocket.mol)
    cut.GetAtomWithIdx(int(found.atoms[0])).GetNeighbors()[-1].SetMonomerInfo(None)  # what a cap on the side chain looks like
    alone = side_chains(dataclasses.replace(pocket, mol=cut.GetMol()), ligand, radius=30.0)
    assert not np.isin(pocket.residue[alone.atoms], pocket.residue[found.atoms[0]]).any() and len(alone.atoms)
    with pytest.raises(IncompatibleError, match="larger radius"):
        side_chains(pocket, ligand, radius=0.1)
    with pytest.raises(IncompatibleError, match="positive radius"):
        side_chains(pocket, ligand, radius=0.0)
    with pytest.raises(IncompatibleError, match="positive limit"):
        side_chains(pocket, ligand, limit=0.0)


@pytest.mark.parametrize("atoms", [[], [3, 3], [-1], [0.5], [[1, 2]]])
def test_atoms_that_are_none_are_refused(site, atoms):
    with pytest.raises(IncompatibleError, match="each once"):
        Flexible(np.array(atoms))
    with pytest.raises(IncompatibleError, match="no atom 9999"):
        Tethered(ComplexEnergy(site[1], site[0]), Flexible(np.array([9999])), site[0], 300.0)


def test_energy_of_both_is_that_in_a_fixed_pocket_but_for_a_constant(site):
    pocket, ligand = site
    both, fixed = ComplexEnergy(ligand, pocket), PocketEnergy(ligand, pocket)
    x = whole(pocket, ligand).repeat(3, 1, 1)
    x[:, : ligand.GetNumAtoms()] += 0.2 * torch.randn(3, ligand.GetNumAtoms(), 3, generator=torch.Generator().manual_seed(1))
    gap = both(Geometry(x)) - fixed(Geometry(x))
    torch.testing.assert_close(gap, gap[:1].expand(3), rtol=0, atol=1e-6 * float(gap.abs().max()))


def test_gradients_are_those_of_the_energy_tethers_included(site):
    pocket, ligand = site
    flexible = side_chains(pocket, ligand, radius=30.0, limit=0.5)
    energy = Tethered(ComplexEnergy(ligand, pocket), flexible, pocket, 300.0)
    rng = torch.Generator().manual_seed(2)
    x = whole(pocket, ligand) + 0.01 * torch.randn(1, 1, 3, generator=rng, dtype=torch.float64)
    x[:, ligand.GetNumAtoms() + int(flexible.atoms[0])] += 0.4  # beyond its limit
    _, gradient = energy.energy_and_gradient(Geometry(x))
    direction = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    up, down = (energy(Geometry(x + s * 1e-4 * direction)) for s in (1, -1))
    torch.testing.assert_close((up - down) / 2e-4, (gradient * direction).sum((1, 2)), rtol=1e-4, atol=1e-3)


def test_models_learn_the_same_from_either_energy(site):
    """Forces on a placement's coordinates, which physics-informed training asks for: the pocket's own energy has none along them."""
    pocket, ligand = site
    system, coordinates = describe_complex(ligand, pocket, ring_forms(ligand, conformers=4)[0]), Bound()
    process = PoseGraphormer(width=32, heads=4, layers=1).process(system)
    found = [
        frames_of(coordinates, system, Geometry(whole(pocket, ligand)), energy(ligand, pocket), process=process).force
        for energy in (PocketEnergy, ComplexEnergy)
    ]
    for name, force in found[0].items():
        torch.testing.assert_close(force, found[1][name], rtol=1e-4, atol=1e-3)


def test_tethers_say_nothing_within_the_limit_and_are_harmonic_beyond(site):
    pocket, ligand = site
    flexible = Flexible(np.array([4, 9]), limit=1.0, stiffness=100.0)
    held = Tethered(lambda g: g.positions.new_zeros(len(g.positions)), flexible, pocket, 300.0)
    x = whole(pocket, ligand).repeat(3, 1, 1)
    n = ligand.GetNumAtoms()
    x[:, n + 4, 0] += torch.tensor([0.9, 1.3, 0.0], dtype=torch.float64)
    x[2, n + 5, 0] += 50.0  # not of the flexible ones
    kt = MMFFEnergy(ligand, 300.0).kt
    torch.testing.assert_close(held(Geometry(x)), torch.tensor([0.0, 0.5 * 100.0 * 0.3**2 / kt, 0.0], dtype=torch.float64))


# -- the law of displacements -----------------------------------------------------------------------------------------------


def coupled() -> torch.Tensor:
    """(6, 6) a positive precision."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return root @ root.T + torch.eye(6, dtype=torch.float64)


def test_the_law_is_normal():
    mean = torch.tensor([[0.1, 0.0, -0.2], [0.3, 0.1, 0.0]], dtype=torch.float64)
    law, known = PocketLaw(mean, coupled()), torch.distributions.MultivariateNormal(mean.flatten(), precision_matrix=coupled())
    drawn = law.sample(Streams(1, range(4000)))
    torch.testing.assert_close(law.log_prob(drawn), known.log_prob(drawn.flatten(1)))
    error = (drawn.flatten(1).T.cov() - known.covariance_matrix).abs() / known.covariance_matrix.diagonal().max()
    assert float(error.max()) < 4 * math.sqrt(2 / 4000)
    with pytest.raises(IncompatibleError, match="positive precision"):
        PocketLaw(mean, torch.zeros(6, 6))


def test_the_law_of_springs_is_found_from_their_energy(site):
    """Six coordinates on springs that are coupled, a minimum away from home: mean and precision come back."""
    pocket, ligand = site
    flexible, n, stiff, away = Flexible(np.array([4, 9])), ligand.GetNumAtoms(), 20 * coupled(), torch.linspace(-0.2, 0.3, 6).double()
    home = torch.from_numpy(pocket.positions[flexible.atoms])

    def springs(geometry: Geometry) -> torch.Tensor:
        gap = (geometry.positions[:, n + torch.from_numpy(flexible.atoms)] - home).flatten(1) - away
        return 0.5 * ((gap @ stiff) * gap).sum(1)

    law = pocket_law(springs, to_geometry(ligand).positions[0], pocket, flexible)
    torch.testing.assert_close(law.mean.flatten(), away, atol=2e-2, rtol=0)
    torch.testing.assert_close((law.vectors * law.values) @ law.vectors.T, stiff, atol=1e-3, rtol=1e-4)


# -- moves that are exact -----------------------------------------------------------------------------------------------------


class Ball:
    """Normal places (B, 1, 3) of a ligand of one atom, with their density: a model that knows no pocket."""

    exact, gauge, width = True, frozenset(), 1.3

    def draw(self, n: int, rng: Streams) -> Samples:
        x = self.width * rng.normal(1, 3, dtype=torch.float64)
        return Samples(Geometry(x), {}, self.log_q(Geometry(x), rng), torch.ones(n, dtype=torch.bool), "path")

    def log_q(self, geometry: Geometry, rng: Streams) -> torch.Tensor:
        x = geometry.positions.double()
        return -0.5 * (x / self.width).square().sum((1, 2)) - 3 * math.log(self.width * math.sqrt(2 * math.pi))


SKEW = 0.8 * torch.eye(6, dtype=torch.float64) + 0.15 * torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
POCKET, PAIR = SimpleNamespace(positions=np.array([[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]])), Flexible(np.array([1]))
COUPLING = torch.tensor([[1.2, -0.9], [-0.9, 3.0]], dtype=torch.float64)


class Pull:
    """A ligand at x on a spring, a pocket's atom displaced by d on another, and both coupled: (x, d) is normal."""

    def __call__(self, geometry: Geometry) -> torch.Tensor:
        return self.energy_and_gradient(geometry)[0]

    def energy_and_gradient(self, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
        x = geometry.positions
        z = torch.stack([x[:, 0], x[:, 2] - torch.from_numpy(POCKET.positions[1])], 1)
        slope, gradient = COUPLING @ z, torch.zeros_like(x)
        gradient[:, [0, 2]] = slope
        return 0.5 * (z * slope).sum((1, 2)), gradient


def moments(visited: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x x, x d and d d, means over directions, and their standard errors from forty blocks."""
    z = np.stack([visited[:, 0], visited[:, 2] - POCKET.positions[1]], 1)
    series = np.einsum("nik,njk->nij", z, z)[:, [0, 0, 1], [0, 1, 1]] / 3
    blocks = series[: len(series) // 40 * 40].reshape(40, -1, 3).mean(1)
    return series.mean(0), blocks.std(0, ddof=1) / math.sqrt(40)


def check(visited: np.ndarray) -> None:
    exact = torch.linalg.inv(COUPLING).numpy()[[0, 0, 1], [0, 1, 1]]
    found, error = moments(visited)
    assert (np.abs(found - exact) < 4 * error).all() and (error < 0.15 * exact).all(), (found, exact, error)
    still = visited[:, [1, 3]] - POCKET.positions[[0, 2]]
    assert not still.any()


def begun(local=None, seed: int = 4) -> MonteCarlo:
    """A chain on poses and displacements whose law is far from the energy's."""
    law = PocketLaw(torch.full((1, 3), 0.2), 1.5 * torch.eye(3))
    start = torch.cat([torch.zeros(1, 1, 3), torch.from_numpy(POCKET.positions)[None]], 1)
    return MonteCarlo(FlexibleProposal(Ball(), law, POCKET, PAIR), Pull(), Geometry(start), seed=seed, batch=512, local=local)


def test_proposals_of_poses_and_displacements_are_exact():
    visited, records = begun().block(6000)
    assert 0.05 < records.accepted.mean() < 0.9
    check(visited)


@pytest.mark.parametrize("factor", [None, SKEW])
def test_hybrid_moves_are_exact_and_leave_the_rest(factor):
    """Along atoms or skew directions, by steps so long that trajectories are refused: were they not, moments would be too large."""
    hybrid = HybridMoves(Pull(), 5, count=1, steps=2, step=0.9, mobile=PAIR.mobile(1, 3), factor=factor)
    x, visited = begun().positions, []
    for block in range(1200):
        x = hybrid(x, block)
        visited.append(x)
    assert 0.2 < hybrid.accepted / hybrid.proposed < 0.85
    check(np.stack(visited))


def test_hybrid_moves_along_softness_equilibrate_soon(site):
    """Ligand and side chains at a minimum: after a few trajectories half a kT sits in every coordinate that moves."""
    pocket, ligand = site
    flexible = side_chains(pocket, ligand, radius=30.0)
    energy = Tethered(ComplexEnergy(ligand, pocket), flexible, pocket, 300.0)
    mobile = flexible.mobile(ligand.GetNumAtoms(), len(pocket.positions))
    low = relax(whole(pocket, ligand), energy, steps=300, mobile=mobile)
    x = low.positions[0].numpy()
    moves = HybridMoves(energy, 9, count=1, steps=8, step=0.15, mobile=mobile, factor=stiffness_factor(energy, x, mobile))
    for block in range(20):
        x = moves.tune(x, block)
    step, excess = moves.step, []
    for block in range(20, 60):
        x = moves(x, block)
        excess.append(float(energy(Geometry(torch.from_numpy(x[None])))) - float(low.after))
    dof = 3 * int(mobile.sum())
    assert moves.step == step > 0.1 and moves.accepted > 0.5 * moves.proposed
    assert np.mean(excess) / (0.5 * dof) == pytest.approx(1.0, abs=0.3)


def test_moves_mixed_are_exact():
    """Poses in the pocket as it stands move the ligand alone: with the pocket's own moves in between both are right."""
    beside = PoseMoves(Ball(), Pull(), 1, seed=8, count=2)
    hybrid = HybridMoves(Pull(), 8, count=1, steps=2, step=0.5, mobile=PAIR.mobile(1, 3))
    chain = begun(lambda x, block: beside(hybrid(x, block), block), seed=8)
    visited = np.concatenate([chain.block(2)[0] for _ in range(600)])
    assert 0 < beside.accepted < beside.proposed
    check(visited)


def test_poses_alone_sample_the_ligand_given_the_pocket():
    """Displaced by d, the pocket stays, and the ligand is normal about 0.9 / 1.2 d."""
    beside, x, away = PoseMoves(Ball(), Pull(), 1, seed=6, count=6), begun().positions, np.array([0.8, -0.5, 0.0])
    x[2] += away
    start, visited = x.copy(), []
    for block in range(500):
        x = beside(x, block)
        visited.append(x[0])
    np.testing.assert_array_equal(x[1:], start[1:])
    gap = (np.stack(visited) - 0.9 / 1.2 * away)[20:]
    assert np.abs(gap.mean(0)).max() < 4 * math.sqrt(1 / 1.2 / 200)
    assert gap.var(0).mean() == pytest.approx(1 / 1.2, rel=4 * math.sqrt(2 / 600))


# -- poses in a flexible pocket -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(site):
    pocket, ligand = site
    system = describe_complex(ligand, pocket, ring_forms(ligand, conformers=4)[0])
    network = PoseGraphormer(width=32, heads=4, layers=1, encoder=1, basis=12, neighbours=6, channels=4)
    model = NoiseScore(network, network.process(system)).eval().requires_grad_(False)
    return DiG(model, network.coordinates, system, Card(name="untrained", steps=6))


def test_weights_are_of_the_energy_that_was_named(site, untrained):
    """Pose i is that of the rigid pocket; log weights are -E/kT - log q, tethers and all; other atoms stay."""
    pocket, ligand = site
    flexible = side_chains(pocket, ligand, radius=6.0)
    found = sample_poses(pocket, ligand, 4, model=untrained, flexible=flexible, correct="reweight", seed=1)
    rigid = sample_poses(pocket, ligand, 4, model=untrained, seed=1)
    np.testing.assert_allclose(found.positions, rigid.positions)
    law = found.log_q - rigid.log_q
    assert np.isfinite(law[np.isfinite(rigid.log_q)]).all() and found.pocket_rmsd.max() < 1.5
    energy = Tethered(ComplexEnergy(ligand, pocket), flexible, pocket, 300.0)
    x = torch.from_numpy(np.concatenate([found.positions, found.pockets], 1))
    kt = MMFFEnergy(ligand, 300.0).kt
    np.testing.assert_allclose(found.energy, energy(Geometry(x)).numpy() * kt, rtol=1e-9)
    np.testing.assert_allclose(found.log_weight, -found.energy / kt - found.log_q)
    still = np.setdiff1d(np.arange(len(pocket.positions)), flexible.atoms)
    assert not (found.pockets - pocket.positions)[:, still].any()


def test_a_chain_in_a_flexible_pocket_stays_within_its_limit(site, untrained, tmp_path):
    pocket, ligand = site
    flexible = side_chains(pocket, ligand, radius=6.0)
    found = sample_poses(pocket, ligand, 6, model=untrained, flexible=flexible, correct="mc", seed=2, batch=8)
    farthest = np.linalg.norm(found.pockets - pocket.positions, axis=2).max()
    assert 0.05 < farthest < flexible.limit + 0.5 and (found.pocket_rmsd > 0).all() and (found.pocket_rmsd <= 1.0).all()
    assert len(found.checks().ok) == 6
    np.testing.assert_allclose(found.pocket_of(3).positions, found.pockets[3])
    found.write_pockets(tmp_path / "pockets.pdb")
    again = Chem.MolFromPDBFile(str(tmp_path / "pockets.pdb"), removeHs=False, sanitize=False)
    assert again.GetNumConformers() == 6
    np.testing.assert_allclose(again.GetConformers()[5].GetPositions(), found.pockets[5], atol=1e-3)
    with pytest.raises(IncompatibleError, match="induced_fit"):
        found.relaxed()
    with pytest.raises(IncompatibleError, match="rigid pocket"):
        sample_poses(pocket, ligand, 2, model=untrained, flexible=flexible, relaxed=True)


def test_any_energy_of_ligand_and_pocket_weighs_poses(site, untrained):
    """MMFF94 of both as a caller's own energy gives the weights of the built-in one, but for the pocket's constant part."""
    pocket, ligand = site
    plain = sample_poses(pocket, ligand, 4, model=untrained, correct="reweight", seed=3)
    given = sample_poses(pocket, ligand, 4, model=untrained, correct="reweight", seed=3, energy=ComplexEnergy(ligand, pocket))
    np.testing.assert_allclose(given.weights, plain.weights, atol=1e-6)
    assert np.isfinite(given.relaxed(energy=ComplexEnergy(ligand, pocket), steps=5).energy).all()
    with pytest.raises(IncompatibleError, match="310 K"):
        sample_poses(pocket, ligand, 2, model=untrained, temperature=310.0, energy=ComplexEnergy(ligand, pocket))
