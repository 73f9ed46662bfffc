"""Samples written as they come are those that are drawn at once, however often the run is cut off."""

from __future__ import annotations

import errno
import os
import sys
import time

import numpy as np
import pytest

pytest.importorskip("openmm")

from filelock import FileLock
from openmm import app

from dig_core.errors import CheckpointError, IncompatibleError, StateError
from dig_plugins import tasks
from dig_plugins.openmm import ensemble as ensembles
from dig_plugins.openmm import model_system, sample, stream, write_samples
from dig_plugins.openmm.files import Trajectory, read_frames
from tests.core.mutations import json_mutated, survives
from tests.core.test_reliability import killed
from tests.plugins.test_reliability import COUNTS

NAME = "alanine-dipeptide"
GIVEN = {"seed": 5, "batch": 16, "steps": 4, "progress": False}


def test_written_and_drawn_are_the_same(tmp_path):
    drawn = sample(NAME, 40, **GIVEN)
    written = write_samples(NAME, 40, tmp_path / "été 1.xtc", **GIVEN)
    assert np.array_equal(written.log_weights, drawn.log_weights) and np.array_equal(written.energies, drawn.energies)
    assert written.effective_sample_size == drawn.effective_sample_size and written.seed == 5
    with np.load(tmp_path / "été 1.npz") as held:
        assert np.array_equal(held["log_weights"], drawn.log_weights) and int(held["seed"]) == 5
    mdtraj = pytest.importorskip("mdtraj")
    (tmp_path / "été 1.xtc").rename(tmp_path / "a.xtc")  # MDTraj itself knows no such names
    found = mdtraj.load(str(tmp_path / "a.xtc"), top=str(tmp_path / "été 1.pdb"))
    assert np.allclose(found.xyz, drawn.positions, atol=6e-4)


@pytest.mark.parametrize(("ending", "precision"), [(".xtc", 6e-4), (".dcd", 2e-6), (".h5", 2e-6)])
def test_trajectories_of_any_format_hold_what_is_drawn(ending, precision, tmp_path, monkeypatch):
    """As they come, after a run that was cut off, and at once; HDF5 brings its topology."""
    mdtraj = pytest.importorskip("mdtraj")
    if ending == ".h5":
        pytest.importorskip("tables")
    path, drawn = tmp_path / f"a{ending}", sample(NAME, 40, **GIVEN)
    finish = stream._Run.finish
    monkeypatch.setattr(stream._Run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_samples(NAME, 40, path, **GIVEN)
    monkeypatch.setattr(stream._Run, "finish", finish)
    write_samples(NAME, 40, path, **GIVEN)
    drawn.save(tmp_path / f"b{ending}")
    alone = ending == ".h5"
    assert {file.name for file in tmp_path.iterdir()} == {
        name for one in "ab" for name in (f"{one}{ending}", f"{one}.npz", f"{one}.pdb") if not (alone and name.endswith("pdb"))
    }
    for one in "ab":
        found = mdtraj.load(str(tmp_path / f"{one}{ending}"), **({} if alone else {"top": str(tmp_path / f"{one}.pdb")}))
        np.testing.assert_allclose(found.xyz, drawn.positions, atol=precision)
        names = [atom.name for atom in found.topology.atoms]
        assert names == [atom.name for atom in drawn.topology.atoms()] and found.topology.n_bonds == drawn.topology.getNumBonds()


def test_hdf5_without_its_packages_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(ImportError, match=r"dig-plugins\[hdf5\]"):
        write_samples(NAME, 4, tmp_path / "a.h5", **GIVEN)
    monkeypatch.setattr("dig_core.dig.DiG.sample", None)
    with pytest.raises(ImportError, match=r"dig-plugins\[hdf5\]"):
        tasks.sample("adenylate-kinase", 2, tmp_path / "a.h5", seed=1)
    assert not list(tmp_path.iterdir())


def files(place):
    """What a run has left, by name, without the date in a PDB's first line; and nothing of the work."""
    return {path.name: path.read_bytes().split(b"\n", path.suffix == ".pdb")[-1] for path in place.iterdir()}


@pytest.mark.parametrize("name", ["a.npz", "a.pdb"])
def test_other_formats_are_those_of_an_ensemble(name, tmp_path):
    write_samples(NAME, 40, tmp_path / name, **GIVEN)
    (tmp_path / "whole").mkdir()
    sample(NAME, 40, **GIVEN).save(tmp_path / "whole" / name)
    if name == "a.pdb":
        topology = model_system(NAME).topology
        found, drawn = (read_frames(place / name, topology) for place in (tmp_path, tmp_path / "whole"))
        assert found.shape == drawn.shape and np.allclose(found, drawn, atol=2e-4)
        return
    with np.load(tmp_path / name) as found, np.load(tmp_path / "whole" / name) as drawn:
        assert set(found) == set(drawn) and all(np.array_equal(found[key], drawn[key]) for key in drawn)


def test_memory_holds_a_batch(tmp_path, monkeypatch):
    """When a batch is written, none of those before is needed any more."""
    alive, drawn = [], ensembles.weighed

    def watched(*arguments, **options):
        import gc
        import weakref

        for part in drawn(*arguments, **options):
            alive.append(weakref.ref(part.positions))
            yield part
            del part
            gc.collect()

    monkeypatch.setattr(ensembles, "weighed", watched)
    counts, write = [], stream.write_atomically

    def counted(path, content):
        counts.append(sum(reference() is not None for reference in alive))
        write(path, content)

    monkeypatch.setattr(stream, "write_atomically", counted)
    write_samples(NAME, 80, tmp_path / "a.xtc", **GIVEN)
    assert len(counts) == 5 and max(counts) <= 2


def test_a_full_disk_ends_a_run_that_goes_on_later(tmp_path, monkeypatch):
    """Nothing is lost, nothing is doubled, no file is half there; the seed is kept."""
    (tmp_path / "whole").mkdir()
    write_samples(NAME, 40, tmp_path / "whole" / "a.xtc", **GIVEN)
    fsync = os.fsync
    for call in (1, 3, 6):
        calls, place = [], tmp_path / str(call)

        def full(descriptor, calls=calls, call=call):
            calls.append(1)
            if len(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        place.mkdir()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_samples(NAME, 40, place / "a.xtc", **GIVEN)
        monkeypatch.undo()
        assert [path.name for path in place.iterdir()] == ["a.xtc.part"]
        write_samples(NAME, 40, place / "a.xtc", **{**GIVEN, "seed": None if call > 1 else GIVEN["seed"]})
        assert files(place) == files(tmp_path / "whole") and set(files(place)) == {"a.xtc", "a.pdb", "a.npz"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("wanted", [2, pytest.param(int(os.environ.get("DIG_KILLS", 100)), marks=pytest.mark.slow)])
def test_killed_runs_go_on_as_if_nothing_had_been(wanted, tmp_path):
    """kill -9 at any moment, again and again: the files are, byte by byte, those of the run that was left alone."""
    options = {**GIVEN, "batch": 4}

    def run(place):
        place.mkdir(exist_ok=True)
        write_samples(NAME, 60, place / "é 1.xtc", **options)

    run(tmp_path / "first")
    began = time.monotonic()
    run(tmp_path / "alone")
    seconds, rng, kills, trial = time.monotonic() - began, np.random.default_rng(1), 0, 0
    while kills < wanted:
        place, after, trial = tmp_path / f"run {trial}", seconds, trial + 1
        while killed(lambda place=place: run(place), rng.uniform(0.1, 1.0) * after):
            kills, after = kills + 1, 1.3 * after  # a machine that is busier by now has to start, too
            assert all(path.name in ("é 1.xtc.part", "é 1.xtc", "é 1.pdb", "é 1.npz") for path in place.iterdir())
        assert files(place) == files(tmp_path / "alone")
    print(f"{kills} kills in {trial} runs")


def test_a_run_of_other_settings_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stream._Run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_samples(NAME, 40, tmp_path / "a.xtc", **GIVEN)
    monkeypatch.undo()
    for other, match in (({"seed": 6}, "seed 5, not 6"), ({"steps": 5}, "steps 4, not 5"), ({"batch": 8}, "batch 16, not 8")):
        with pytest.raises(CheckpointError, match=match):
            write_samples(NAME, 40, tmp_path / "a.xtc", **{**GIVEN, **other})
    with FileLock(tmp_path / "a.xtc.part" / "lock"), pytest.raises(IncompatibleError, match="another process"):
        write_samples(NAME, 40, tmp_path / "a.xtc", **GIVEN)
    (tmp_path / "a.xtc.part" / "batches" / "000001.npz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="000001"):
        write_samples(NAME, 40, tmp_path / "a.xtc", **GIVEN)
    (tmp_path / "a.xtc.part" / "batches" / "000001.npz").unlink()
    assert len(write_samples(NAME, 40, tmp_path / "a.xtc", **GIVEN).energies) == 40


def test_the_verb_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(stream._Run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tasks.sample(NAME, 12, tmp_path / "a.xtc", steps=4, progress=False, report=False)
    monkeypatch.undo()
    monkeypatch.setattr(stream._Run, "keep", None)  # all that was to be drawn is there
    found = tasks.sample(NAME, 12, tmp_path / "a.xtc", steps=4, progress=False, report=False)
    monkeypatch.undo()
    assert set(files(tmp_path)) == {"a.xtc", "a.pdb", "a.npz", "a.json"}
    again = sample(NAME, 12, seed=found.record["seed"], steps=4, progress=False)
    assert np.array_equal(found.result.log_weights, again.log_weights)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_runs(count, tmp_path, monkeypatch):
    monkeypatch.setattr(stream._Run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_samples(NAME, 40, tmp_path / "a.xtc", **GIVEN)
    monkeypatch.undo()
    part = tmp_path / "a.xtc.part"
    run = stream._Run(tmp_path / "a.xtc", part, model_system(NAME).topology)
    survives(lambda: stream._begun(part, None), part / "settings.json", count, json_mutated)
    place = part / "batches" / "000001.npz"

    def same(whole, found):
        return all(np.array_equal(a[key], b[key]) for a, b in zip(whole, found, strict=True) for key in a)

    survives(lambda: list(run._batches()), place, count, same=same)


def test_what_makes_no_sense_is_refused_before_anything_is_drawn(tmp_path):
    for path, match in (("a.trr", "ending in .xtc"), ("no/a.xtc", "no directory")):
        with pytest.raises(IncompatibleError, match=match):
            write_samples(NAME, 4, tmp_path / path, **GIVEN)
    for n, batch in ((0, 16), (4, 0)):
        with pytest.raises(IncompatibleError, match="at least 1 sample"):
            write_samples(NAME, n, tmp_path / "a.xtc", **{**GIVEN, "batch": batch})
    assert not list(tmp_path.iterdir())


def test_positions_that_are_no_numbers_are_not_written(tmp_path):
    topology: app.Topology = model_system(NAME).topology
    with pytest.raises(StateError, match="finite"), Trajectory(tmp_path / "a.xtc", topology) as trajectory:
        trajectory.write(np.full((1, topology.getNumAtoms(), 3), np.nan))
    assert not list(tmp_path.iterdir())
