"""Samples written as they come are those that are drawn at once; what fails midway leaves nothing."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

pytest.importorskip("openmm")

from openmm import app

from dig_core.errors import IncompatibleError, StateError
from dig_plugins.openmm import ensemble as ensembles
from dig_plugins.openmm import model_system, sample, write_samples
from dig_plugins.openmm.files import XTC

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
    counts, write = [], XTC.write

    def counted(self, frames):
        counts.append(sum(reference() is not None for reference in alive))
        write(self, frames)

    monkeypatch.setattr(XTC, "write", counted)
    write_samples(NAME, 80, tmp_path / "a.xtc", **GIVEN)
    assert len(counts) == 5 and max(counts) <= 2


def test_what_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    calls, write = [], XTC.write

    def full(self, frames):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, frames)

    monkeypatch.setattr(XTC, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_samples(NAME, 40, tmp_path / "a.xtc", **GIVEN)
    assert not list(tmp_path.iterdir())


def test_what_makes_no_sense_is_refused_before_anything_is_drawn(tmp_path):
    for path, match in (("a.npz", "ending in .xtc"), ("no/a.xtc", "no directory")):
        with pytest.raises(IncompatibleError, match=match):
            write_samples(NAME, 4, tmp_path / path, **GIVEN)
    with pytest.raises(IncompatibleError, match="at least 1 sample"):
        write_samples(NAME, 0, tmp_path / "a.xtc", **GIVEN)


def test_positions_that_are_no_numbers_are_not_written(tmp_path):
    topology: app.Topology = model_system(NAME).topology
    with pytest.raises(StateError, match="finite"), XTC(tmp_path / "a.xtc", topology) as trajectory:
        trajectory.write(np.full((1, topology.getNumAtoms(), 3), np.nan))
    assert not list(tmp_path.iterdir())
