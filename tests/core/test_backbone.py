"""Backbones: descriptors, frames and the atoms they give back, forces, and exact samplers on positions and orientations together."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_core.coordinates import Backbone
from dig_core.diffusion import SO3, Cosine, Diffusion, Geometric, Joint, LogSNR, ZeroCentroid
from dig_core.diffusion.rotations import rotation_matrix, rotation_vector
from dig_core.dig import DiG
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.random import Streams
from dig_core.sampling.flow import backward_steps, flow_times
from dig_core.sampling.solvers import SOLVERS
from dig_core.score import Moments
from dig_core.system.descriptor import molecule
from dig_core.system.protein import BACKBONE, RESIDUES, crop, ideal_residue, protein, residues
from dig_core.testing import HeatMixture, Sabotaged, check_score_model, check_streams
from dig_core.types import Geometry

DOUBLE = torch.float64
COORDINATES = Backbone()
N, CA, C, OX, CB = range(5)
PDB = Path(__file__).parents[2] / "dig_plugins/models/alanine-dipeptide.pdb"
BONDS = {(N, CA): 1.458, (CA, C): 1.525, (C, OX): 1.231, (CA, CB): 1.530}
ANGLES = {(N, CA, C): 111.2, (CA, C, OX): 120.8, (N, CA, CB): 110.5, (C, CA, CB): 110.1}
"""Angstrom and degrees, with spreads of 0.02 and 2 in crystals: Engh and Huber, https://doi.org/10.1107/S0108767391001071."""

PEPTIDE = {"bond": 1.329, "after": 116.2, "before": 121.7}
"""C-N, and the angles CA-C-N and C-N-CA, from the same table."""


def states(n: int, batch: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """Frames anywhere, turned anyhow; one orientation a structure is half a turn and one the identity."""
    rng = torch.Generator().manual_seed(seed)
    pos = torch.randn(batch, n, 3, generator=rng, dtype=DOUBLE)
    rot = torch.randn(batch, n, 3, generator=rng, dtype=DOUBLE)
    rot = rot / rot.norm(dim=-1, keepdim=True) * math.pi * torch.rand(batch, n, 1, generator=rng, dtype=DOUBLE)
    rot[:, 0] *= math.pi / rot[:, 0].norm(dim=-1, keepdim=True)
    rot[:, -1] *= 0.0
    return {"pos": pos - pos.mean(1, keepdim=True), "rot": rot}


def same_frames(found, wanted, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found["pos"], wanted["pos"], atol=tolerance, rtol=0)
    torch.testing.assert_close(rotation_matrix(found["rot"]), rotation_matrix(wanted["rot"]), atol=tolerance, rtol=0)


def atoms_of(geometry: Geometry, descriptor) -> torch.Tensor:
    """(B, N, 5, 3) with NaN for the CB that glycine has not."""
    atoms = residues(descriptor).atoms
    found = geometry.positions[:, atoms.flatten()].reshape(-1, *atoms.shape, 3)
    return torch.where((atoms < 0)[None, ..., None], torch.nan, found)


def angle(a, b, c) -> torch.Tensor:
    """Degrees, at b."""
    u, v = a - b, c - b
    return torch.rad2deg(torch.atan2(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(-1)))


def torsion(a, b, c, d) -> torch.Tensor:
    """Degrees; 0 is cis, positive turns the far bond clockwise as seen along b to c (IUPAC)."""
    along = (c - b) / (c - b).norm(dim=-1, keepdim=True)
    first, last = torch.linalg.cross(b - a, c - b), torch.linalg.cross(c - b, d - c)
    return torch.rad2deg(torch.atan2((torch.linalg.cross(first, last) * along).sum(-1), (first * last).sum(-1)))


def placed(a, b, c, length: float, bend: float, turn: float) -> torch.Tensor:
    """The atom bonded to c at this bond length, angle with b and torsion with a (degrees)."""
    along = (c - b) / (c - b).norm()
    normal = torch.linalg.cross(b - a, along)
    normal = normal / normal.norm()
    bend, turn = math.radians(180 - bend), math.radians(turn)
    side = math.cos(turn) * torch.linalg.cross(normal, along) + math.sin(turn) * normal
    return c + length * (math.cos(bend) * along + math.sin(bend) * side)


def built(torsions: list[tuple[float, float, float]]) -> torch.Tensor:
    """(N, 3, 3) N, CA and C of a chain with the ideal residue's own angle and these phi, psi and omega, in degrees."""
    bend, (bond, after, before) = float(angle(*ideal_residue()[:3])), PEPTIDE.values()
    chain = list(ideal_residue()[:3])
    for (_, psi, omega), (phi, *_) in zip(torsions, torsions[1:], strict=False):
        for length, at, turn in ((bond, after, psi), (BONDS[N, CA], before, omega), (BONDS[CA, C], bend, phi)):
            chain.append(placed(*chain[-3:], length, at, turn))
    return torch.stack(chain).reshape(-1, 3, 3)


def whole(chain: torch.Tensor, descriptor) -> Geometry:
    """Structures (1, A, 3) whose O and CB are anywhere: frames do not read them."""
    found = torch.randn(1, descriptor.n_atoms, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    found[:, residues(descriptor).atoms[:, :3].flatten()] = chain.reshape(1, -1, 3)
    return Geometry(found)


def turn_of(seed: int = 0) -> torch.Tensor:
    return rotation_matrix(torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE))


def z_score(values: torch.Tensor, wanted) -> float:
    return float(((values.mean(0) - wanted) / (values.std(0) / math.sqrt(len(values))).clamp_min(1e-12)).abs().max())


# Descriptors ---------------------------------------------------------------------------------------------------------------


def test_atoms_stand_residue_after_residue_and_glycine_has_no_beta():
    descriptor = protein("AGWG", numbers=[3, 4, 7, 8])
    known = residues(descriptor)
    assert known.atoms.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, -1], [9, 10, 11, 12, 13], [14, 15, 16, 17, -1]]
    assert descriptor.numbers.tolist() == [7, 6, 6, 8, 6, 7, 6, 6, 8, 7, 6, 6, 8, 6, 7, 6, 6, 8]
    assert "".join(RESIDUES[k] for k in known.kind) == "AGWG" and known.number.tolist() == [3, 4, 7, 8]
    assert known.follows().tolist() == [True, False, True]
    assert len(BACKBONE) == 5 and descriptor.mobile.all() and not descriptor.pbc.any()


def test_bonds_join_residues_that_follow_each_other_on_a_chain():
    descriptor = protein("AGAA", numbers=[1, 2, 4, 5], chains=[0, 0, 0, 1])
    inside = {(0, 1), (1, 2), (2, 3), (1, 4), (5, 6), (6, 7), (7, 8), (9, 10), (10, 11), (11, 12), (10, 13)}
    inside |= {(14, 15), (15, 16), (16, 17), (15, 18)}
    assert {tuple(sorted(bond)) for bond in descriptor.bonds.tolist()} == inside | {(2, 5)}
    assert residues(descriptor).follows().tolist() == [True, False, False]


def test_a_crop_is_the_same_residues_alone():
    sequence, kept = "MGAPW", torch.tensor([1, 3, 4])
    rng = torch.Generator().manual_seed(0)
    positions = torch.randn(24, 3, generator=rng, dtype=DOUBLE)
    single, couple = torch.randn(5, 7, generator=rng), torch.randn(5, 5, 2, generator=rng)
    given = {"numbers": [2, 3, 4, 5, 6], "chains": [0, 0, 1, 1, 1]}
    descriptor = protein(sequence, **given, positions=positions, single=single, couple=couple)
    part, known = crop(descriptor, kept), residues(crop(descriptor, kept))
    assert "".join(RESIDUES[k] for k in known.kind) == "GPW"
    assert known.number.tolist() == [3, 5, 6] and known.chain.tolist() == [0, 1, 1]
    assert torch.equal(part.single, single[kept]) and torch.equal(part.couple, couple[kept][:, kept])
    found, wanted = (atoms_of(d.reference, d) for d in (part, descriptor))
    torch.testing.assert_close(found, wanted[:, kept], equal_nan=True)
    again = crop(descriptor, torch.arange(5))
    for name in ("numbers", "node", "pair", "bonds", "mobile", "pbc", "single", "couple"):
        assert torch.equal(getattr(again, name), getattr(descriptor, name))
    assert torch.equal(again.reference.positions, descriptor.reference.positions)


def test_bad_input_is_named():
    for sequence, letter in (("AXGZ", "'X' at position 2"), ("ag", "'a' at position 1"), ("A-", "'-' at position 2")):
        with pytest.raises(UnsupportedError, match=letter):
            protein(sequence)
    with pytest.raises(IncompatibleError, match="at least one residue"):
        protein("")
    for given in ({"numbers": [1, 2]}, {"chains": [0, 0, 0, 0]}, {"numbers": [[1, 2, 3]]}):
        with pytest.raises(IncompatibleError, match="a number and a chain for each"):
            protein("AGA", **given)
    for given in ({"numbers": [4, 2, 3]}, {"numbers": [4, 5, 4], "chains": [0, 1, 0]}, {"numbers": [4, 4, 5]}):
        with pytest.raises(IncompatibleError, match="rise along a chain, got 4 and then [24]"):
            protein("AGA", **given)
    protein("AGA", numbers=[4, 2, 5], chains=[0, 1, 0])
    with pytest.raises(IncompatibleError, match="rise along a chain"):
        crop(protein("AGA"), torch.tensor([2, 0]))
    with pytest.raises(IncompatibleError, match="expected 14 reference positions .* got 15"):
        protein("AGA", positions=torch.zeros(15, 3))
    with pytest.raises(UnsupportedError, match="use protein"):
        residues(molecule([8, 1, 1], [(0, 1), (0, 2)]))


@pytest.mark.parametrize(
    ("name", "shape"), [("single", (2, 4)), ("single", (3,)), ("couple", (3, 2, 4)), ("couple", (2, 2, 4)), ("couple", (3, 3))]
)
def test_embeddings_of_other_lengths_are_refused(name, shape):
    with pytest.raises(IncompatibleError, match=f"{name} embedding as .* for 3 residues"):
        protein("AGA", **{name: torch.zeros(shape)})


@pytest.mark.parametrize(("name", "shape"), [("single", (3, 4)), ("couple", (3, 3, 4))])
def test_embeddings_that_are_not_finite_are_refused(name, shape):
    with pytest.raises(IncompatibleError, match=f"{name} .* not finite"):
        protein("AGA", **{name: torch.full(shape, math.inf)})


# Frames and atoms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", ["A", "G", "GAGWP"])
def test_atoms_give_back_the_frames_they_were_made_of(sequence):
    descriptor, state = protein(sequence), states(len(sequence))
    geometry = COORDINATES.decode(state, descriptor)
    assert geometry.positions.shape == (6, descriptor.n_atoms, 3) and geometry.positions.dtype == DOUBLE
    assert COORDINATES.valid(state, descriptor).all()
    found, log_det = COORDINATES.encode(geometry, descriptor)
    same_frames(found, state)
    torch.testing.assert_close(log_det, -COORDINATES.log_volume(state, descriptor))
    same_frames(COORDINATES.encode(Geometry(geometry.positions + torch.tensor([5.0, -7.0, 2.0])), descriptor)[0], state)


def test_rebuilt_residues_have_the_lengths_and_angles_of_crystals():
    descriptor = protein("AGWSP", numbers=[1, 2, 3, 7, 8])
    atoms = atoms_of(COORDINATES.decode(states(5), descriptor), descriptor)
    for (i, j), length in BONDS.items():
        found = (atoms[:, :, i] - atoms[:, :, j]).norm(dim=-1)
        assert (found[found.isfinite()] - length).abs().max() < 0.01
    bonded = residues(descriptor).follows()
    for (i, j, k), wanted in ANGLES.items():
        found = angle(atoms[:, :, i], atoms[:, :, j], atoms[:, :, k])
        # The oxygen of a bonded residue stands to its neighbour, wherever noise has that.
        found = found if k != OX else found[:, [*(~bonded).tolist(), True]]
        assert (found[found.isfinite()] - wanted).abs().max() < 1.0


def test_rebuilt_residues_are_left_handed():
    """Seen from the hydrogen, CO, R and N follow each other clockwise."""
    descriptor = protein("AWSP")
    atoms = atoms_of(COORDINATES.decode(states(4), descriptor), descriptor)
    n, c, beta = (atoms[:, :, k] - atoms[:, :, CA] for k in (N, C, CB))
    assert (torch.linalg.det(torch.stack([c, beta, n], dim=-2)) > 1).all()
    turned = torsion(atoms[:, :, N], atoms[:, :, C], atoms[:, :, CB], atoms[:, :, CA])
    assert ((turned - turned.mean()).abs() < 1e-6).all()


def test_beta_carbon_of_a_real_alanine_comes_back():
    """Alanine dipeptide by a force field's tools: another source of which hand is L."""
    rows = [line for line in PDB.read_text().splitlines() if line.startswith(("ATOM", "HETATM")) and line[17:20] == "ALA"]
    where = {line[12:16].strip(): [float(line[k : k + 8]) for k in (30, 38, 46)] for line in rows}
    geometry = Geometry(torch.tensor([[where[name] for name in BACKBONE]], dtype=DOUBLE))
    state, _ = COORDINATES.encode(geometry, protein("A"))
    found = COORDINATES.decode(state, protein("A")).positions + geometry.positions[:, CA]
    off = (found - geometry.positions).norm(dim=-1)[0]
    assert off[CA] < 1e-9 and off[[N, C]].max() < 0.1 and off[CB] < 0.15


TURNS = [(-60.0, -45.0, 180.0), (-120.0, 130.0, 175.0), (60.0, 45.0, 0.0), (-75.0, 150.0, 180.0), (-60.0, -30.0, 180.0)]
"""phi, psi, omega: helix, strand, a left-handed turn before a cis peptide, and on."""


@pytest.mark.parametrize("sequence", ["AGAPA", "GGGGG"])
def test_chains_of_known_torsions_come_back_with_oxygens_in_the_peptide_planes(sequence):
    descriptor, chain = protein(sequence), built(TURNS)
    n, alpha, carbon = chain.unbind(1)
    psi = torsion(n[:-1], alpha[:-1], carbon[:-1], n[1:])
    omega = torsion(alpha[:-1], carbon[:-1], n[1:], alpha[1:])
    phi = torsion(carbon[:-1], n[1:], alpha[1:], carbon[1:])
    for found, column in ((phi, [t[0] for t in TURNS[1:]]), (psi, [t[1] for t in TURNS[:-1]]), (omega, [t[2] for t in TURNS[:-1]])):
        gap = (found - torch.tensor(column, dtype=DOUBLE) + 180) % 360 - 180
        assert gap.abs().max() < 1e-9
    state, _ = COORDINATES.encode(whole(chain, descriptor), descriptor)
    atoms = atoms_of(COORDINATES.decode(state, descriptor), descriptor)[0]
    torch.testing.assert_close(atoms[:, :3], chain - alpha.mean(0), atol=1e-9, rtol=0)
    n, alpha, carbon, oxygen, _ = atoms.unbind(1)
    flat = torsion(n[1:], alpha[:-1], carbon[:-1], oxygen[:-1]).abs()
    assert (180 - flat).abs().max() < 1e-6
    assert (angle(alpha[:-1], carbon[:-1], oxygen[:-1]) - ANGLES[CA, C, OX]).abs().max() < 2
    assert (angle(oxygen[:-1], carbon[:-1], n[1:]) - 123.0).abs().max() < 2
    across = (torsion(n[:-1], alpha[:-1], carbon[:-1], oxygen[:-1]) - psi) % 360
    assert (across - 180).abs().max() < 1e-6


def test_oxygens_at_ends_and_breaks_are_those_of_an_ideal_residue():
    descriptor = protein("AAAA", numbers=[1, 2, 5, 6], chains=[0, 0, 0, 1])
    atoms = atoms_of(COORDINATES.decode(states(4), descriptor), descriptor)
    found = torsion(*(atoms[:, :, k] for k in (N, CA, C, OX)))
    assert (found[:, 1:] + 40).abs().max() < 1e-6
    assert (found[:, 0] + 40).abs().min() > 1e-3


def test_states_turn_and_move_with_the_structure():
    descriptor, state, turn = protein("AGWA"), states(4), turn_of()
    geometry = COORDINATES.decode(state, descriptor)
    moved = Geometry(geometry.positions @ turn.T + torch.tensor([1.0, 2.0, -30.0]))
    found, _ = COORDINATES.encode(moved, descriptor)
    composed = rotation_vector(turn @ rotation_matrix(state["rot"]))
    same_frames(found, {"pos": state["pos"] @ turn.T, "rot": composed})
    wanted = geometry.positions @ turn.T
    torch.testing.assert_close(COORDINATES.decode(found, descriptor).positions, wanted, atol=1e-9, rtol=0)


def test_mirror_images_are_other_states():
    """The mirror image of a helix is no turned helix, and what is rebuilt of it has residues of the same hand."""
    descriptor = protein("AAAAA")
    state, _ = COORDINATES.encode(whole(built([(-60.0, -45.0, 180.0)] * 5), descriptor), descriptor)
    right = COORDINATES.decode(state, descriptor)
    mirror = Geometry(right.positions * torch.tensor([1.0, 1.0, -1.0]))
    found, _ = COORDINATES.encode(mirror, descriptor)
    # Relative orientations of neighbours do not depend on the pose.
    inner, other = (rotation_matrix(s["rot"]) for s in (state, found))
    steps = [m[:, :-1].transpose(-1, -2) @ m[:, 1:] for m in (inner, other)]
    assert (steps[0] - steps[1]).abs().max() > 0.5
    beta = residues(descriptor).atoms[:, CB]
    off = (COORDINATES.decode(found, descriptor).positions - mirror.positions + mirror.positions.mean(1, keepdim=True))[:, beta]
    assert off.norm(dim=-1).min() > 1


@pytest.mark.parametrize("scale", [10.0, 0.7])
def test_volume_is_that_of_the_jacobian_of_the_positions(scale):
    coordinates, descriptor, basis = Backbone(scale), protein("AGA"), ZeroCentroid(3).basis().flatten(1)
    geometry, alphas = COORDINATES.decode(states(3, 1), descriptor), residues(descriptor).atoms[:, CA]

    def moved(shift: torch.Tensor) -> torch.Tensor:
        x = geometry.positions.index_add(1, alphas, (shift @ basis).reshape(1, 3, 3))
        return coordinates.encode(Geometry(x), descriptor)[0]["pos"].flatten() @ basis.T

    jacobian = torch.autograd.functional.jacobian(moved, torch.zeros(6, dtype=DOUBLE))
    found = coordinates.encode(geometry, descriptor)[1]
    torch.testing.assert_close(found, torch.linalg.slogdet(jacobian).logabsdet[None])


def test_what_has_no_frame_is_refused():
    descriptor = protein("AGA", numbers=[11, 12, 13])
    good = COORDINATES.decode(states(3, 2), descriptor).positions
    known = residues(descriptor).atoms
    for spoil in ("line", "point", "nan"):
        bad = good.clone()
        if spoil == "line":
            bad[1, known[1, N]] = 2 * bad[1, known[1, CA]] - bad[1, known[1, C]]
        bad[1, known[1, C]] = {"line": bad[1, known[1, C]], "point": bad[1, known[1, CA]], "nan": torch.tensor(math.nan)}[spoil]
        with pytest.raises(IncompatibleError, match="structure 1 has no frame for residue 12"):
            COORDINATES.encode(Geometry(bad), descriptor)
    for shape in ((1, 13, 3), (14, 3), (1, 14, 2)):
        with pytest.raises(IncompatibleError, match=r"expected positions \(B, 14, 3\)"):
            COORDINATES.encode(Geometry(torch.zeros(shape)), descriptor)
    state = states(3, 2)
    state["rot"][1, 0, 0] = math.nan
    assert COORDINATES.valid(state, descriptor).tolist() == [True, False]
    with pytest.raises(UnsupportedError, match="use protein"):
        COORDINATES.decode(state, molecule([8, 1, 1], [(0, 1), (0, 2)]))


def test_both_ways_have_derivatives():
    descriptor, state = protein("AGA"), states(3, 1)
    rot = (0.7 * state["rot"]).requires_grad_()
    pos = state["pos"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, r: COORDINATES.decode({"pos": p, "rot": r}, descriptor).positions, (pos, rot))
    x = COORDINATES.decode({"pos": pos, "rot": rot}, descriptor).positions.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(COORDINATES.encode(Geometry(x), descriptor)[0].values()), (x,))


# Forces --------------------------------------------------------------------------------------------------------------------


class AllAtom:
    """Backbones with two more atoms each residue, held by springs of random strengths: x is normal, so draws are exact."""

    def __init__(self, sequence: str = "AGA", width: float = 0.15, extra: int = 2, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        self.descriptor = protein(sequence)
        known = residues(self.descriptor)
        base, n = COORDINATES.decode(states(len(sequence), 1, seed), self.descriptor).positions[0], len(sequence)
        own = torch.repeat_interleave(torch.arange(n), (known.atoms >= 0).sum(1))
        self.owner, self.alpha = torch.cat([own, torch.arange(n).repeat(extra)]), known.atoms[:, CA]
        more = base[self.alpha].repeat(extra, 1) + 2 * torch.randn(extra * n, 3, generator=rng, dtype=DOUBLE)
        self.rest = torch.cat([base, more])
        raw = torch.randn(self.rest.numel(), self.rest.numel(), generator=rng, dtype=DOUBLE)
        self.stiffness = (torch.eye(len(raw), dtype=DOUBLE) + raw @ raw.T / len(raw)) / width**2

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        gap = (x - self.rest).flatten(1)
        return -0.5 * torch.einsum("bi,ij,bj->b", gap, self.stiffness, gap)

    def forces(self, x: torch.Tensor) -> torch.Tensor:
        return -((x - self.rest).flatten(1) @ self.stiffness).reshape(x.shape)

    def sample(self, n: int, seed: int = 0) -> torch.Tensor:
        raw = torch.randn(n, self.rest.numel(), generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
        root = torch.linalg.cholesky(self.stiffness)
        return self.rest + torch.linalg.solve_triangular(root.T, raw.T, upper=True).T.reshape(n, *self.rest.shape)

    def state(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return COORDINATES.encode(Geometry(x[:, : self.descriptor.n_atoms]), self.descriptor)[0]

    def force(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return COORDINATES.force(x, self.forces(x), self.owner, self.alpha)


def test_forces_are_derivatives_along_rigid_motions_of_residues():
    """Through the exponential map, by autograd: residues are moved as their state says they are."""
    model = AllAtom(width=1.0)
    x, joint = model.sample(4), Joint(pos=Diffusion(ZeroCentroid(3), LogSNR()), rot=Diffusion(SO3(3), Geometric()))
    still = joint.still(model.state(x))
    start = x[:, model.alpha]
    shift = COORDINATES.scale * joint["pos"].space.project(still["pos"])
    turn = rotation_matrix(still["rot"])[:, model.owner]
    moved = (start + shift)[:, model.owner] + (turn @ (x - start[:, model.owner])[..., None])[..., 0]
    wanted = torch.autograd.grad(model.log_density(moved).sum(), list(still.values()))
    found = model.force(x)
    for name, slope in zip(still, wanted, strict=True):
        torch.testing.assert_close(found[name], joint[name].space.project(slope), atol=1e-9, rtol=1e-9)
    # And that motion is the exponential map's.
    small = {name: 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE) for name, v in still.items()}
    shift, turn = COORDINATES.scale * joint["pos"].space.project(small["pos"]), rotation_matrix(small["rot"])[:, model.owner]
    moved = (start + shift)[:, model.owner] + (turn @ (x - start[:, model.owner])[..., None])[..., 0]
    same_frames(model.state(moved), joint.exp(model.state(x), small))


def test_mean_force_over_hidden_atoms_is_the_gradient_of_the_marginal():
    """One side atom a residue, between a point of its own frame and one of the next: normal given the frames, so its integral is
    closed and Gauss's formula of three nodes an axis is exact for the means of forces and torques.
    """
    near, far = 3.0, 0.8
    state, descriptor = states(2, 5), protein("GG")
    own, other = torch.tensor([1.0, 1.5, -0.5], dtype=DOUBLE), torch.tensor([-0.5, 0.3, 2.0], dtype=DOUBLE)
    joint = Joint(pos=Diffusion(ZeroCentroid(2), LogSNR()), rot=Diffusion(SO3(2), Geometric()))

    def anchors(s):
        alpha, turn = s["pos"] * COORDINATES.scale, rotation_matrix(s["rot"])
        return alpha[:, 0] + turn[:, 0] @ own, alpha[:, 1] + turn[:, 1] @ other

    def marginal(s):
        a, b = anchors(s)
        return -0.5 * near * far / (near + far) * (a - b).square().sum(-1)

    still = joint.still(state)
    slopes = torch.autograd.grad(marginal(joint.exp(state, still)).sum(), list(still.values()))
    a, b = anchors(state)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(3))
    spread = torch.cartesian_prod(nodes, nodes, nodes) / math.sqrt(near + far)
    share = torch.cartesian_prod(weights, weights, weights).prod(1)
    backbone = COORDINATES.decode(state, descriptor).positions
    total = {name: torch.zeros_like(x) for name, x in state.items()}
    for step, weight in zip(spread, share / share.sum(), strict=True):
        y = (near * a + far * b) / (near + far) + step
        # Residue 0 feels the spring to its own frame at its anchor, residue 1 at its own; both springs pull at the side atom.
        x = torch.cat([backbone, y[:, None], a[:, None], b[:, None]], 1)
        pull, push = near * (a - y), far * (b - y)
        forces = torch.cat([torch.zeros_like(backbone), (pull + push)[:, None], -pull[:, None], -push[:, None]], 1)
        owner = torch.tensor([0] * 4 + [1] * 4 + [0, 0, 1])
        found = COORDINATES.force(x, forces, owner, residues(descriptor).atoms[:, CA])
        total = {name: total[name] + weight * found[name] for name in total}
    for name, slope in zip(still, slopes, strict=True):
        torch.testing.assert_close(total[name], joint[name].space.project(slope), atol=1e-9, rtol=1e-9)


def test_forces_are_scores_in_the_measure_of_the_frames():
    """E[force . field + divergence of the field] = 0 over all-atom draws, N and C with the bonds and angles they have: the marginal
    is relative to Lebesgue's measure of the alpha carbons and the uniform law of orientations, and nothing else.
    """
    model = AllAtom()
    x = model.sample(20_000)
    state, force = model.state(x), model.force(x)
    matrix, pos = rotation_matrix(state["rot"]), COORDINATES.scale * state["pos"]
    pull, torque = force["pos"] / COORDINATES.scale, force["rot"]
    # Along the tangent e_k a matrix grows by e_k x its columns.
    axes = torch.eye(3, dtype=DOUBLE)
    around = torch.linalg.cross(axes[:, None], axes[None]).transpose(1, 2)
    seen = torque[..., None, None] * matrix[:, :, None] + around @ matrix[:, :, None]
    assert z_score(seen.flatten(1), 0.0) < 5
    assert z_score((pull[:, :, None, :, None] * matrix[:, None, :, None, 0]).flatten(1), 0.0) < 5
    assert z_score((torque[:, :, None, :, None] * pos[:, None, :, None]).flatten(1), 0.0) < 5
    # Moved by itself off the centroid: a projection's trace.
    own = torch.einsum("nm,ij->nimj", torch.eye(3, dtype=DOUBLE) - 1 / 3, axes).flatten()
    assert z_score((pull[:, :, :, None, None] * pos[:, None, None]).flatten(1) + own, 0.0) < 5


# Exact samplers of frames --------------------------------------------------------------------------------------------------

KIND = {"ou": LogSNR(10.0, -6.0), "arc": Cosine(), "brownian": Geometric(0.01, 3.5)}
TURNING = Geometric(0.02 * math.sqrt(2), 1.65 * math.sqrt(2))
"""The article's code names half the variance an axis."""


def frames(schedule, n: int) -> Joint:
    return Joint(pos=Diffusion(ZeroCentroid(n), schedule), rot=Diffusion(SO3(n), TURNING))


class Together:
    """The exact score of a mixture of laws of all components at once."""

    conservative = True

    def __init__(self, weights: list[float], parts: list[AnalyticScore]):
        self.weights, self.parts, self.process = torch.tensor(weights, dtype=DOUBLE), parts, parts[0].process

    def __call__(self, state, t, descriptor=None):
        share = self._share(state, t)
        scores = [part(state, t) for part in self.parts]
        return {name: sum(w * score[name] for w, score in zip(share, scores, strict=True)) for name in self.process}

    def moments(self, state, t, descriptor=None) -> Moments:
        """By the laws of total expectation and variance."""
        share, each, noise, spread = self._share(state, t), [part.moments(state, t) for part in self.parts], {}, {}
        for name, part in self.process.items():
            noise[name] = sum(w * m.noise[name] for w, m in zip(share, each, strict=True))
            gaps = [(m.noise[name] - noise[name]) ** 2 for m in each]
            if not part.space.periodic:
                gaps = [gap.sum((1, 2), keepdim=True) / part.space.dim for gap in gaps]
            spread[name] = sum(w * (m.spread[name] + gap) for w, m, gap in zip(share, each, gaps, strict=True))
        return Moments(noise, spread)

    def log_prob(self, state, t=None):
        return torch.logsumexp(self._logs(state, t), 0)

    def _logs(self, state, t) -> torch.Tensor:
        return torch.stack([part.log_prob(state, t) for part in self.parts]) + self.weights.log()[:, None]

    def _share(self, state, t) -> torch.Tensor:
        return torch.softmax(self._logs(state, t), 0)[..., None, None]


WEIGHTS, WIDTHS, SWINGS, RESIDUES_IN = [0.3, 0.7], [0.1, 0.2], [0.25, 0.4], 2
"""Of two shapes of two residues: weights, standard deviations an axis of positions, over the scale, and of orientations in radians."""


def two_shapes(schedule) -> Together:
    process, means = frames(schedule, RESIDUES_IN), states(RESIDUES_IN, 2)
    flat = means["pos"].flatten(1) @ process["pos"].space.basis().flatten(1).T
    flat = flat * (process["pos"].space.dim / flat.square().sum(1, keepdim=True)).sqrt()
    parts = [
        AnalyticScore(process, {
            "pos": GaussianMixture([1.0], m[None], [[width**2] * len(m)]),
            "rot": HeatMixture(process["rot"].space, [1.0], r.flatten()[None], [swing**2]),
        }) for m, r, width, swing in zip(flat, means["rot"], WIDTHS, SWINGS, strict=True)
    ]  # fmt: skip
    return Together(WEIGHTS, parts)


def test_mixture_of_frames_is_a_score_model_of_its_density():
    model = two_shapes(KIND["ou"])
    state, t = model.parts[1].sample(4, torch.Generator().manual_seed(0)), torch.tensor([0.6], dtype=DOUBLE)
    check_score_model(model, state)
    still = model.process.still(state)
    slopes = torch.autograd.grad(model.log_prob(model.process.exp(state, still), t).sum(), list(still.values()))
    for name, slope in zip(still, slopes, strict=True):
        wanted = model.process[name].space.project(slope)
        torch.testing.assert_close(model(state, t)[name], wanted, atol=1e-8, rtol=1e-7)


def reference_loop(model, grid, rng, share: float):
    """The article's algorithm 5 (``share`` 1/2) and the loop of its released code (1): no noise, and half and all of the drift."""
    state = model.process.prior(model.process.empty(len(rng), DOUBLE)).sample(rng)
    for t, s in backward_steps(grid):
        score = model(state, t)
        step = {name: share * part.schedule.diffusion(t) * (t - s) * score[name] for name, part in model.process.items()}
        state = model.process.exp(state, step)
    return state


class Impulses:
    """Noise for solvers that are linear: sample k has a unit in its k-th draw and nothing else, so squares add up to the variance."""

    def __init__(self, n: int, way: torch.Tensor):
        self.n, self.way, self.drawn = n, way, 0

    def __len__(self) -> int:
        return self.n

    def normal(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        found = torch.zeros(self.n, *shape, dtype=dtype)
        found[self.drawn] = self.way
        self.drawn += 1
        return found


def spread_of(solver, schedule, width: float, steps: int) -> float:
    """The standard deviation that a solver gives a normal law of ``width``, without sampling error."""
    space = ZeroCentroid(2)
    law = GaussianMixture([1.0], [[0.0] * 3], [[width**2] * 3])
    model = AnalyticScore(Joint(pos=Diffusion(space, schedule)), {"pos": law})
    rng = Impulses(steps + 1, space.basis()[0])
    return float(solver(model, torch.linspace(0, 1, steps + 1, dtype=DOUBLE), rng)["pos"].square().sum().sqrt())


def named(name: str):
    return lambda model, grid, rng: SOLVERS[name](model, None, grid, rng)


@pytest.mark.parametrize("schedule", KIND.values(), ids=KIND)
@pytest.mark.parametrize(("name", "steps", "limit"), [
    ("ancestral", 10, 1e-4), ("sde", 200, 0.08), ("heun", 100, 0.02), ("rk4", 50, 0.02), ("dpm++", 200, 0.02),
])  # fmt: skip
def test_solvers_keep_the_variance_of_positions(name, schedule, steps, limit):
    """Beside what a flow is known to add: the noise of its first time, and of a prior made for unit data."""
    width, known = 0.1, 0.0
    if name in ("heun", "rk4", "dpm++"):
        one, first = torch.ones(1, dtype=DOUBLE), flow_times(torch.linspace(0, 1, steps + 1, dtype=DOUBLE))[:1]
        alpha, sigma = schedule.alpha(one), schedule.sigma(one)
        known = float((alpha**2 + sigma**2) / (alpha**2 * width**2 + sigma**2)) - 1
        left = float(schedule.sigma(first) / schedule.alpha(first)) / width
        known += left**2 if name != "dpm++" else 0.0
        limit += left**2 if name == "dpm++" else 0.0
    assert abs((spread_of(named(name), schedule, width, steps) / width) ** 2 - 1 - known) < limit


def test_the_released_loop_loses_nearly_all_variance():
    """0.027 Angstrom where 1 is right; the article's own algorithm is a flow of first order."""
    for share, low, high in ((1.0, 0.02, 0.035), (0.5, 0.9, 1.1)):
        found = spread_of(lambda model, grid, rng, share=share: reference_loop(model, grid, rng, share), KIND["brownian"], 0.1, 500)
        assert low < 10 * found < high


def swing_of(solver, steps: int, swing: float) -> float:
    """E[angle^2] that a solver without noise gives Brownian motion from the identity: all stays on the axis of the latent, so a
    formula over its angle is enough.
    """
    space = SO3()
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(120))
    angles = 0.5 * math.pi * (nodes + 1)
    law = HeatMixture(space, [1.0], [[0.0] * 3], [swing**2])
    model = AnalyticScore(Joint(rot=Diffusion(space, TURNING)), {"rot": law})
    start = {"rot": angles[:, None] * torch.tensor([[0.0, 0.0, 1.0]], dtype=DOUBLE)}
    grid = torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    found = SOLVERS[solver](model, None, grid, Streams(0, range(len(angles))), start=start)["rot"]
    return float((0.5 * math.pi * weights * (1 - torch.cos(angles)) / math.pi * found.square().sum(1)).sum())


def swing_squared(variance: float) -> float:
    """E[angle^2] of Brownian motion, by quadrature."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(120))
    angles = 0.5 * math.pi * (nodes + 1)
    gap = angles[:, None] * torch.tensor([[1.0, 0.0, 0.0]], dtype=DOUBLE)
    density = SO3().log_heat(gap, torch.tensor(variance, dtype=DOUBLE)).exp()
    return float((0.5 * math.pi * weights * (1 - torch.cos(angles)) / math.pi * density * angles**2).sum())


@pytest.mark.parametrize(("name", "steps", "limit"), [("heun", 50, 0.02), ("rk4", 16, 0.015), ("dpm++", 50, 0.02)])
def test_flows_keep_the_variance_of_orientations(name, steps, limit):
    swing = 0.3
    left = (TURNING.low / swing) ** 2
    found = swing_of(name, steps, swing) / swing_squared(swing**2) - 1
    assert abs(found - (left if name != "dpm++" else 0.0)) < limit


def measured(model: Together, state) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(B,) which component samples are of, and of each component (B',) squares of gaps from its mean over what they should be, pos
    and rot in a row.
    """
    process = model.process
    which = torch.stack([part.log_prob(state) for part in model.parts]).argmax(0)
    ratios = []
    for k, part in enumerate(model.parts):
        mine = {name: x[which == k] for name, x in state.items()}
        for name, law in part.laws.items():
            basis = process[name].space.basis().flatten(1)
            mean = (law.means @ basis).reshape(1, *process[name].space.shape).expand_as(mine[name])
            gap = process[name].space.log(mean, mine[name]).square().sum((1, 2))
            one = WIDTHS[k] ** 2 * 3 * (RESIDUES_IN - 1) if name == "pos" else swing_squared(SWINGS[k] ** 2) * RESIDUES_IN
            ratios.append(gap / one)
    return which, ratios


@pytest.mark.parametrize("kind", ["ou", "brownian"])
@pytest.mark.parametrize(("name", "steps"), [("ancestral", 20), ("sde", 40), ("heun", 20), ("rk4", 8), ("dpm++", 16)])
def test_solvers_draw_shapes_with_their_weights_and_widths(kind, name, steps):
    """Few samples: what is seen is gross. Exact variances are above, finer ones in benchmarks/frames.py."""
    model, n = two_shapes(KIND[kind]), 150
    state = SOLVERS[name](model, None, torch.linspace(0, 1, steps + 1, dtype=DOUBLE), Streams(5, range(n)))
    which, ratios = measured(model, state)
    assert z_score((which == 0).double(), WEIGHTS[0]) < 4
    # Few steps, and a prior made for unit data, widen by a tenth to a quarter.
    slack = {"ancestral": 0.15, "sde": 0.25, "heun": 0.25}.get(name, 0.1)
    for ratio in ratios:
        assert abs(float(ratio.mean()) - 1) < slack + 4 * float(ratio.std()) / math.sqrt(len(ratio))


def test_frames_are_drawn_by_their_streams():
    model = two_shapes(KIND["ou"])
    check_streams(lambda rng: SOLVERS["ancestral"](model, None, torch.linspace(0, 1, 5, dtype=DOUBLE), rng), tolerance=1e-8)


def test_paths_of_frames_have_the_normalising_constant_as_their_mean():
    """log q of paths in the coordinates' own measure against the law's density there, model spoilt."""
    model, descriptor = two_shapes(KIND["ou"]), protein("GG")
    dig = DiG(Sabotaged(model, 0.1), COORDINATES, descriptor)
    drawn = dig.proposal(steps=8).draw(400, Streams(1, range(400)))
    assert drawn.geometry.positions.shape == (400, 8, 3)
    log_weight = model.log_prob(drawn.state) - COORDINATES.log_volume(drawn.state, descriptor) - drawn.log_q
    assert z_score(log_weight.exp()[:, None], 1.0) < 4
    assert float(log_weight.exp().mean()) > 0.7
