"""When things go wrong: damaged files, killed processes, full disks, numbers that are none. An error that says so, or the right answer."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

import dig_core
import dig_plugins
from dig_core.checkpoint import load
from dig_core.coordinates import Cartesian
from dig_core.diffusion import Diffusion, Joint, LogSNR, ZeroCentroid
from dig_core.dig import Card, DiG
from dig_core.errors import DiGError
from dig_core.files import owned, read_arrays
from dig_core.montecarlo.chain import Pool, Reason
from dig_core.nn import CartesianGraphormer
from dig_core.score import NoiseScore
from dig_core.tensors import from_bytes, read_tensors, to_bytes, write_tensors
from dig_core.training import loop
from dig_core.training.anneal import _Ladder
from dig_core.training.fit import Task, fit
from dig_core.training.frames import read_frames, write_frames
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from dig_core.training.plan import Plan
from dig_core.training.population import _Walkers
from tests.core.mutations import altered, json_mutated, mutated, survives
from tests.core.test_scale import ENERGY, PEROXIDE, made, same

COUNTS = [40, pytest.param(int(os.environ.get("DIG_FUZZ", 2000)), marks=pytest.mark.slow)]
"""Damaged files a reader; the slow tests take as many as DIG_FUZZ says."""


def frames(n: int = 40) -> Frames:
    rng = torch.Generator().manual_seed(1)
    state = {name: torch.randn(n, *part.space.shape, generator=rng) for name, part in made().process.items()}
    return Frames(state, {name: -x for name, x in state.items()}, torch.rand(n, generator=rng))


CONFIG = LoopConfig(steps=24, batch=8, rate=3e-3, warmup=5, average=0.9, every=3, seed=4)


def trained(directory: Path | None, config: LoopConfig = CONFIG, seed: int = 0):
    model = made().model.requires_grad_(True)
    for parameter in model.parameters():
        parameter.data.mul_(1 + seed)
    return optimise(model, Denoising(frames(), PEROXIDE), config, directory=directory, progress=False)


def same_weights(one, other) -> bool:
    return same(dict(one.model.state_dict()), dict(other.model.state_dict()))


# Damaged files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_checkpoints(count, tmp_path):
    """Noticed, whichever byte it is."""
    place = tmp_path / "model.safetensors"
    made().save(place)
    survives(lambda: load(place).sample(1, seed=1, steps=1), place, count, same=same)


def odd_header(content: bytes, rng: np.random.Generator) -> bytes:
    """A checkpoint as another version, or a person, might write it: whole, but with odd words or tensors."""
    tensors, about = from_bytes(content, "whole")
    header = json.loads(about["dig"])
    if rng.random() < 0.7:
        return to_bytes(tensors, dig=json.dumps(altered(header, rng)))
    name = list(tensors)[rng.integers(len(tensors))]
    held = tensors.pop(name)
    if rng.random() < 0.7:
        tensors[name] = [held.reshape(-1)[:-1], held[None], held.double(), held.bool(), held * 0 - 1][rng.integers(5)]
    return to_bytes(tensors, dig=about["dig"])


@pytest.mark.parametrize("count", COUNTS)
def test_checkpoints_of_other_hands(count, tmp_path):
    place = tmp_path / "model.safetensors"
    made().save(place)
    survives(lambda: load(place), place, count, odd_header)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["frames", "walkers", "rung"])
def test_damaged_files_of_a_training(kind, count, tmp_path):
    place, given = tmp_path / kind, frames()
    if kind == "frames":
        write_frames(place, given)
        survives(lambda: vars(read_frames(place)), place, count, same=same)
    elif kind == "walkers":
        walkers = _Walkers(given.state, given.weight, given.force, torch.arange(40), 0.5, 1.0, 0.3, 7, [{"rung": 1}])
        walkers.write(place)
        survives(lambda: tuple(_Walkers.read(place)), place, count, same=same)
    else:
        _Ladder(made(), 0).store(place)

        def read():
            ladder = _Ladder(made(), 0)
            ladder.resume(place)
            return dict(ladder.dig.model.state_dict())

        survives(read, place, count, same=same)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_resume_files(count, tmp_path):
    trained(tmp_path, replace(CONFIG, steps=2, every=1))
    place, objective, model = tmp_path / "resume.safetensors", Denoising(frames(), PEROXIDE), made().model.requires_grad_(True)

    def read():
        trainer = loop._Trainer(model, objective, CONFIG)
        trainer.resume(place)
        return trainer.step, trainer.average, dict(model.state_dict()), trainer.order.get_state(), str(trainer.history)

    survives(read, place, count, same=same)


@pytest.mark.parametrize("count", COUNTS)
def test_resume_files_of_other_hands(count, tmp_path):
    """Never an error of torch's in the midst of the next step."""
    config = replace(CONFIG, steps=2, every=1)
    trained(tmp_path, config)
    place = tmp_path / "resume.safetensors"

    def odd(content: bytes, rng: np.random.Generator) -> bytes:
        tensors, _ = from_bytes(content, "whole")
        name = list(tensors)[rng.integers(len(tensors))]
        held = tensors.pop(name)
        if rng.random() < 0.7:
            tensors[name] = [held.reshape(-1)[:-1], held[None], held[:0] if held.dim() else held[None], held.double()][rng.integers(4)]
        return to_bytes(tensors)

    objective, model = Denoising(frames(), PEROXIDE), made().model.requires_grad_(True)

    def step():
        trainer = loop._Trainer(model, objective, config)
        trainer.resume(place)
        return trainer.advance()

    survives(step, place, count, odd)


class Never:
    """A stage that was done."""

    name = "never"

    def run(self, progress, task: Task):
        raise NotImplementedError


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("part", ["json", "safetensors", "frames"])
def test_damaged_stages(part, count, tmp_path):
    dig = made()
    (tmp_path / "0-never.json").write_text(json.dumps({"evaluations": 3, "history": [{"stage": "never", "ess": [0.5]}]}))
    dig.save(tmp_path / "0-never.safetensors")
    write_frames(tmp_path / "0-never.frames", frames())

    def read():
        return fit(dig, [Never()], directory=tmp_path, progress=False).finished

    survives(read, tmp_path / f"0-never.{part}", count, json_mutated if part == "json" else mutated)


PLAN = {
    "seed": 1, "numbers": [1, 8], "temperature": 300.0, "sizes": {"population": {"walkers": 9}, "step": 0.1, "draw": 0.1, "energy": 0.1},
    "rest": {"denoise": {"steps": 3, "every": 1}, "reweight": [[5, {"steps": 3, "every": 1}]], "least": 4}, "seconds": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("count", [200, *COUNTS[1:]])
def test_damaged_plans(count, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))

    def read():
        plan = Plan.of(tmp_path, 1, [1, 8], 300.0)
        return plan.rest(1.0, plan.sizes(None, None, 1.0), 1.0)["denoise"] if {"sizes", "rest"} <= set(plan.held) else None

    survives(read, tmp_path / "plan.json", count, json_mutated)


def part_of(whole: dict, found: dict) -> bool:
    """Arrays may be lost with the end of a file, which whoever asks for them notices; none is another."""
    return all(same(x, whole.get(name)) for name, x in found.items())


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_marks_and_arrays(count, tmp_path):
    owned(tmp_path / "a", [b"x"], "system")
    survives(lambda: owned(tmp_path / "a", [b"x"], "system"), tmp_path / "a" / "system.sha256", count)
    for save, name in ((np.savez, "plain.npz"), (np.savez_compressed, "packed.npz")):
        place = tmp_path / name
        save(place, positions=np.arange(60.0).reshape(5, 4, 3), seed=np.uint64(3), words="alpha")
        survives(lambda place=place: read_arrays(place), place, count, same=part_of)


def test_what_holds_pickles_is_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DiGError, match="cannot be read"):
        read_arrays(tmp_path / "a.npz")


def test_one_flipped_bit_is_noticed(tmp_path):
    """Of a weight: the file is as long as before, and in order."""
    place = tmp_path / "x"
    write_tensors(place, {"a": torch.ones(100), "b": torch.tensor([True, False])}, words="x")
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    with pytest.raises(DiGError, match="sha256 differs"):
        read_tensors(place)
    unsigned = bytes(content).replace(b'"sha256"', b'"sha252"')  # which would let the other pass
    place.write_bytes(unsigned)
    for read in (read_tensors, lambda path: from_bytes(path.read_bytes(), path)):
        with pytest.raises(DiGError, match="sha256 differs"):
            read(place)


# Killed, interrupted, full -------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killed(work, after: float) -> bool:
    """``work`` in a process that gets SIGKILL ``after`` seconds; whether it was killed before the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        # A lock of its own: progress bars share one with the children of a process, and who is killed while holding it never lets go.
        tqdm.set_lock(threading.RLock())
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@needs_fork
@pytest.mark.parametrize("wanted", [4, pytest.param(int(os.environ.get("DIG_KILLS", 100)), marks=pytest.mark.slow)])
def test_killed_trainings_go_on_as_if_nothing_had_been(wanted, tmp_path):
    """kill -9 at any moment, again and again: weights, history and log are those of the run that was left alone."""
    trained(tmp_path / "first")  # which loads what is loaded once
    began = time.monotonic()
    alone = trained(tmp_path / "alone")
    seconds, rng, kills, trial = time.monotonic() - began, np.random.default_rng(1), 0, 0
    log = (tmp_path / "alone" / "log.csv").read_text()
    while kills < wanted:
        place, trial = tmp_path / str(trial), trial + 1
        while killed(lambda place=place: trained(place), rng.uniform(0.1, 1.0) * seconds):
            kills += 1
        found = trained(place, seed=7)
        assert found.finished and same_weights(found, alone) and str(found.history) == str(alone.history)
        assert (place / "log.csv").read_text() == log
        left = {path.name for path in place.iterdir() if not path.name.startswith(".")}
        assert left == {"resume.safetensors", "log.csv"}
    print(f"{kills} kills in {trial} trainings")


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_full_disk_ends_a_training_that_goes_on_later(call, tmp_path, monkeypatch):
    alone, fsync, calls = trained(None), os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path)
    monkeypatch.undo()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    found = trained(tmp_path)
    assert found.finished and same_weights(found, alone) and str(found.history) == str(alone.history)


def test_any_name_of_a_directory_will_do(tmp_path):
    place = tmp_path / "modèle été 世界 %20 'x'"
    found = trained(place / "a b", replace(CONFIG, steps=1))
    assert same_weights(found, trained(place / "a b", replace(CONFIG, steps=1)))
    made().save(place / "é è.safetensors")
    assert same(load(place / "é è.safetensors").sample(1, seed=1), made().sample(1, seed=1))


def test_clocks_that_jump_do_no_harm(monkeypatch):
    """Durations come from clocks that do not: no module asks for the time of day to measure one."""
    monkeypatch.setattr(loop.time, "time", lambda: 1e12 * float(np.random.default_rng().normal()))
    assert trained(None, replace(CONFIG, steps=2)).seconds >= 0
    for package in (dig_core, dig_plugins):
        for path in Path(package.__file__).parent.rglob("*.py"):
            assert not re.search(r"\btime\.time\(|import time_ns", path.read_text(encoding="utf-8")), path


# Numbers that are none -----------------------------------------------------------------------------------------------------


def cartesian() -> DiG:
    process = Joint(pos=Diffusion(ZeroCentroid(4), LogSNR()))
    model = NoiseScore(CartesianGraphormer({"width": 8, "layers": 1, "heads": 2, "basis": 4}), process)
    return DiG(model.eval().requires_grad_(False), Cartesian(), PEROXIDE, Card(steps=3))


@pytest.mark.parametrize("build", [made, cartesian])
@pytest.mark.parametrize("method", ["path", "ancestral"])
def test_samples_of_a_network_that_makes_nan_are_not_valid(build, method):
    dig = build()
    for parameter in dig.model.parameters():
        parameter.data.fill_(float("nan"))
    found = dig.sample(3, seed=1, method=method)
    assert not found.valid.any()
    if method == "path":
        assert bool((found.known_log_q() == float("inf")).all())
        candidates = Pool(dig.proposal(), ENERGY, seed=1, batch=3).take(3)
        assert (candidates.reason == Reason.INVALID).all() and (candidates.log_weight == -np.inf).all()
