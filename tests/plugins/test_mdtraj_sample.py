"""Backbones as a user asks for them: whole ones and their counts, conditions with weights that are exact, paths whose ends come back."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from dig_core.coordinates.backbone import Backbone
from dig_core.diffusion import SO3, Diffusion, Geometric, Joint, LogSNR, ZeroCentroid
from dig_core.diffusion.rotations import rotation_matrix, rotation_vector
from dig_core.dig import DiG
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.errors import IncompatibleError, StateError, UnsupportedError
from dig_core.sampling.guidance import Property, PropertyGuidance
from dig_core.sampling.likelihoods import Range, Value
from dig_core.system.descriptor import molecule
from dig_core.system.protein import protein, residues
from dig_core.testing import HeatMixture
from dig_core.types import Geometry

pytest.importorskip("mdtraj")

from dig_plugins.mdtraj.checks import check_backbones
from dig_plugins.mdtraj.collective import RMSD, Distance, Gyration, NativeContacts, Restraints, alpha_carbons, numbered
from dig_plugins.mdtraj.observables.superposition import rmsd, superpose
from dig_plugins.mdtraj.path import BackbonePath, interpolate_backbones
from dig_plugins.mdtraj.sample import BackboneEnsemble, sample_backbones

DOUBLE = torch.float64
SEQUENCE = "AGAAPAGA"
TURN = rotation_matrix(torch.tensor([0.5, -1.0, 0.7], dtype=DOUBLE))
ANY = partial(check_backbones, bond=(0.0, math.inf), clash=0.0)


def helix(n: int) -> torch.Tensor:
    """(n, 3) Angstrom, alpha carbons of an alpha helix: 100 degrees and 1.5 Angstrom a residue."""
    angle = math.radians(100) * torch.arange(n, dtype=DOUBLE)
    return torch.stack([2.3 * angle.cos(), 2.3 * angle.sin(), 1.5 * torch.arange(n, dtype=DOUBLE)], dim=1)


def strand(n: int) -> torch.Tensor:
    """(n, 3) Angstrom, alpha carbons in a zigzag 3.8 Angstrom apart."""
    k = torch.arange(n, dtype=DOUBLE)
    return torch.stack([3.4 * k, math.sqrt(3.8**2 - 3.4**2) * (k % 2), 0 * k], dim=1)


def built(alpha: torch.Tensor, descriptor) -> Geometry:
    """One structure with these alpha carbons, residues turned as on a helix."""
    turn = torch.tensor([0.0, 0.0, math.radians(100)], dtype=DOUBLE) * torch.arange(len(alpha))[:, None]
    state = {"pos": (alpha - alpha.mean(0))[None] / 10, "rot": rotation_vector(rotation_matrix(turn))[None]}
    return Backbone().decode(state, descriptor)


class Even:
    """The uniform law of a closed space."""

    def __init__(self, dim: int):
        self.dim = dim

    def log_prob(self, x, alpha=1.0, sigma=0.0):
        return x.new_zeros(len(x))

    def score(self, x, alpha=1.0, sigma=0.0):
        return torch.zeros_like(x)

    curvature = score


def model(alpha: torch.Tensor, spread: float, sequence: str = SEQUENCE) -> DiG:
    """Alpha carbons that are normal about ``alpha`` with ``spread`` Angstrom a coordinate, orientations that are even: all known."""
    n = len(alpha)
    space, turns = ZeroCentroid(n), SO3(n)
    mean = ((alpha - alpha.mean(0)) / 10).flatten() @ space.basis().flatten(1).T
    laws = {"pos": GaussianMixture([1.0], mean[None], torch.full((1, space.dim), (spread / 10) ** 2)), "rot": Even(3 * n)}
    process = Joint(pos=Diffusion(space, LogSNR(12, -8)), rot=Diffusion(turns, Geometric(0.03, 2.3)))
    return DiG(AnalyticScore(process, laws), Backbone(), protein(sequence))


DIG = model(helix(8), 0.15)
PROTEIN = DIG.descriptor
ALPHA = residues(PROTEIN).atoms[:, 1]


def weighted(x: np.ndarray, log_weight: np.ndarray) -> tuple[float, float]:
    """Mean under weights, and its standard error."""
    w = np.exp(log_weight - log_weight.max())
    mean = float((w * x).sum() / w.sum())
    return mean, float(np.sqrt((w**2 * (x - mean) ** 2).sum()) / w.sum())


# Checks --------------------------------------------------------------------------------------------------------------


def test_a_chain_is_whole_until_a_residue_is_moved():
    whole = built(helix(8), PROTEIN).positions
    away, onto, lost = whole.clone(), whole.clone(), whole.clone()
    away[0, ALPHA[7]] += torch.tensor([0.0, 0.0, 1.0])
    outwards = helix(8)[3] * torch.tensor([0.5, 0.5, 0.0])
    onto[0, ALPHA[7]] = whole[0, ALPHA[3]] + outwards
    lost[0, ALPHA[0]] = math.nan
    found = check_backbones(Geometry(torch.cat([whole, away, onto, lost])), PROTEIN)
    assert found.ok.tolist() == [True, False, False, False]
    assert found.breaks.tolist()[:3] == [0, 1, 1] and found.clashes.tolist()[:3] == [0, 0, 1]
    torch.testing.assert_close(found.neighbour[0], (helix(2)[1] - helix(2)[0]).norm())
    torch.testing.assert_close(found.neighbour[1], (away[0, ALPHA[7]] - away[0, ALPHA[6]]).norm())
    bond = (residues(PROTEIN).atoms[1:, 0], residues(PROTEIN).atoms[:-1, 2])
    lengths = (whole[0, bond[0]] - whole[0, bond[1]]).norm(dim=1)
    assert float(found.peptide[0]) == pytest.approx(float(lengths[(lengths - 1.329).abs().argmax()]))
    assert not check_backbones(Geometry(whole), PROTEIN, peptide=(1.2, 1.5)).ok


def test_short_steps_are_allowed_before_a_proline_only():
    for sequence, whole in (("AP", True), ("PA", False)):
        descriptor = protein(sequence)
        assert bool(check_backbones(built(torch.tensor([[0.0, 0, 0], [2.95, 0, 0]], dtype=DOUBLE), descriptor), descriptor).ok) == whole


@pytest.mark.parametrize("apart, clashes", [(2.9, 1), (3.1, 0), (9.0, 0)])
def test_residues_that_do_not_follow_may_be_anywhere_but_on_each_other(apart, clashes):
    alpha = torch.tensor([[0.0, 0, 0], [apart, 0, 0]], dtype=DOUBLE)
    for given in ({"numbers": [4, 9]}, {"chains": [0, 1]}):
        descriptor = protein("AA", **given)
        found = check_backbones(built(alpha, descriptor), descriptor)
        assert (int(found.breaks), int(found.clashes), bool(found.ok)) == (0, clashes, not clashes)
        assert found.neighbour.isnan() and found.peptide.isnan()


def test_checks_know_no_pose_and_no_batch():
    samples = DIG.sample(30, seed=5, steps=10).geometry.positions
    found = check_backbones(Geometry(samples), PROTEIN)
    assert 0 < int(found.ok.sum()) < 30
    posed = check_backbones(Geometry(samples @ TURN.T + 7.0), PROTEIN)
    alone = [check_backbones(Geometry(x[None]), PROTEIN) for x in samples]
    for k in range(5):
        torch.testing.assert_close(posed[k], found[k])
        torch.testing.assert_close(torch.cat([x[k] for x in alone]), found[k])


def test_checks_refuse_what_they_cannot_judge():
    with pytest.raises(IncompatibleError, match="positions"):
        check_backbones(Geometry(torch.zeros(1, 3, 3)), PROTEIN)
    with pytest.raises(IncompatibleError, match="bounds"):
        check_backbones(built(helix(8), PROTEIN), PROTEIN, bond=(4.2, 3.4))
    with pytest.raises(UnsupportedError):
        check_backbones(Geometry(torch.zeros(1, 2, 3)), molecule([1, 1], [[0, 1]]))


# Samples -------------------------------------------------------------------------------------------------------------


def test_as_many_whole_ones_as_were_asked_for_and_the_counts():
    found = sample_backbones(DIG, 25, seed=1, steps=10)
    assert len(found) == 25 and check_backbones(found.geometry, PROTEIN).ok.all() and found.valid.all()
    # The same draws, judged by hand.
    plain = check_backbones(DIG.sample(found.counts.drawn, seed=1, steps=10, method="ddpm").geometry, PROTEIN)
    assert found.index.tolist() == plain.ok.nonzero()[:, 0].tolist()
    assert found.counts == (len(plain.ok), 25, int((plain.breaks > 0).sum()), int((plain.clashes > 0).sum()), 0)
    assert found.counts.broken > 0 and str(found.counts) in found.summary()
    assert found.effective_sample_size() == pytest.approx(25) and found.log_weight is None


def test_sample_i_depends_on_seed_and_index_alone():
    many, few, small = (sample_backbones(DIG, n, seed=1, steps=10, batch=b) for n, b in ((20, 32), (7, 32), (20, 3)))
    torch.testing.assert_close(many.geometry.positions, small.geometry.positions)
    torch.testing.assert_close(many.geometry.positions[:7], few.geometry.positions)
    assert many.counts == small.counts and few.index.tolist() == many.index[:7].tolist()


def test_all_draws_are_kept_if_they_are_wanted():
    found = sample_backbones(DIG, 20, seed=1, steps=10, valid_only=False)
    assert found.index.tolist() == list(range(20)) and 0 < found.valid.sum() < 20 and found.counts.drawn == 20
    assert found.valid.tolist() == check_backbones(found.geometry, PROTEIN).ok.tolist()
    assert found.weights[~found.valid].sum() == 0 and found.effective_sample_size() == pytest.approx(found.valid.sum())


def test_too_few_whole_ones_are_an_error_with_the_counts():
    with pytest.raises(StateError, match=r"25 backbones were asked for, 0 were found: of 40 draws 0 are whole, 40 broken"):
        sample_backbones(model(helix(8), 3.0), 25, seed=0, steps=3, most=40)
    for bad in ({"n": 0}, {"most": 1}, {"method": "none"}):
        with pytest.raises(IncompatibleError):
            sample_backbones(**({"dig": DIG, "n": 5, "seed": 0} | bad))


@pytest.mark.parametrize("name, precision", [("run", 0.006), ("few.xtc", 0.006), ("few.dcd", 1e-5), ("few.h5", 1e-5), ("few.pdb", 0.0006)])
def test_ensembles_come_back_from_files(tmp_path, name, precision):
    if name.endswith("h5"):
        pytest.importorskip("tables")
    numbers = [3, 4, 5, 6, 9, 10, 1, 2]
    dig = DiG(DIG.model, DIG.coordinates, protein(SEQUENCE, numbers=numbers, chains=[0] * 6 + [1] * 2))
    wanted = Property(Gyration(), Range(0.0, 4.0, 0.1), "radius")
    made = sample_backbones(dig, 6, seed=2, steps=5, guidance=PropertyGuidance(wanted), check=ANY)
    made.write(tmp_path / name)
    found = BackboneEnsemble.read(tmp_path / name)
    assert (found.geometry.positions - made.geometry.positions).abs().max() < precision
    known, again = residues(made.descriptor), residues(found.descriptor)
    assert all(torch.equal(a, b) for a, b in zip(known, again, strict=True))
    assert found.counts == made.counts and found.made == made.made and found.seed == 2
    for one, other in ((found.index, made.index), (found.valid, made.valid), (found.log_weight, made.log_weight)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.properties["radius"], made.properties["radius"])


def test_runs_are_written_with_what_is_needed_to_do_them_again(tmp_path):
    made = sample_backbones(DIG, 4, seed=7, steps=5)
    made.write(tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"backbones.xtc", "backbones.pdb", "samples.npz", "run.json"}
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (held["seed"], held["steps"], held["method"], held["sequence"]) == (7, 5, "ddpm", SEQUENCE)
    assert held["drawn"] == made.counts.drawn and held["broken"] == made.counts.broken and held["samples"] == 4
    with pytest.raises(IncompatibleError, match="samples.npz"):
        BackboneEnsemble.read(tmp_path)
    with pytest.raises(IncompatibleError, match="ending in"):
        made.write(tmp_path / "run.txt")


def test_trajectories_hold_the_backbone():
    made = sample_backbones(DIG, 3, seed=0, steps=5)
    trajectory = made.trajectory()
    names = [[atom.name for atom in residue.atoms] for residue in trajectory.topology.residues]
    assert names == [["N", "CA", "C", "O"] + ["CB"] * (letter != "G") for letter in SEQUENCE]
    np.testing.assert_allclose(trajectory.xyz * 10, made.geometry.positions, atol=1e-5)


# Collective variables ------------------------------------------------------------------------------------------------


STRUCTURES = torch.cat([built(helix(8), PROTEIN).positions, built(strand(8), PROTEIN).positions])
HELIX, STRAND = (Geometry(x[None]) for x in STRUCTURES)
VARIABLES = [
    Distance([0, 1], 6), Gyration(), Gyration([0, 2, 5]), RMSD(HELIX, PROTEIN), RMSD(HELIX, PROTEIN, [0, 3, 4, 6]),
    NativeContacts(HELIX, PROTEIN), Restraints([[0, 3], [1, 7]], lower=[8.0, 0.0], upper=[8.5, 9.0], width=[1.0, 0.5]),
]  # fmt: skip


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: type(v).__name__)
def test_variables_have_derivatives_and_know_no_pose(variable):
    noise = torch.randn(STRUCTURES.shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    x = (STRUCTURES + 0.7 * noise).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: variable(Geometry(x), PROTEIN), (x,), atol=1e-6)
    found = variable(Geometry(x), PROTEIN)
    assert found.shape == (2,) and found.dtype == DOUBLE
    torch.testing.assert_close(variable(Geometry(x @ TURN.T - 4.0), PROTEIN), found, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(variable(Geometry(x[1:]), PROTEIN), found[1:])


def test_variables_have_their_known_values():
    both = Geometry(STRUCTURES)
    helical, straight = helix(8), strand(8)
    torch.testing.assert_close(Distance(0, [7])(both, PROTEIN), torch.stack([(x[7] - x[0]).norm() for x in (helical, straight)]))
    centre = (straight[2] + straight[3]) / 2
    torch.testing.assert_close(Distance([2, 3], 7)(both, PROTEIN)[1], (straight[7] - centre).norm())
    spread = [(x - x.mean(0)).square().sum(1).mean().sqrt() for x in (helical, straight)]
    torch.testing.assert_close(Gyration()(both, PROTEIN), torch.stack(spread))
    contacts = NativeContacts(HELIX, PROTEIN)(both, PROTEIN)
    assert contacts[0] > 0.99 and contacts[1] < 0.01
    assert alpha_carbons(both, PROTEIN).shape == (2, 8, 3)


def test_rmsd_is_that_of_the_best_superposition_and_mirror_images_are_others():
    samples = DIG.sample(6, seed=3, steps=10).geometry
    by_moving = rmsd(alpha_carbons(samples, PROTEIN).numpy(), alpha_carbons(STRAND, PROTEIN)[0].numpy())
    torch.testing.assert_close(RMSD(STRAND, PROTEIN)(samples, PROTEIN), torch.from_numpy(by_moving), atol=1e-8, rtol=1e-8)
    mirror = HELIX.positions * torch.tensor([1.0, 1.0, -1.0])
    found = RMSD(HELIX, PROTEIN)(Geometry(torch.cat([HELIX.positions @ TURN.T, mirror])), PROTEIN)
    assert found[0] < 1e-5 and found[1] > 0.5


@pytest.mark.parametrize("flat", [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
def test_rmsd_has_a_slope_on_planes_and_lines(flat):
    x = (STRUCTURES * torch.tensor(flat, dtype=DOUBLE)).requires_grad_()
    (slope,) = torch.autograd.grad(RMSD(HELIX, PROTEIN)(Geometry(x), PROTEIN).sum(), x)
    assert slope.isfinite().all() and slope.abs().max() > 0.01


def test_restraints_are_flat_inside_and_harmonic_outside():
    alpha = torch.stack([torch.tensor([[0.0, 0, 0], [0, d, 0], [0, 0, 6.0]], dtype=DOUBLE) for d in (3.0, 5.0, 8.0)])
    descriptor = protein("AAA")
    geometry = Geometry(torch.cat([built(x, descriptor).positions for x in alpha]))
    set_ = Restraints([[0, 1], [0, 2]], lower=[4.0, 6.0], upper=[6.0, 6.0], width=[0.5, 1.0])
    torch.testing.assert_close(set_.beyond(geometry, descriptor)[:, 0], torch.tensor([-1.0, 0.0, 2.0], dtype=DOUBLE), atol=1e-9, rtol=0)
    fit = PropertyGuidance(set_.wanted()).likelihood(Backbone().encode(geometry, descriptor)[0], descriptor, Backbone())
    torch.testing.assert_close(fit.log_likelihood, torch.tensor([-2.0, 0.0, -8.0], dtype=DOUBLE), atol=1e-9, rtol=0)


def test_residues_are_found_by_their_numbers():
    descriptor = protein("AAAA", numbers=[5, 6, 9, 5], chains=[0, 0, 0, 1])
    assert numbered(descriptor, [9, 5]) == [2, 0] and numbered(descriptor, range(5, 6), chain=1) == [3]
    with pytest.raises(IncompatibleError, match=r"\[7\].*5 to 9"):
        numbered(descriptor, [7])


@pytest.mark.parametrize("make", [
    lambda: Distance([], 0), lambda: Distance(-1, 0), lambda: Distance(0, 8)(HELIX, PROTEIN), lambda: RMSD(HELIX, PROTEIN, [0, 1]),
    lambda: RMSD(Geometry(STRUCTURES), PROTEIN), lambda: NativeContacts(STRAND, PROTEIN, cutoff=4.0),
    lambda: Restraints([[0, 0]], upper=5.0, width=1.0), lambda: Restraints([[0, 1]], lower=6.0, upper=5.0, width=1.0),
    lambda: Restraints([[0, 1]], upper=5.0, width=[1.0, 2.0]),
    lambda: Restraints([[0, 9]], upper=5.0, width=1.0)(HELIX, PROTEIN), lambda: Gyration()(Geometry(torch.zeros(1, 2, 3)), PROTEIN),
])  # fmt: skip
def test_variables_refuse_what_makes_no_sense(make):
    with pytest.raises(IncompatibleError):
        make()


# Guidance ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Value(5.0, 0.3), Range(5.0, math.inf, 0.1)], ids=["value", "range"])
def test_a_guided_distance_has_its_known_posterior(likelihood):
    """Two residues: the law of a normal vector's length is known, so is its posterior, at a strength that the weights must make good."""
    spread, mean = 0.6 * math.sqrt(2), 3.8
    dig = model(torch.tensor([[0.0, 0, 0], [mean, 0, 0]], dtype=DOUBLE), 0.6, "AA")
    r = torch.linspace(1e-4, 14, 4001, dtype=DOUBLE)
    prior = r * (torch.exp(-0.5 * ((r - mean) / spread) ** 2) - torch.exp(-0.5 * ((r + mean) / spread) ** 2))
    posterior = prior * likelihood(r, torch.zeros_like(r)).exp()
    known = [float((posterior * f).sum() / posterior.sum()) for f in (r, r**2)]
    chance = float(posterior.sum() / prior.sum())
    guidance = PropertyGuidance(Property(Distance(0, 1), likelihood, "r"), strength=1.5, through="spread")
    found = sample_backbones(dig, 1500, seed=5, steps=12, batch=1500, guidance=guidance, check=ANY)
    drawn, weight = found.properties["r"], np.exp(found.log_weight)
    np.testing.assert_allclose(drawn, Distance(0, 1)(found.geometry, dig.descriptor), atol=1e-8)
    for power, value in zip((1, 2), known, strict=True):
        average, error = weighted(drawn**power, found.log_weight)
        assert abs(average - value) < 4 * error
    assert abs(weight.mean() - chance) < 4 * weight.std() / math.sqrt(len(weight))
    assert found.effective_sample_size() > 0.2 * len(found)
    assert abs(drawn.mean() - known[0]) > 4 * drawn.std() / math.sqrt(len(drawn))


def test_several_conditions_at_once_are_exact_and_so_are_whole_ones_alone():
    """Against draws of the law itself, weighed by the likelihood: what is broken is left out on both sides."""
    dig, n = model(helix(5), 0.15, "AGAPA"), 20_000
    flat = dig.model.laws["pos"].sample(n, torch.Generator().manual_seed(9))
    pos = (flat @ dig.process["pos"].space.basis().flatten(1)).reshape(n, 5, 3)
    state = {"pos": pos, "rot": torch.zeros(n, 5, 3, dtype=DOUBLE)}
    direct = dig.coordinates.decode(state, dig.descriptor)
    whole = check_backbones(direct, dig.descriptor).ok
    conditions = PropertyGuidance(
        Property(RMSD(built(helix(5), dig.descriptor), dig.descriptor), Range(0.25, math.inf, 0.05), "rmsd"),
        Restraints([[0, 3], [0, 4]], lower=[0.0, 6.5], upper=[5.1, 6.5], width=[0.2, 0.3]).wanted(), through="spread",
    )
    log_likelihood = dig.guided(conditions).model.likelihood(state, dig.descriptor).log_likelihood
    found = sample_backbones(dig, 400, seed=4, steps=12, batch=400, guidance=conditions, most=3000)
    share = np.exp(log_likelihood.numpy()) * whole.numpy()
    for variable in (Gyration(), RMSD(built(helix(5), dig.descriptor), dig.descriptor), Distance(0, 4)):
        known, error = weighted(variable(direct, dig.descriptor).numpy(), np.log(np.maximum(share, 1e-300)))
        average, own = weighted(variable(found.geometry, dig.descriptor).numpy(), found.log_weight)
        assert abs(average - known) < 4 * math.hypot(error, own)
    assert found.counts.broken > 0 and check_backbones(found.geometry, dig.descriptor).ok.all()
    # The mean weight over all draws, that of broken ones being zero, is the chance of being whole and as wanted.
    weight = np.zeros(found.counts.drawn)
    weight[found.index] = np.exp(found.log_weight)
    errors = weight.std() / math.sqrt(len(weight)), share.std() / math.sqrt(n)
    assert abs(weight.mean() - share.mean()) < 4 * math.hypot(*errors)


def test_solvers_guide_without_weights_and_say_so():
    guidance = PropertyGuidance(Property(Gyration(), Value(4.0, 0.1), "radius"), through="spread")
    found = sample_backbones(DIG, 5, seed=0, steps=8, method="dpm++", guidance=guidance)
    assert found.log_weight is None and "without weights" in found.summary() and found.made["conditions"] == ["radius"]


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def law() -> tuple[DiG, Geometry, Geometry]:
    """Alpha carbons and orientations about a helix of four residues, and two structures that it might have drawn."""
    descriptor, space, turns, rng = protein("AGPA"), ZeroCentroid(4), SO3(4), torch.Generator().manual_seed(1)
    middle = Backbone().encode(built(helix(4), descriptor), descriptor)[0]
    laws = {
        "pos": GaussianMixture([1.0], middle["pos"].flatten(1) @ space.basis().flatten(1).T, torch.full((1, space.dim), 0.05**2)),
        "rot": HeatMixture(turns, [1.0], middle["rot"].flatten(1), [0.2**2]),
    }
    process = Joint(pos=Diffusion(space, LogSNR(6, -4)), rot=Diffusion(turns, Geometric(0.1, 1.8)))
    dig, ends = DiG(AnalyticScore(process, laws), Backbone(), descriptor), []
    for _ in range(2):
        shift = {name: width * torch.randn(1, 4, 3, generator=rng, dtype=DOUBLE) for name, width in (("pos", 0.05), ("rot", 0.1))}
        ends.append(dig.coordinates.decode(process.exp(middle, shift), descriptor))
    return dig, Geometry(ends[0].positions + 3.0), ends[1]


@pytest.fixture(scope="module")
def path(law) -> BackbonePath:
    dig, start, end = law
    return interpolate_backbones(dig, start, end, 5, steps=6, passing=Geometry(torch.cat([end.positions, start.positions])))


def test_ends_come_back_and_the_path_starts_where_it_was_told(law, path):
    dig, start, end = law
    assert path.ends.round_trip.max() < 0.01 and path.ends.ideal.max() < 1e-9
    assert (path.geometry.positions[0] - start.positions[0]).abs().max() < 0.01
    assert path.rmsd[0, 0] < 0.005 and path.rmsd[-1, 1] < 0.005
    apart = float(RMSD(start, dig.descriptor)(end, dig.descriptor))
    assert path.rmsd[0, 1] == pytest.approx(apart, abs=0.005) and path.rmsd[-1, 0] == pytest.approx(apart, abs=0.005)
    assert (np.diff(path.rmsd[:, 0]) > 0).all() and path.steps.sum() >= apart - 0.01
    assert torch.equal(path.validity.ok, check_backbones(path.geometry, dig.descriptor).ok)


def test_frames_are_superposed_one_after_the_other(path):
    frames = alpha_carbons(path.geometry, path.descriptor).numpy()
    np.testing.assert_allclose(superpose(frames[1:], frames[:-1]), frames[1:], atol=1e-8)
    np.testing.assert_allclose(np.sqrt(np.square(frames[1:] - frames[:-1]).sum(2).mean(1)), path.steps, atol=1e-8)


def test_the_pose_of_the_end_is_of_no_consequence():
    start, end = DIG.sample(2, seed=6, steps=5).geometry.positions.split(1)
    one, other = (interpolate_backbones(DIG, Geometry(start), Geometry(x), 3, steps=4) for x in (end, end @ TURN.T - 9.0))
    torch.testing.assert_close(one.geometry.positions, other.geometry.positions, atol=1e-6, rtol=0)


def test_orientations_turn_evenly_along_the_shorter_arc():
    """Where all orientations are equally likely the flow leaves them alone, and every residue goes by its own geodesic."""
    start, end = DIG.sample(2, seed=6, steps=5).geometry.positions.split(1)
    frames = DIG.interpolate(Geometry(start), Geometry(end), 5, steps=3)
    turns = [DIG.coordinates.encode(x, PROTEIN)[0]["rot"] for x in (Geometry(start), Geometry(end), frames)]
    whole, space = SO3(8).log(turns[0], turns[1]), SO3(8)
    assert whole.norm(dim=-1).max() > 2
    for k in range(5):
        torch.testing.assert_close(space.log(turns[0], turns[2][k : k + 1]), 0.25 * k * whole, atol=1e-6, rtol=0)


def test_given_structures_are_passed_at_their_distance(path):
    assert path.passed.frame.tolist() == [4, 0] and path.passed.distance.max() < 0.005


def test_paths_are_written_and_drawn(tmp_path, path):
    relaxed = path.with_energies([0.0, 1.0, math.nan, 1.0, 0.5], "kJ/mol")
    relaxed.write(tmp_path / "path")
    relaxed.write(tmp_path / "one.pdb")
    assert {p.name for p in (tmp_path / "path").iterdir()} == {"path.xtc", "path.pdb", "path.json"}
    held = json.loads((tmp_path / "one.json").read_text())
    assert held["rmsd_to_start"] == path.rmsd[:, 0].tolist() and held["energies"]["values"] == [0.0, 1.0, None, 1.0, 0.5]
    assert held["clashes"] == path.validity.clashes.tolist() and held["passed"]["frame"] == [4, 0]
    assert (tmp_path / "one.pdb").read_text().count("ENDMDL") == 5
    pytest.importorskip("matplotlib")
    axes = relaxed.figure().axes
    assert len(axes) == 2 and "kJ/mol" in axes[1].get_ylabel()
    np.testing.assert_allclose(axes[0].lines[1].get_ydata(), path.rmsd[:, 1])


def test_what_makes_no_path_is_refused(law, path):
    dig, start, end = law
    for ends in ((start, Geometry(torch.cat([end.positions] * 2))), (Geometry(start.positions[:, :-1]), end)):
        with pytest.raises(IncompatibleError, match="expected the"):
            interpolate_backbones(dig, *ends, 3, steps=3)
    with pytest.raises(StateError, match="finite"):
        interpolate_backbones(dig, start, Geometry(end.positions * math.nan), 3, steps=3)
    with pytest.raises(IncompatibleError, match="energy"):
        path.with_energies([1.0], "kT")
