"""Training on two processes: the losses of one, whatever the objective; who leads writes, and all stop together."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from dig_core.diffusion import Diffusion, Euclidean, Joint, LogSNR, Torus
from dig_core.diffusion.schedules import Geometric
from dig_core.nn import ResidualMLP
from dig_core.score import NoiseScore
from dig_core.system.descriptor import molecule
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Denoising, Frames
from dig_core.training.pidp import PIDP
from dig_core.training.systems import Systems
from tests.core.adsorbates import awake, states, system

PROCESS = Joint(flat=Diffusion(Euclidean(2), LogSNR(6.0, -6.0)), turn=Diffusion(Torus(1), Geometric(0.05, 3.5)))
WATER = molecule([1, 8, 1], [(0, 1), (1, 2)], positions=[[0.96, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.24, 0.93, 0.0]])
START = "fork" if hasattr(os, "fork") and not torch.cuda.is_available() else "spawn"
"""Forking saves the seconds of importing, but autograd has threads of its own where there are GPUs, which do not survive it."""
CONFIG = LoopConfig(steps=24, batch=33, rate=3e-3, warmup=5, average=0.9, every=8, seed=4)


def frames() -> Frames:
    """With forces and weights, so that every part of a batch is shared out."""
    rng = torch.Generator().manual_seed(1)
    state = {"flat": torch.randn(500, 2, generator=rng), "turn": 0.3 * torch.randn(500, 1, generator=rng)}
    force = {"flat": -state["flat"], "turn": -state["turn"] / 0.09}
    return Frames(state, force, torch.rand(500, generator=rng) + 0.5)


def untrained(seed: int) -> NoiseScore:
    return NoiseScore(ResidualMLP({"flat": 2, "turn": 1}, ["turn"], width=16, blocks=1, frequencies=4, seed=seed), PROCESS)


OBJECTIVES = {"plain": {}, "company": {"company": 3}, "between": {"between": (0.2, 0.4)}}


def many(seed: int) -> tuple[NoiseScore, Systems]:
    """Adsorbates of unlike elements and conditions, whose descriptors differ from row to row."""
    given = [system("O", conditions=[c]) for c in (0.1, 0.7)] + [system("CO", conditions=[c]) for c in (0.1, 0.4)]
    given.append(dataclasses.replace(given[0], numbers=torch.where(given[0].numbers == 8, 1, given[0].numbers)))
    network = awake(conditions=1, width=8, layers=1, seed=seed + 1)
    parts = [(d, Frames({n: x.float() for n, x in states(network, d, 20).items()})) for d in given]
    return NoiseScore(network, network.process(given[0])), Systems(parts)


def fitted(kind: str, config: LoopConfig, directory: Path | None = None, seed: int = 0, picture=None):
    if kind == "systems":
        model, objective = many(seed)
        return optimise(model, objective, config, validation=objective, progress=False)
    objective = PIDP(frames(), WATER) if kind == "physics" else Denoising(frames(), WATER, **OBJECTIVES[kind])
    return optimise(
        untrained(seed), objective, config, validation=Denoising(frames(), WATER), directory=directory, progress=False, picture=picture
    )


def one_of(rank: int, port: int, kind: str, config: LoopConfig, directory: Path, interrupted: bool) -> None:
    """A process of two: which begin with other weights and seeds, since the leader's count."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    distributed.init_process_group("gloo", rank=rank, world_size=2)

    def press(model, step):
        os.kill(os.getpid(), signal.SIGINT)

    try:
        own = replace(config, seed=config.seed + rank)
        found = fitted(kind, own, directory, seed=rank, picture=press if interrupted else None)
        torch.save({"history": found.history, "weights": found.model.state_dict(), "steps": found.steps}, directory / f"rank-{rank}.pt")
    finally:
        distributed.destroy_process_group()


def together(kind: str, config: LoopConfig, directory: Path, interrupted: bool = False) -> list[dict]:
    directory.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(one_of, (port, kind, config, directory, interrupted), nprocs=2, start_method=START)
    return [torch.load(directory / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")


def assert_same_course(one: list[dict], other: list[dict]) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in other] and one
    for mine, theirs in zip(one, other, strict=True):
        for name in ("training", "validation", "spread"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["company", *(pytest.param(kind, marks=SLOW) for kind in ("plain", "between", "physics", "systems"))])
def test_two_processes_have_the_losses_of_one(kind, tmp_path):
    config = replace(CONFIG, steps=4, every=2) if kind in ("physics", "systems") else CONFIG
    alone = fitted(kind, config)
    first, second = together(kind, config, tmp_path)
    assert_same_course(alone.history, first["history"])
    assert_same_course(first["history"], second["history"])
    for name, value in alone.model.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        assert torch.allclose(first["weights"][name], value, rtol=1e-3, atol=1e-5)


@SLOW
def test_all_stop_where_one_is_interrupted_and_go_on_together(tmp_path):
    alone = fitted("plain", CONFIG)
    first, second = together("plain", CONFIG, tmp_path, interrupted=True)
    assert first["steps"] == second["steps"] == 8
    first, second = together("plain", CONFIG, tmp_path)
    assert first["steps"] == second["steps"] == 24
    assert_same_course(alone.history, first["history"])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4


@SLOW
def test_a_batch_that_is_too_small_is_an_error(tmp_path):
    with pytest.raises(Exception, match="cannot be shared by 2 processes"):
        together("plain", replace(CONFIG, batch=1), tmp_path)
    assert fitted("plain", replace(CONFIG, batch=1, steps=1)).finished
