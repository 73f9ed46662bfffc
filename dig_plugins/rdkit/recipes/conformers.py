"""The shipped model of any drug-like molecule's conformers: training on the file that :mod:`.conformer_data` makes, and the card.

python -m dig_plugins.rdkit.recipes.conformers --out runs/conformers [--minutes 40] [--device cuda]

A call that was cut off goes on. Needs no RDKit.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import time
from pathlib import Path

import torch
from safetensors import safe_open

from dig_core.dig import Card, DiG
from dig_core.files import write_atomically
from dig_core.nn.conformer import ConformerGraphormer, molecule_of
from dig_core.score import NoiseScore
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames
from dig_core.training.molecules import Molecules, internal_process

__all__ = ["CARD", "ENCODER", "read_training"]

log = logging.getLogger(__name__)

ENCODER = {"width": 128, "layers": 5, "heads": 8, "basis": 32}
ASIDE = 16
"""Molecules of the file that only watch the training."""
DATA = "conformer benchmark (Folmsbee and Hutchison, MIT), crystal ligands (qca-dataset-submission, CC-BY-4.0), MMFF94s frames"
CARD = Card(
    name="conformers", system="any drug-like molecule of up to 64 atoms, free, from its graph and stereochemistry",
    energy="MMFF94s (RDKit)", steps=16, licence="MIT",
    intended_use="conformers to start from: minimise them, and take the distinct ones",
    limits="minima weighted as at 1000 K, vibrations of 300 K; trained on few molecules, so that draws of others are rough: exact weights "
    "of larger molecules rest on single draws",
)  # fmt: skip


def read_training(path: Path) -> list[tuple]:
    """(coordinates, descriptor, frames) of every molecule in the file."""
    found = []
    with safe_open(path, "pt") as stream:
        for number, about in sorted(stream.metadata().items(), key=lambda item: int(item[0])):
            tensors = {key: stream.get_tensor(f"{number}.{key}").float() for key in ("shape", "torsion", "weight")}
            weight = tensors.pop("weight")
            found.append((*molecule_of(json.loads(about)), Frames(tensors, None, weight)))
    return found


def train(
    out: Path, minutes: float, batch: int, device: str, seed: int, rate: float = 1e-3, start: Path | None = None
) -> DiG | None:  # fmt: skip
    """The trained model, on the smallest molecule of the file; None if it was stopped on the way. ``start``: a model to go on from."""
    systems = read_training(out / "training.safetensors")
    watching, learning = (Molecules(some, device=device) for some in (systems[:ASIDE], systems[ASIDE:]))
    coordinates, descriptor, _ = min(systems, key=lambda one: one[1].n_atoms)
    network = ConformerGraphormer.of(coordinates, descriptor, **ENCODER, seed=seed)
    before = [] if start is None else DiG.load(start).card.history
    if start is not None:
        network.load_state_dict(DiG.load(start).model.network.state_dict())  # type: ignore[attr-defined]
    model = NoiseScore(network, internal_process(**network.sizes)).requires_grad_(True).to(device)
    steps = _steps(out / "plan.json", model, learning, minutes, batch)
    log.info("%d molecules, %d parameters, %d steps", len(systems), sum(p.numel() for p in network.parameters()), steps)
    config = LoopConfig(steps=steps, batch=batch, rate=rate, every=max(1, min(500, steps // 8)), seed=seed)
    found = optimise(model, learning, config, validation=watching, directory=out / "training", label="conformers")
    if not found.finished:
        return None
    about = {"recipe": "python -m dig_plugins.rdkit.recipes.conformers", "seed": seed, "molecules": len(systems) - ASIDE}
    history = [*before, {**about, "steps": steps, "batch": batch, "rate": rate}, *found.history]
    scope = {"molecules": len(systems) - ASIDE, "atoms": f"up to {max(d.n_atoms for _, d, _ in systems)}", "data": DATA}
    card = dataclasses.replace(CARD, history=history, scope=scope)
    return DiG(model.cpu().eval().requires_grad_(False), coordinates, descriptor, card)


def _steps(path: Path, model: NoiseScore, objective: Molecules, minutes: float, batch: int) -> int:
    """How many fit into the time, measured once on a copy and kept."""
    if not path.exists():
        trial = copy.deepcopy(model)
        for _ in range(2):  # the first run pays for what is paid once
            began, count = time.monotonic(), 10
            optimise(trial, objective, LoopConfig(steps=count, batch=batch, every=count), progress=False)
        seconds = (time.monotonic() - began) / count
        write_atomically(path, json.dumps({"steps": max(100, int(60 * minutes / seconds)), "seconds_a_step": seconds}).encode())
    return int(json.loads(path.read_text())["steps"])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="the directory with training.safetensors")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", type=Path, help="a model of this recipe to go on from")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    found = train(given.out, given.minutes, given.batch, given.device, given.seed, given.rate, given.start)
    if found is None:
        raise SystemExit("stopped: run the same command again to go on.")
    found.save(given.out / "conformers.safetensors")


if __name__ == "__main__":
    main()
