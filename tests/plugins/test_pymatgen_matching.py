"""When two crystals are the same, and how many of many are: laws of the matcher, its fingerprint, and what is counted with them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pymatgen")

from pymatgen.analysis.structure_matcher import StructureMatcher

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_plugins.pymatgen.evaluate.library import Library, classes, match
from dig_plugins.pymatgen.evaluate.matcher import NOTHING, TOLERANCES, reduce, rms_distance
from dig_plugins.pymatgen.evaluate.rates import assign, coverage, diversity, match_report, random_coordinates
from tests.plugins.known_crystals import amorphous, caesium_chloride, diamond, graphite, lonsdaleite, moved, rocksalt
from tests.plugins.test_pymatgen_convert import broken

CRYSTALS = {
    "diamond": diamond(), "graphite": graphite(), "lonsdaleite": lonsdaleite(), "rocksalt": rocksalt(), "amorphous": amorphous(5, 1),
}  # fmt: skip
TIGHT = TOLERANCES["tight"]


@pytest.mark.parametrize("primitive", [True, False])
@pytest.mark.parametrize("name", CRYSTALS)
def test_a_crystal_is_itself_however_it_is_described(name, primitive):
    """In another basis, order, origin, pose and size."""
    crystal = CRYSTALS[name]
    copy = moved(crystal, 7)
    copy.scale_lattice(1.3 * copy.volume)
    assert rms_distance(reduce(crystal, primitive), reduce(copy, primitive), TIGHT) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_supercell_is_its_cell_where_cells_are_made_primitive(name):
    crystal = CRYSTALS[name]
    large = moved(crystal.make_supercell([2, 1, 1], in_place=False), 3)
    assert rms_distance(reduce(crystal), reduce(large), TIGHT) == pytest.approx(0, abs=1e-5)
    assert np.isnan(rms_distance(reduce(crystal, False), reduce(large, False), TOLERANCES["loose"]))


def test_different_crystals_differ():
    reduced = {name: reduce(crystal) for name, crystal in CRYSTALS.items()}
    reduced["caesium chloride"] = reduce(caesium_chloride())
    names = sorted(reduced)
    for a in names:
        assert [b for b in names if not np.isnan(rms_distance(reduced[a], reduced[b], TIGHT))] == [a]


@pytest.mark.parametrize("primitive", [True, False])
def test_distances_are_those_of_pymatgen(primitive):
    """On near and far pairs, of one element and of two, at each tolerance."""
    carbon = [amorphous(4, seed) for seed in range(3)] + [
        lonsdaleite(),
        graphite(),
        moved(diamond().get_primitive_structure(), 1),
    ]
    carbon += [
        moved(carbon[k], k, noise=noise, strain=noise / 10)
        for k, noise in ((0, 0.05), (0, 0.15), (1, 0.2), (2, 0.4), (3, 0.1))
    ]
    salts = [
        rocksalt(),
        caesium_chloride().make_supercell([2, 2, 1], in_place=False),
        moved(rocksalt(), 3, noise=0.3, strain=0.03),
    ]
    pairs = [(a, b) for k, a in enumerate(carbon) for b in carbon[k + 1 :]] + [(a, b) for a in salts for b in salts]
    matched = 0
    for tolerance in TOLERANCES.values():
        theirs = StructureMatcher(*tolerance, primitive_cell=primitive)
        for a, b in pairs:
            found, wanted = (
                rms_distance(reduce(a, primitive), reduce(b, primitive), tolerance),
                theirs.get_rms_dist(a, b),
            )
            assert np.isnan(found) if wanted is None else found == pytest.approx(wanted[0], abs=1e-6)
            matched += wanted is not None
    assert 20 < matched < len(pairs)


def test_looser_tolerances_match_more_and_nearer():
    pairs = [
        (reduce(amorphous(4, k)), reduce(moved(amorphous(4, k), k, noise=0.1 * k, strain=0.01 * k))) for k in range(5)
    ]
    for a, b in pairs:
        loose, default, tight = (rms_distance(a, b, tolerance) for tolerance in TOLERANCES.values())
        assert np.isnan(tight) or default <= tight + 1e-9
        assert np.isnan(default) or loose <= default + 1e-9


def test_random_coordinates_match_at_the_loose_tolerance_only():
    """Which is why the tolerance that the field reports says nothing by itself."""
    training = [amorphous(4, seed) for seed in range(40)]
    report = match_report(training[:10], training, controls=30, primitive_cells=(False,), nearest=None, seed=1)
    assert report.row("random", "loose", False).rate > 0.5
    assert report.row("random", "tight", False).rate == 0
    assert report.row("samples", "tight", False).rate == 1
    assert report.row("samples", "tight", False).crmse == pytest.approx(0, abs=1e-5)
    assert report.row("training", "tight", False).rate < 0.1


def test_what_matches_nothing_counts_with_the_whole_tolerance():
    report = match_report([diamond()], [graphite()], controls=2, primitive_cells=(True,))
    row = report.row("samples", "tight", True)
    assert (row.matched, row.crmse) == (0, TIGHT.stol) and np.isnan(row.nrmsd)
    assert "0.0 % (0.0-79.3)" in report.to_markdown()


def test_random_coordinates_keep_cells_and_compositions():
    found = random_coordinates([rocksalt()], [rocksalt(), diamond(), graphite()], 5, np.random.default_rng(0))
    assert all(s.composition == rocksalt().composition and s.lattice == rocksalt().lattice for s in found)
    assert len({s.frac_coords.tobytes() for s in found}) == 5


def test_coverage_of_a_set_by_itself_is_whole_and_by_another_is_none():
    some, others = [amorphous(4, seed) for seed in range(6)], [amorphous(4, seed) for seed in range(6, 12)]
    copies = [moved(structure, k, noise=0.01) for k, structure in enumerate(some)]
    assert coverage(Library(some), Library(copies[::-1])).share == 1
    assert coverage(Library(some), Library(others)).share == 0
    half = coverage(Library(some), Library(copies[:3] + others))
    assert half.covered.tolist() == [True] * 3 + [False] * 3
    assert "50.0 %" in half.to_markdown() and np.isnan(half.share_unknown)


def test_coverage_tells_what_copying_the_training_set_would_cover():
    held_out = [amorphous(4, seed) for seed in range(6)]
    copied, new = [moved(s, 1, noise=0.01) for s in held_out[:4]], [moved(held_out[4], 2)]
    found = coverage(Library(held_out), Library(copied + new), Library(copied))
    assert found.known.tolist() == [True] * 4 + [False] * 2
    assert found.share == pytest.approx(5 / 6) and found.share_unknown == 0.5
    assert coverage(Library(held_out), Library(copied), Library(copied)).share_unknown == 0


def test_classes_join_copies_and_nothing_else():
    some = [amorphous(4, 0), diamond(), amorphous(4, 1), graphite(), amorphous(4, 2)]
    every = some + [moved(some[k], k, noise=0.01) for k in (1, 2, 2, 4)]
    assert classes(Library(every)).tolist() == [0, 1, 2, 3, 4, 1, 2, 2, 4]


def test_unique_and_novel():
    training = [amorphous(4, 0), diamond()]
    samples = [
        moved(amorphous(4, 0), 1),
        moved(amorphous(4, 0), 2),
        diamond(3.6),
        graphite(),
        moved(graphite(), 3),
        amorphous(4, 9),
    ]
    found = diversity(Library(samples), Library(training))
    assert (found.n, found.unique, found.known, found.novel) == (6, 4, 3, 2)
    broken_last = diversity(Library(samples), Library(training), np.array([True] * 5 + [False]))
    assert (broken_last.unique, broken_last.novel) == (3, 1)


def test_samples_are_assigned_to_the_nearest_class():
    references = [amorphous(4, 0), diamond(), amorphous(4, 1)]
    samples = [moved(references[2], 5, noise=0.01), graphite(), diamond(3.5), moved(references[0], 4)]
    assert assign(Library(samples), Library(references)).tolist() == [2, -1, 1, 0]


def test_the_fingerprint_finds_what_trying_all_finds():
    """At the tolerance that means the same minimum, the nearest few of two hundred are enough."""
    references = [amorphous(4, seed) for seed in range(200)]
    samples = [moved(references[k], k, noise=0.06, strain=0.02) for k in range(0, 200, 8)]
    few = match(Library(samples, False), Library(references, False), {"tight": TIGHT})
    assert few.hit.mean() > 0.5
    every = match(Library(samples[:6], False), Library(references, False), {"tight": TIGHT}, nearest=None)
    assert (few.index[:6] == every.index).all()


def test_going_on_through_the_rest_hits_as_trying_all_does():
    """Loose matches are anywhere: the nearest references do not have them all."""
    references, samples = (
        Library([amorphous(4, k) for k in range(25)], False),
        Library([amorphous(4, k) for k in range(40, 50)], False),
    )
    every, rest = match(samples, references, nearest=None), match(samples, references, nearest=1, rest=True)
    few = match(samples, references, nearest=1)
    assert (rest.hit == every.hit).all() and few.hit.sum() < every.hit.sum()
    both = every.hit
    assert (rest.rms[both] >= every.rms[both] - 1e-9).all()


def test_broken_structures():
    with pytest.raises(UnsupportedError, match="structure 1"):
        Library([diamond(), broken("occupancy")])
    with pytest.raises(IncompatibleError, match="at least one"):
        Library([])
    with pytest.raises(IncompatibleError, match="loose to tight"):
        match(Library([diamond()]), Library([diamond()]), dict(reversed(TOLERANCES.items())))
    # Atoms on one another are a structure like any other, which is none of the references.
    assert not match(Library([broken("overlap")]), Library([diamond(), graphite()])).hit.any()
    assert np.isnan(rms_distance(NOTHING, NOTHING, TOLERANCES["loose"]))
