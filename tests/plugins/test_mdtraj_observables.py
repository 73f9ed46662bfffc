"""Observables of ensembles: known answers, invariances, weights as repetitions, and the values of other programs."""

from __future__ import annotations

import numpy as np
import pytest

from dig_core.errors import IncompatibleError
from dig_plugins.mdtraj import observables as ob
from dig_plugins.mdtraj.observables.divergence import kernel_map


def helix(n: int) -> np.ndarray:
    """(n, 3) C-alphas of an ideal helix: radius 2.3, 100 degrees and 1.5 Angstrom a residue."""
    turn = np.radians(100) * np.arange(n)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(n)], 1)


def about(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), (axis, axis), (0, 1))


def bent(chain: np.ndarray, hinge: int, degrees: float) -> np.ndarray:
    """What comes after residue ``hinge`` turned about the x axis through it."""
    moved = chain.copy()
    moved[hinge:] = (chain[hinge:] - chain[hinge]) @ about(0, degrees).T + chain[hinge]
    return moved


def fold(n: int = 60) -> np.ndarray:
    """A helical hairpin with a third, crossing helix."""
    return bent(bent(helix(n), n // 3, 150), 2 * n // 3, 100)


def tumbled(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame turned and shifted at random."""
    turns = np.linalg.qr(rng.normal(size=(len(frames), 3, 3)))[0]
    turns[:, :, 0] *= np.linalg.det(turns)[:, None]
    return frames @ turns.swapaxes(1, 2) + 20 * rng.normal(size=(len(frames), 1, 3))


def noisy(rng: np.random.Generator, n: int = 20, width: float = 0.5) -> np.ndarray:
    return fold() + width * rng.normal(size=(n, 60, 3))


# Superposition -------------------------------------------------------------------------------------------------------


def test_a_rigid_motion_leaves_no_deviation(rng):
    frames = tumbled(np.repeat(fold()[None], 5, 0), rng)
    assert np.allclose(ob.superpose(frames, fold()), fold(), atol=1e-9)
    assert ob.rmsd(frames, fold()).max() < 1e-9
    assert np.allclose(np.linalg.det(ob.best_motion(frames, fold()).rotation), 1)


def test_a_mirror_image_is_not_superposed():
    mirror = fold()[None] * [1, 1, -1]
    assert ob.rmsd(mirror, fold())[0] > 1 and ob.pairwise_rmsd(mirror, fold()[None])[0, 0] == pytest.approx(ob.rmsd(mirror, fold())[0])
    assert np.linalg.det(ob.best_motion(mirror, fold()).rotation[0]) == pytest.approx(1)


def test_no_other_motion_deviates_less(rng):
    frames = noisy(rng, 1, 2.0)
    least, moved = ob.rmsd(frames, fold())[0], ob.superpose(frames, fold())[0]
    for axis in range(3):
        for degrees in (-1, 1):
            assert np.sqrt(np.square(moved @ about(axis, degrees).T - fold()).sum(1).mean()) > least
            assert np.sqrt(np.square(moved + 0.1 * degrees * np.eye(3)[axis] - fold()).sum(1).mean()) > least


def test_a_domain_swings_by_twice_its_arm_times_the_sine_of_half_the_angle(rng):
    chain, hinge = fold(), 30
    frames = tumbled(bent(chain, hinge, 50)[None], rng)
    arm = np.linalg.norm((chain[hinge:] - chain[hinge])[:, 1:], axis=1)
    expected = np.sqrt(np.mean((2 * arm * np.sin(np.radians(25))) ** 2))
    assert ob.rmsd(frames, chain, on=np.arange(hinge), over=np.arange(hinge, 60))[0] == pytest.approx(expected)
    assert ob.rmsd(frames, chain, on=np.arange(60) < hinge)[0] < 1e-9


def test_atoms_without_mass_do_not_count(rng):
    frames, core = noisy(rng), np.arange(60) < 40
    by_mass = ob.superpose(frames, fold(), masses=core.astype(float))
    assert np.allclose(by_mass, ob.superpose(frames, fold(), on=core))


def test_pairs_agree_with_one_target_after_the_other(rng):
    frames, others = tumbled(noisy(rng, 7, 2.0), rng), tumbled(noisy(rng, 5), rng)
    pairs = ob.pairwise_rmsd(frames, others)
    assert np.allclose(pairs, np.stack([ob.rmsd(frames, other) for other in others], 1), atol=1e-8)
    own = ob.pairwise_rmsd(frames)
    assert np.allclose(own, own.T, atol=1e-8) and (np.diag(own) == 0).all()


# TM-score ------------------------------------------------------------------------------------------------------------


def test_d0_is_that_of_the_paper():
    assert ob.tm_scale(115) == pytest.approx(1.24 * 100 ** (1 / 3) - 1.8)
    assert ob.tm_scale(21) == ob.tm_scale(5) == 0.5


def test_tm_score_is_one_for_a_moved_copy_and_less_for_its_mirror_image(rng):
    frames = tumbled(np.repeat(fold()[None], 3, 0), rng)
    assert np.allclose(ob.tm_score(frames, fold()), 1)
    assert ob.tm_score(frames * [1, 1, -1], fold()).max() < 0.8
    assert ob.tm_score(frames, frames[::-1]) == pytest.approx(np.ones(3))
    assert ob.tm_score(frames, fold(), length=120) == pytest.approx(np.full(3, 0.5))


def test_tm_score_finds_the_part_that_is_alike(rng):
    """Of 60 residues 40 are as they were, the others far away: 2/3."""
    far = fold()
    far[20:40] += [0, 0, 1000]
    assert ob.tm_score(tumbled(far[None], rng), fold())[0] == pytest.approx(2 / 3, abs=1e-4)


def test_tm_score_is_no_less_than_at_the_superposition_of_least_deviation(rng):
    frames = np.concatenate([noisy(rng, 10, width) for width in (0.5, 2, 6)])
    gap = np.square(ob.superpose(frames, fold()) - fold()).sum(-1)
    found = ob.tm_score(frames, fold())
    assert (found >= (1 / (1 + gap / ob.tm_scale(60) ** 2)).mean(1) - 1e-12).all() and found.max() < 1
    assert np.allclose(ob.tm_score(tumbled(frames, rng), fold()), found, atol=1e-4)


def test_tm_score_is_no_less_than_at_the_superposition_on_any_domain(rng):
    """Domains that are noisy, so that fragments of few residues do not tell how they are turned."""
    chain = bent(bent(helix(90), 30, 90), 60, 70)
    frames = bent(bent(chain, 30, 60), 60, 80) + 2.5 * rng.normal(size=(20, 90, 3))
    found = ob.tm_score(frames, chain)
    for domain in np.arange(90).reshape(3, 30):
        gap = np.square(ob.superpose(frames, chain, on=domain) - chain).sum(-1)
        assert (found >= (1 / (1 + gap / ob.tm_scale(90) ** 2)).mean(1)).all()


# Helices of so many residues, bent at a hinge by so many degrees, on the straight one: US-align 20260819 with -TMscore 1.
PROGRAM = {(60, 30, 60): 0.5413, (120, 40, 90): 0.6820, (200, 150, 40): 0.7893}


@pytest.mark.parametrize(("made", "theirs"), PROGRAM.items())
def test_tm_score_is_that_of_the_program(made, theirs):
    n, hinge, degrees = made
    ours = ob.tm_score(bent(helix(n), hinge, degrees)[None], helix(n))[0]
    assert theirs - 1e-4 < ours < theirs + 2e-3


# Features and maps ---------------------------------------------------------------------------------------------------


def test_distances_and_torsions_do_not_change_as_a_frame_tumbles(rng):
    frames = noisy(rng)
    moved, quadruples = tumbled(frames, rng), np.arange(57)[:, None] + np.arange(4)
    assert np.allclose(ob.distances(moved), ob.distances(frames))
    assert np.allclose(ob.torsions(moved, quadruples), ob.torsions(frames, quadruples))
    assert np.allclose(ob.aligned(moved, fold()), ob.aligned(frames, fold()))
    mirror = ob.torsions(frames * [1, 1, -1], quadruples)
    assert np.allclose(mirror[:, :57], ob.torsions(frames, quadruples)[:, :57])
    assert np.allclose(mirror[:, 57:], -ob.torsions(frames, quadruples)[:, 57:])


def test_distances_are_of_all_pairs_far_enough_along_the_chain():
    line = np.arange(10)[None, :, None] * np.array([3.8, 0, 0])
    pairs = ob.apart(10)
    assert len(pairs) == 28 and np.allclose(ob.distances(line)[0], 3.8 * (pairs[:, 1] - pairs[:, 0]))
    assert ob.apart(10, every=4).tolist() == [[0, 4], [0, 8], [4, 8]]


def test_backbone_torsions_stop_where_the_chain_does():
    atoms = np.arange(15).reshape(3, 5)
    assert ob.backbone_torsions(atoms, [True, False]).tolist() == [[2, 5, 6, 7], [0, 1, 2, 5]]


def test_principal_components_are_those_of_the_covariance(rng):
    x = rng.normal(size=(500, 4)) @ np.diag([1, 5, 2, 0.5]) + 7
    found = ob.pca(x, 4)
    assert np.allclose(found.values, np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1])
    assert np.allclose(found.components.T @ found.components, np.eye(4))
    assert np.allclose(np.cov(found.project(x).T, bias=True), np.diag(found.values))
    assert np.abs(found.components[1, 0]) > 0.99


def test_few_frames_of_many_features_give_the_same_map(rng):
    x = rng.normal(size=(8, 30))
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    found = ob.pca(x, 3)
    assert np.allclose(found.values, values[:3] ** 2 / 8)
    assert np.allclose(np.abs((found.components * right[:3].T).sum(0)), 1)


def test_weights_are_repetitions(rng):
    x, frames, times = rng.normal(size=(30, 3)), noisy(rng, 30), rng.integers(0, 4, 30)
    again = np.repeat(np.arange(30), times)
    for ours, theirs in zip(ob.pca(x, weights=times), ob.pca(x[again]), strict=True):
        assert np.allclose(ours, theirs)
    assert np.allclose(ob.contact_map(frames, weights=times), ob.contact_map(frames[again]))
    assert np.allclose(ob.rmsf(frames, weights=times), ob.rmsf(frames[again]), atol=1e-5)
    assert np.allclose(ob.mean_structure(frames, weights=np.eye(30)[4]), frames[4])


def slow(rng: np.random.Generator, n: int, memories: tuple[float, ...]) -> np.ndarray:
    """(n, K) independent stationary series of unit variance, each with its correlation from one step to the next."""
    memory = np.array(memories)
    x, noise = np.empty((n, len(memory))), rng.normal(size=(n, len(memory)))
    x[0] = noise[0]
    for i in range(1, n):
        x[i] = memory * x[i - 1] + np.sqrt(1 - memory**2) * noise[i]
    return x


def test_tica_finds_what_is_slow_whatever_it_is_mixed_with(rng):
    x = slow(rng, 20_000, (0.99, 0.9, 0.3))
    mixed = x @ rng.normal(size=(3, 3)) * [1, 10, 100] + 5
    found = ob.tica([mixed[:8_000], mixed[8_000:]], 5)
    # The error of an autocorrelation near one is some sqrt(2 (1 - rho) / n).
    assert found.values == pytest.approx([0.99**5, 0.9**5], abs=0.02)
    y = found.project(mixed)
    assert np.abs(np.corrcoef(y[:, 0], x[:, 0])[0, 1]) > 0.99 and np.abs(np.corrcoef(y[:, 1], x[:, 1])[0, 1]) > 0.99
    assert np.allclose(y.var(0), 1, atol=0.01)


def test_tica_solves_the_generalised_eigenvalue_problem_of_pairs_within_trajectories(rng):
    parts, lag = [slow(rng, n, (0.9, 0.5, 0.1)) for n in (40, 7, 3)], 3
    first, second = (np.concatenate([p[s] for p in parts]) for s in (slice(None, -lag), slice(lag, None)))
    both = np.concatenate([first, second])
    a, b = first - both.mean(0), second - both.mean(0)
    values = np.linalg.eigvals(np.linalg.solve(a.T @ a + b.T @ b, a.T @ b + b.T @ a))
    assert np.allclose(ob.tica(parts, lag, 3).values, np.sort(values.real)[::-1])


def test_tica_refuses_what_only_looks_slow(rng):
    with pytest.raises(IncompatibleError, match="principal"):
        ob.tica([rng.normal(size=(20, 50))], 1)
    assert len(ob.tica([rng.normal(size=(20, 50))], 1, principal=4).values) == 2


# Coverage and divergence ---------------------------------------------------------------------------------------------


def test_coverage_counts_cells():
    """On 2 x 2 cells: the reference is in three, samples in two of these or in one of these and the fourth."""
    reference = np.array([[0, 0], [0, 2.0], [2, 2]])
    assert ob.coverage(reference, reference, cells=2) == (1, 1, 1, 1, 0)
    two = np.array([[0.1, 0.1], [0.3, 0.2], [0.5, 1.9]])
    assert ob.coverage(two, reference, cells=2) == pytest.approx((3 / 4, 1, 2 / 3, 4 / 5, 0))
    mixed = np.array([[0.1, 0.1], [1.5, 0.5], [9, 9], [-1, 0]])
    assert ob.coverage(mixed, reference, cells=2) == pytest.approx((1 / 4, 1 / 2, 1 / 3, 2 / 5, 1 / 2))
    assert ob.coverage([[9, 9]], reference, cells=2) == (0.25, 0, 0, 0, 1)


def test_jensen_shannon_of_known_distributions():
    assert ob.jensen_shannon([2, 0], [0, 7]) == pytest.approx(np.log(2))
    assert ob.jensen_shannon([[1, 3]], [[2, 6]]) == 0
    assert ob.jensen_shannon([1, 0], [1, 1]) == pytest.approx(0.75 * np.log(4 / 3))


def test_jensen_shannon_is_that_of_scipy(rng):
    distance = pytest.importorskip("scipy.spatial.distance")
    p, q = rng.exponential(size=(2, 50)) * (rng.uniform(size=(2, 50)) < 0.7)
    assert ob.jensen_shannon(p, q) == pytest.approx(distance.jensenshannon(p, q) ** 2)


def test_the_kernel_density_is_that_of_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    x, weights = rng.normal(size=(40, 2)), rng.exponential(size=40)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x.T, aweights=weights)), x.T).T
    axes = [np.linspace(-3, 3, 7), np.linspace(-2, 2, 5)]
    known = stats.gaussian_kde(x.T, bw_method=0.4, weights=weights)(np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1))
    assert np.allclose(kernel_map(x, weights / weights.sum(), axes, 0.4).ravel(), known)


@pytest.mark.parametrize("method", ["histogram", "kernel"])
def test_exact_samples_reach_the_floor_and_others_do_not(method, rng):
    reference, exact = rng.normal(size=(4000, 2)), rng.normal(size=(1000, 2))
    options = {"method": method, "cells": 10}
    found = ob.map_divergence(exact, reference, **options, rng=rng)
    assert 0.4 * found.floor < found.value < 1.6 * found.floor
    shifted = ob.map_divergence(exact + [0.8, 0], reference, **options, rng=rng)
    assert shifted.value > 4 * shifted.floor and shifted.floor == pytest.approx(found.floor, rel=0.3)
    for far in (1e2, 1e6):
        assert ob.map_divergence(exact + far, reference, **options, rng=rng).value == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["histogram", "kernel"])
def test_the_floor_is_that_of_as_many_frames_as_samples_are_worth(method, rng):
    reference, weights = rng.normal(size=(2000, 2)), np.zeros(500)
    weights[:50] = 1
    floors = [
        ob.map_divergence(reference[:n], reference, method=method, cells=10, weights=w, rng=rng).floor
        for n, w in ((50, None), (500, weights), (500, None))
    ]
    assert floors[0] == pytest.approx(floors[1], rel=0.3) and floors[0] > 2 * floors[2]


def test_kernel_divergence_of_shifted_gaussians(rng):
    """Both are smeared by the width, and differ along one direction: an integral over it."""
    n, shift = 6_000, 1.5
    x, y = rng.normal(size=(n, 2)) + [shift, 0], rng.normal(size=(n, 2))
    line, width = np.linspace(-12, 12, 4001), np.sqrt(1 + n ** (-1 / 3))
    p, q = (np.exp(-0.5 * ((line - at) / width) ** 2) for at in (0, shift))
    mix = np.array([[2, 1], [-1, 30]])
    found = ob.map_divergence(x, y, method="kernel", splits=1, rng=rng).value
    assert found == pytest.approx(ob.jensen_shannon(p, q), rel=0.05)
    assert found == pytest.approx(ob.map_divergence(x @ mix, y @ mix, method="kernel", splits=1, rng=rng).value)


@pytest.mark.parametrize("method", ["histogram", "kernel"])
def test_weights_turn_samples_of_another_distribution_into_exact_ones(method, rng):
    reference, wide = rng.normal(size=(3000, 2)), 1.5 * rng.normal(size=(3000, 2))
    weights = np.exp(-np.square(wide).sum(1) / 2 * (1 - 1 / 1.5**2))
    options = {"method": method, "cells": 10, "rng": rng}
    raw, weighted = ob.map_divergence(wide, reference, **options), ob.map_divergence(wide, reference, weights=weights, **options)
    assert raw.value > 3 * raw.floor and weighted.value < 1.6 * weighted.floor
    back = ob.map_divergence(reference, wide, reference_weights=weights, **options)
    assert back.value < 0.5 * ob.map_divergence(reference, wide, **options).value


def test_a_trajectory_is_split_in_blocks(rng):
    """It was in one state, then in the other: independent frames would tell its halves apart much less than they are."""
    reference = rng.normal(size=(400, 2)) + np.repeat([[-9, 0], [9, 0]], 200, 0)
    floors = [ob.map_divergence(reference, reference, cells=4, block=block, rng=rng).floor for block in (1, 200)]
    assert floors[0] < 0.02 and floors[1] == pytest.approx(np.log(2))


# Averages ------------------------------------------------------------------------------------------------------------


def test_contacts_of_a_line_are_those_within_the_cutoff():
    line = np.arange(6)[None, :, None] * np.array([3.8, 0, 0])
    found = ob.contact_map(np.concatenate([line, 10 * line]), weights=[3, 1])
    apart = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    assert np.allclose(found, np.where(apart == 0, 1, np.where(apart <= 2, 0.75, 0)))


def test_radius_of_gyration_of_a_ring():
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = 5 * np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)[None] + 3
    assert ob.radius_of_gyration(ring) == pytest.approx(5)
    assert ob.radius_of_gyration(ring, masses=[1, *[0] * 5, 1, *[0] * 5]) == pytest.approx(5)
    assert ob.radius_of_gyration(ring, masses=[1, *[0] * 11])[0] < 1e-12


def test_fluctuations_are_those_that_were_put_in(rng):
    widths = np.full(60, 0.2)
    widths[-5:] = 1.0
    frames = tumbled(fold() + widths[:, None] * rng.normal(size=(2000, 60, 3)), rng)
    found = ob.rmsf(frames, on=np.arange(55))
    # Six of 165 degrees of freedom go into the superposition; a standard error is 1 / sqrt(6 F).
    assert found[-5:] == pytest.approx(np.sqrt(3) * widths[-5:], rel=0.06)
    assert np.square(found[:55]).sum() == pytest.approx(0.2**2 * (165 - 6), rel=0.01)
    assert ob.correlation(found, widths) > 0.99 and ob.correlation(found, 3 - 2 * found) == pytest.approx(-1)
    assert ob.rmsd(ob.mean_structure(frames, on=np.arange(55))[None], fold())[0] < 0.1


def test_the_mean_of_frames_superposed_on_the_mean_structure_is_itself(rng):
    frames = np.concatenate([bent(fold(), 30, 120)[None], noisy(rng, 10, 2.0)])
    mean = ob.mean_structure(frames)
    assert np.allclose(ob.superpose(frames, mean).mean(0), mean, atol=1e-5)


def test_fluctuations_do_not_depend_on_poses(rng):
    frames = noisy(rng)
    assert np.allclose(ob.rmsf(tumbled(frames, rng)), ob.rmsf(frames), atol=1e-5)


def test_the_same_by_mdtraj(rng):
    """It keeps float32 and nm."""
    mdtraj = pytest.importorskip("mdtraj")
    frames = tumbled(noisy(rng), rng)
    frames -= frames.mean(1, keepdims=True)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for _ in range(60):
        topology.add_atom("CA", mdtraj.element.carbon, topology.add_residue("ALA", chain))
    path, mean = (mdtraj.Trajectory(x / 10, topology) for x in (frames, ob.mean_structure(frames)[None]))
    pairs, quadruples = ob.apart(60), np.arange(57)[:, None] + np.arange(4)
    distances = 10 * mdtraj.compute_distances(path, pairs)
    assert np.allclose(ob.rmsd(frames, frames[3]), 10 * mdtraj.rmsd(path, path, 3), atol=1e-3)
    assert np.allclose(ob.rmsf(frames), 10 * mdtraj.rmsf(path, mean), atol=1e-4)
    assert np.allclose(ob.radius_of_gyration(frames), 10 * mdtraj.compute_rg(path), atol=1e-4)
    assert np.allclose(ob.distances(frames, pairs), distances, atol=1e-4)
    assert np.allclose(ob.contact_map(frames)[pairs[:, 0], pairs[:, 1]], (distances < 8).mean(0))
    angles = mdtraj.compute_dihedrals(path, quadruples)
    assert np.allclose(ob.torsions(frames, quadruples), np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-3)


# Clusters ------------------------------------------------------------------------------------------------------------

CENTRES = np.array([[0, 0], [10, 0], [0, 10.0]])


def test_k_means_finds_what_is_there_the_most_populated_first(rng):
    of = rng.choice(3, 3000, p=[0.2, 0.5, 0.3])
    points = CENTRES[of] + rng.normal(size=(3000, 2))
    found = ob.k_means(points, 3, rng=np.random.default_rng(1))
    assert np.allclose(found, CENTRES[[1, 2, 0]], atol=0.2)
    assert (ob.assign(points, found) == np.array([2, 0, 1])[of]).mean() > 0.999
    only = ob.k_means(points, 2, weights=(of != 1).astype(float), rng=np.random.default_rng(1))
    assert np.allclose(only, CENTRES[[2, 0]], atol=0.2)


def test_k_means_needs_as_many_points(rng):
    with pytest.raises(IncompatibleError, match="different points"):
        ob.k_means(np.zeros((5, 2)), 2, rng=rng)


def test_conformations_are_told_apart_by_rmsd(rng):
    shapes = np.stack([bent(fold(), 30, degrees) for degrees in (0, 60, 120)])
    of = np.array([0] * 8 + [1] * 5 + [2] * 2)
    frames = tumbled(shapes[of] + 0.3 * rng.normal(size=(15, 60, 3)), rng)
    chosen = ob.k_centres(frames, 3, distance=ob.pairwise_rmsd)
    assert sorted(of[chosen]) == [0, 1, 2]
    assert (of[chosen][ob.assign(frames, frames[chosen], distance=ob.pairwise_rmsd)] == of).all()
    strange = np.concatenate([frames[:1], 3 * frames[:1]])
    assert ob.assign(strange, shapes, distance=ob.pairwise_rmsd, within=2.0).tolist() == [0, -1]


def test_k_centres_leave_none_farther_than_centres_are_apart(rng):
    points = rng.uniform(size=(200, 2))
    chosen = ob.k_centres(points, 6)
    gap = ob.euclidean(points[chosen], points[chosen]) + 9 * np.eye(6)
    assert ob.euclidean(points, points[chosen]).min(1).max() <= gap.min()


def test_errors_of_populations_are_those_of_counts_and_grow_with_correlation(rng):
    share = np.array([0.6, 0.3, 0.1])
    labels = rng.choice(3, 1000, p=share)
    found = ob.populations(labels, 3, n_bootstrap=1000, rng=rng)
    exact = np.sqrt(share * (1 - share) / 1000)
    assert (np.abs(found.value - share) < 4 * exact).all() and found.stderr == pytest.approx(exact, rel=0.2)
    sticky = np.repeat(labels[:100], 10)
    ratio = ob.populations(sticky, 3, block=50, n_bootstrap=1000, rng=rng).stderr / ob.populations(sticky, 3, rng=rng).stderr
    assert (ratio > 2).all() and (ratio < 5).all()


def test_weighted_populations_and_frames_of_no_cluster():
    found = ob.populations([0, 1, -1], 2, weights=[1, 2, 1], rng=np.random.default_rng(0))
    assert found.value.tolist() == [0.25, 0.5]
    again = ob.populations([0, 1, -1], 2, weights=[1, 2, 1], rng=np.random.default_rng(0))
    assert (found.stderr == again.stderr).all()


# Errors --------------------------------------------------------------------------------------------------------------

X, P = np.zeros((4, 5, 3)) + np.arange(5)[:, None], np.random.default_rng(0).normal(size=(6, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda rng: ob.rmsd(X[0], X[0]),
        lambda rng: ob.rmsd(X, X[0, :4]),
        lambda rng: ob.rmsd(X, X[:2]),
        lambda rng: ob.rmsd(np.full_like(X, np.nan), X[0]),
        lambda rng: ob.rmsd(X, X[0], on=[5]),
        lambda rng: ob.pairwise_rmsd(X, X[:, :4]),
        lambda rng: ob.tm_score(X[:, :2], X[0, :2]),
        lambda rng: ob.tm_score(X, X[0], length=4),
        lambda rng: ob.distances(X, [[0, 5]]),
        lambda rng: ob.torsions(X, [[0, 1, 2]]),
        lambda rng: ob.pca(np.ones((5, 3))),
        lambda rng: ob.pca(P, 3),
        lambda rng: ob.pca(P).project(np.ones((2, 3))),
        lambda rng: ob.pca(P, weights=np.ones(5)),
        lambda rng: ob.tica([P], 6),
        lambda rng: ob.coverage(P, np.ones((3, 3))),
        lambda rng: ob.jensen_shannon([1, 0], [0, 0]),
        lambda rng: ob.map_divergence(P, P, method="other", rng=rng),
        lambda rng: ob.map_divergence(P, P, block=6, rng=rng),
        lambda rng: ob.map_divergence(P, np.ones((6, 2)), method="kernel", rng=rng),
        lambda rng: ob.correlation([1, 1], [1, 2]),
        lambda rng: ob.k_centres(P, 7),
        lambda rng: ob.populations([0, 3], 3, rng=rng),
    ],
)
def test_what_does_not_fit_is_refused(call, rng):
    with pytest.raises(IncompatibleError, match="expected"):
        call(rng)
