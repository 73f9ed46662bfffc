"""Coordinates: round trips up to the gauge, Jacobians, handedness, rings, poses, and the constants of the measure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dig_core.coordinates import Cartesian, Internal
from dig_core.coordinates.pose import random_rotations
from dig_core.coordinates.zmatrix import ZMatrix, stereo_sign
from dig_core.diffusion import Diffusion, Euclidean, Geometric, Joint, LogSNR, Torus, ZeroCentroid
from dig_core.dig import DiG
from dig_core.energy import AnalyticScore, GaussianMixture, Springs, WrappedMixture
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.nn import InternalGraphormer
from dig_core.random import Streams
from dig_core.system.descriptor import Descriptor, molecule
from dig_core.system.graph import shortest_paths
from dig_core.testing import Sabotaged, check_coordinates, check_proposal
from dig_core.types import Geometry

DOUBLE = torch.float64
RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57, 16: 1.05, 17: 1.02, 35: 1.20}
PDB = Path(__file__).parents[2] / "dig_plugins/models/alanine-dipeptide.pdb"

MOLECULES = {
    "water": ([8, 1, 1], [(0, 1), (0, 2)]),
    "ethane": ([6] * 2 + [1] * 6, [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7)]),
    "halomethane": ([6, 9, 17, 35, 1], [(0, 1), (0, 2), (0, 3), (0, 4)]),
    "propanol": (
        [6, 6, 6, 8] + [1] * 8,
        [(0, 1), (1, 2), (1, 3), (0, 4), (0, 5), (0, 6), (1, 7), (2, 8), (2, 9), (2, 10), (3, 11)],
    ),
    "neopentane": ([6] * 5 + [1] * 12, [(0, 1), (0, 2), (0, 3), (0, 4)] + [(1 + i // 3, 5 + i) for i in range(12)]),
    "cyclopropane": ([6] * 3 + [1] * 6, [(0, 1), (1, 2), (2, 0)] + [(i // 2, 3 + i) for i in range(6)]),
    "pyrrolidine": (
        [7] + [6] * 4 + [1] * 9,
        [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 5)] + [(1 + i // 2, 6 + i) for i in range(8)],
    ),
}

STRAIGHT = {
    "acetonitrile": ([6, 6, 7, 1, 1, 1], [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5)], [(0, 1, 2)]),
    "propyne": ([6, 6, 6, 1, 1, 1, 1], [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (2, 6)], [(0, 1, 2), (1, 2, 6)]),
    "but-2-yne": ([6] * 4 + [1] * 6, [(0, 1), (1, 2), (2, 3)] + [(3 * (i // 3), 4 + i) for i in range(6)], [(0, 1, 2), (1, 2, 3)]),
    "hexa-2,4-diyne": (
        [6] * 6 + [1] * 6,
        [(i, i + 1) for i in range(5)] + [(5 * (i // 3), 6 + i) for i in range(6)],
        [(i, i + 1, i + 2) for i in range(4)],
    ),
    "methyl isocyanate": ([6, 7, 6, 8, 1, 1, 1], [(0, 1), (1, 2), (2, 3), (0, 4), (0, 5), (0, 6)], [(1, 2, 3)]),
    "benzonitrile": (
        [6] * 7 + [7] + [1] * 5,
        [(i, (i + 1) % 6) for i in range(6)] + [(0, 6), (6, 7)] + [(1 + i, 8 + i) for i in range(5)],
        [(0, 6, 7)],
    ),
    "allene": ([6] * 3 + [1] * 4, [(0, 1), (1, 2), (0, 3), (0, 4), (2, 5), (2, 6)], [(0, 1, 2)]),
    "sulphur hexafluoride": ([16] + [9] * 6, [(0, i) for i in range(1, 7)], [(1, 0, 2), (3, 0, 4), (5, 0, 6)]),
}
"""Numbers, bonds and straight angles."""


def built(name: str) -> Descriptor:
    """A molecule with a passable shape: bonds, distances of next neighbours and a little room for the rest, relaxed."""
    numbers, bonds, *straight = (MOLECULES | STRAIGHT)[name]
    n = len(numbers)
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).requires_grad_()
    radius = torch.tensor([RADII[number] for number in numbers])
    i, j = torch.triu_indices(n, n, 1)
    apart, rest = shortest_paths(n, torch.tensor(bonds))[i, j], radius[i] + radius[j]
    optimiser = torch.optim.Adam([x], lr=0.05)
    for _ in range(600):
        d = (x[i] - x[j]).norm(dim=1)
        strain = 20 * (d - rest)[apart == 1].square().sum() + (1 / d[apart > 1]).sum()
        strain = (
            strain
            + 3 * (d - 0.817 * (rest + 1.4))[apart == 2].square().sum()
            + (2.4 - d)[apart > 2].relu().square().sum()
        )
        for a, b, c in straight[0] if straight else []:
            strain = strain + 50 * torch.nn.functional.normalize(torch.stack([x[a] - x[b], x[c] - x[b]]), dim=1).sum(0).square().sum()
        optimiser.zero_grad()
        strain.backward()
        optimiser.step()
    return molecule(numbers, bonds, positions=x.detach())


def shaken(descriptor: Descriptor, n: int = 6, amplitude: float = 0.06, seed: int = 1) -> Geometry:
    rng = torch.Generator().manual_seed(seed)
    start = descriptor.reference.positions
    return Geometry(start + amplitude * torch.randn(n, *start.shape[1:], generator=rng, dtype=DOUBLE))


def process_of(coordinates) -> Joint:
    if isinstance(coordinates, Internal):
        free = len(coordinates.torsion_atoms)
        return Joint(
            shape=Diffusion(Euclidean(len(coordinates.centre)), LogSNR()), torsion=Diffusion(Torus(free), Geometric())
        )
    raise TypeError(type(coordinates))


def turned(geometry: Geometry, seed: int = 0) -> Geometry:
    """Every structure somewhere else."""
    rng = Streams(seed, range(len(geometry.positions)))
    rotation, shift = random_rotations(rng), 5 * rng.normal(1, 3, dtype=DOUBLE)
    return Geometry(geometry.positions @ rotation.transpose(1, 2) + shift)


@pytest.fixture(scope="module")
def alanine() -> Descriptor:
    pytest.importorskip("openmm")
    from openmm import app, unit

    pdb = app.PDBFile(str(PDB))
    positions = torch.tensor(pdb.positions.value_in_unit(unit.angstrom), dtype=DOUBLE)
    bonds = [(bond[0].index, bond[1].index) for bond in pdb.topology.bonds()]
    return molecule([atom.element.atomic_number for atom in pdb.topology.atoms()], bonds, positions=positions)


@pytest.mark.parametrize("name", MOLECULES)
def test_internal_coordinates(name):
    descriptor = built(name)
    coordinates = Internal.from_reference(descriptor)
    check_coordinates(coordinates, process_of(coordinates), turned(shaken(descriptor)), descriptor)


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_groups(name):
    """Round trip, handedness and Jacobian behind straight angles, straight to the last digit and bent by a few degrees."""
    descriptor = built(name)
    coordinates = Internal.from_reference(descriptor)
    assert bool(coordinates.zmatrix.straight)
    assert len(coordinates.centre) + len(coordinates.torsion_atoms) == 3 * descriptor.n_atoms - 6
    check_coordinates(coordinates, process_of(coordinates), turned(shaken(descriptor, amplitude=0.05)), descriptor)
    frames = shaken(descriptor, n=200, amplitude=0.04)
    whitened = Internal.from_frames(descriptor, frames)
    check_coordinates(whitened, process_of(whitened), turned(Geometry(frames.positions[:4])), descriptor)


def test_a_straight_group_may_bend_either_way():
    """A nitrogen exactly on the line and displaced from it: components, no singularity, volume that of a plain displacement."""
    descriptor = built("acetonitrile")
    coordinates = Internal.from_reference(descriptor, {(1, 2): (1.16, 0.02), (0, 1, 2): (math.pi, 0.07)})
    aside = torch.tensor(coordinates.kinds) == 4
    assert coordinates.centre[aside].tolist() == [0, 0] and coordinates.width[aside].tolist() == pytest.approx([0.07 * 1.16] * 2)
    state, _ = coordinates.encode(descriptor.reference, descriptor)
    volumes = []
    for value in (0.0, 1.0, -3.0):
        state["shape"][:, aside] = value
        x = coordinates.decode(state, descriptor).positions[0]
        along, rest = x[1] - x[0], x[2] - x[1]
        assert float(torch.linalg.cross(along, rest).norm() / along.norm()) == pytest.approx(abs(value) * 0.07 * 1.16 * 2**0.5, abs=1e-9)
        volumes.append(float(coordinates.log_volume(state, descriptor)))
    assert max(volumes) - min(volumes) < 1e-12


def test_networks_read_straight_groups():
    descriptor = built("methyl isocyanate")
    coordinates = Internal.from_reference(descriptor)
    network = InternalGraphormer.of(coordinates, layers=1, width=16, heads=2)
    state, _ = coordinates.encode(shaken(descriptor), descriptor)
    noise, _ = network({name: x.float() for name, x in state.items()}, torch.full((6,), 0.5), descriptor)
    assert all(noise[name].shape == x.shape and bool(torch.isfinite(noise[name]).all()) for name, x in state.items())


def test_molecules_without_straight_groups_are_described_as_before():
    """Checkpoints of earlier versions know nothing of them."""
    config = Internal.from_reference(built("propanol")).zmatrix.config
    assert config.pop("straight") == []
    assert ZMatrix.from_config(**config).straight == ()


@pytest.mark.parametrize("name", ["water", "cyclopropane"])
def test_cartesian_coordinates(name):
    descriptor = built(name)
    process = Joint(pos=Diffusion(ZeroCentroid(descriptor.n_atoms), LogSNR()))
    check_coordinates(Cartesian(1.7), process, turned(shaken(descriptor)), descriptor)


def test_internal_coordinates_from_frames():
    """Whitened and, where torsions never turn, all in one component: the same invariants."""
    descriptor = built("propanol")
    frames = shaken(descriptor, n=200, amplitude=0.04)
    coordinates = Internal.from_frames(descriptor, frames)
    check_coordinates(coordinates, process_of(coordinates), turned(Geometry(frames.positions[:6])), descriptor)
    state, _ = coordinates.encode(frames, descriptor)
    assert (state["shape"].mean(0)).abs().max() < 1e-6
    assert (torch.cov(state["shape"].T) - torch.eye(len(coordinates.centre))).abs().max() < 0.2


def test_alanine_dipeptide(alanine):
    coordinates = Internal.from_reference(alanine)
    assert len(coordinates.centre) + len(coordinates.torsion_atoms) == 3 * 22 - 6
    assert len(coordinates.zmatrix.rotors) == 3
    check_coordinates(coordinates, process_of(coordinates), turned(shaken(alanine, 4, 0.05)), alanine, tolerance=1e-6)


def test_alanine_dipeptide_at_other_torsions(alanine):
    """Far from the reference: torsions drawn from the whole circle come back as they were, in any pose and labelling."""
    coordinates = Internal.from_reference(alanine)
    process, n = process_of(coordinates), 64
    rng = torch.Generator().manual_seed(2)
    torsion = math.pi * (2 * torch.rand(n, len(coordinates.torsion_atoms), generator=rng, dtype=DOUBLE) - 1)
    state = {"shape": 0.8 * torch.randn(n, len(coordinates.centre), generator=rng, dtype=DOUBLE), "torsion": torsion}
    assert coordinates.valid(state, alanine).all()
    posed = coordinates.pose(coordinates.decode(state, alanine), Streams(0, range(n)))
    found, _ = coordinates.encode(turned(posed), alanine)
    for name, part in process.items():
        assert part.space.log(state[name], found[name]).abs().max() < 1e-7


def test_rotor_labels_are_drawn_evenly_and_stay_with_their_methyl(alanine):
    coordinates, n = Internal.from_reference(alanine), 1500
    repeated = Geometry(alanine.reference.positions.expand(n, -1, -1))
    posed = coordinates.pose(repeated, Streams(0, range(n))).positions
    before = torch.cdist(alanine.reference.positions, alanine.reference.positions)[0]
    after = torch.cdist(posed, posed)
    turning = {i for rotor in coordinates.zmatrix.rotors for i in rotor.atoms}
    for rotor in coordinates.zmatrix.rotors:
        ends = list(rotor.atoms)
        fixed = next(i for i in range(22) if i not in turning and torch.pdist(before[i, ends, None]).min() > 0.05)
        which = (after[:, ends[0], fixed, None] - before[ends, fixed]).abs().argmin(1)
        share = torch.bincount(which, minlength=3) / n
        assert (share - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / n)


def test_stereocentres_keep_their_sign(alanine):
    """No valid state is the mirror image, and a mirror image does not encode to a valid neighbour of the original."""
    coordinates, around = Internal.from_reference(alanine), (6, 10, 14)
    sign = stereo_sign(alanine.reference.positions, 8, around)
    rng = torch.Generator().manual_seed(3)
    state = {
        "shape": 1.5 * torch.randn(2000, len(coordinates.centre), generator=rng, dtype=DOUBLE),
        "torsion": math.pi * (2 * torch.rand(2000, len(coordinates.torsion_atoms), generator=rng, dtype=DOUBLE) - 1),
    }
    valid = coordinates.valid(state, alanine)
    decoded = coordinates.decode(state, alanine).positions
    assert valid.float().mean() > 0.95
    assert (stereo_sign(decoded[valid], 8, around) == sign).all()
    mirror = Geometry(alanine.reference.positions * torch.tensor([1.0, 1.0, -1.0]))
    original, reflected = (coordinates.encode(g, alanine)[0]["shape"] for g in (alanine.reference, mirror))
    assert (original - reflected).abs().max() > 10


def test_invalid_states_are_seen():
    descriptor = built("propanol")
    coordinates = Internal.from_reference(descriptor)
    state, _ = coordinates.encode(descriptor.reference, descriptor)
    assert coordinates.valid(state, descriptor).all()
    kinds = torch.tensor(coordinates.kinds)
    for kind, raw in ((0, -0.1), (1, -0.1), (1, 3.2), (2, 1e2)):
        column = int((kinds == kind).nonzero()[0])
        broken = {name: x.clone() for name, x in state.items()}
        broken["shape"][:, column] = (raw - coordinates.centre[column]) / coordinates.width[column]
        assert not coordinates.valid(broken, descriptor).any()


def test_force_field_standards_are_used_from_either_end():
    descriptor = built("water")
    coordinates = Internal.from_reference(descriptor, {(1, 0): (1.01, 0.02), (1, 0, 2): (1.8, 0.05)})
    assert 1.01 in coordinates.centre and 1.8 in coordinates.centre
    assert 0.02 in coordinates.width and 0.05 in coordinates.width


def test_what_has_no_internal_coordinates_is_refused():
    with pytest.raises(IncompatibleError, match="reference"):
        Internal.from_reference(molecule([8, 1, 1], [(0, 1), (0, 2)]))
    with pytest.raises(UnsupportedError, match="straight line"):
        Internal.from_reference(
            molecule([6, 8, 8], [(0, 1), (0, 2)], positions=[[0.0, 0, 0], [1.2, 0, 0], [-1.2, 0.001, 0]])
        )
    with pytest.raises(UnsupportedError, match="falls apart"):
        Internal.from_reference(molecule([8, 1, 1, 2], [(0, 1), (0, 2)], positions=torch.eye(4)[:, :3]))
    with pytest.raises(UnsupportedError, match="at least 3"):
        Internal.from_reference(molecule([1, 1], [(0, 1)], positions=[[0.0, 0, 0], [1.0, 0, 0]]))


def test_rebuilt_coordinates_agree():
    descriptor = built("pyrrolidine")
    first = Internal.from_frames(descriptor, shaken(descriptor, 100))
    second = Internal.from_config(**first.config)
    second.load_state_dict(first.state_dict())
    geometry = shaken(descriptor)
    for found, wanted in zip(second.encode(geometry, descriptor), first.encode(geometry, descriptor), strict=True):
        if isinstance(found, dict):
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        else:
            assert torch.equal(found, wanted)


def test_checks_see_a_wrong_jacobian_and_a_lost_mirror():
    class Sloppy(Internal):
        def _log_volume(self, raw):
            return super()._log_volume(raw) + 0.01 * raw[:, 0]

    class Mirrored(Internal):
        def decode(self, state, descriptor):
            return Geometry(super().decode(state, descriptor).positions * torch.tensor([1.0, 1.0, -1.0]))

    descriptor = built("halomethane")
    base = Internal.from_reference(descriptor)
    for kind, word in ((Sloppy, "Jacobian"), (Mirrored, "encode")):
        wrong = kind(base.zmatrix, base.centre, base.width)
        with pytest.raises(AssertionError, match=word):
            check_coordinates(wrong, process_of(wrong), shaken(descriptor), descriptor)


# The constants of the measure: one molecule's partition function, in three ways.

SPRINGS = Springs([(0, 1), (0, 2), (1, 2)], [1.0, 1.1, 1.5], [40.0, 30.0, 30.0])
TRIATOMIC = molecule([8, 1, 1], [(0, 1), (0, 2)], positions=[[0.0, 0, 0], [1.0, 0, 0], [0.1, 1.1, 0]])


def log_partition_function() -> float:
    """Of SPRINGS over the zero-centroid subspace, through interatomic distances: 8 pi^2 N^(-3/2) int r12 r13 r23 exp(-u)."""
    sides = [torch.linspace(1e-3, 3.0, 241, dtype=DOUBLE)] * 3
    a, b, c = torch.meshgrid(*sides, indexing="ij")
    u = sum(0.5 * k * (r - rest) ** 2 for k, r, rest in zip(SPRINGS.stiffness, (a, b, c), SPRINGS.lengths, strict=True))
    # Half the orthogonal group: the plane of a triangle is turned over by a rotation.
    density = torch.where((a + b > c) & (b + c > a) & (a + c > b), a * b * c * torch.exp(-u), 0.0)
    step = float(sides[0][1] - sides[0][0])
    return math.log(8 * math.pi**2 * 3**-1.5 * float(density.sum()) * step**3)


def proposals(coordinates) -> DiG:
    """Broad normal laws in the coordinates' own units, read through a spoilt model."""
    if isinstance(coordinates, Cartesian):
        joint = Joint(pos=Diffusion(ZeroCentroid(3), LogSNR()))
        laws = {"pos": GaussianMixture([1.0], [[0.0] * 6], [[1.0] * 6])}
    else:
        joint = Joint(shape=Diffusion(Euclidean(3), LogSNR()), torsion=Diffusion(Torus(0), Geometric()))
        laws = {
            "shape": GaussianMixture([1.0], [[0.0] * 3], [[1.0] * 3]),
            "torsion": WrappedMixture([1.0], torch.zeros(1, 0), torch.zeros(1, 0)),
        }
    return DiG(Sabotaged(AnalyticScore(joint, laws), 0.05), coordinates, TRIATOMIC)


@pytest.mark.parametrize("kind", ["internal", "cartesian"])
def test_partition_function_of_a_triatomic(kind):
    """8 pi^2, N^(3/2), b^2 sin(theta) and the units of the state at once: two descriptions, one number."""
    if kind == "internal":
        standards = {(0, 1): (1.0, 0.2), (0, 2): (1.1, 0.2), (1, 0, 2): (1.6, 0.3)}
        coordinates, n = Internal.from_reference(TRIATOMIC, standards), 3000
    else:
        coordinates, n = Cartesian(0.7), 12_000
    proposal = proposals(coordinates).proposal(steps=4)
    check_proposal(proposal, SPRINGS, log_partition_function(), n=n, limit=4.0)
