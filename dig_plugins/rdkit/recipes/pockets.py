"""The recipe of ``pockets``: one network that places ligands in pockets, from the posed ligands of six targets.

python -m dig_plugins.rdkit.recipes.pockets --data ../shared/data/ligand --out runs/pockets [--without tyk2]
python -m dig_plugins.rdkit.recipes.pockets --poses runs/pockets/poses.safetensors --out runs/pockets --device cuda   # needs no RDKit

The one that ships: the second command with --width 96 --layers 4 --batch 384, interrupted after 958 of 1,320 steps, which took three
minutes of an H100.

Of every target three ligands of ten, drawn once, are never trained on; nor is a whole target with ``--without``. Poses are minimised in
their pocket and blurred by the harmonic law of MMFF94 about them. Resumable: run the same command again.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes

from dig_core.coordinates.complex import COMPLEX_SCHEMA, Complex
from dig_core.dig import Card, DiG
from dig_core.files import write_atomically
from dig_core.nn.pose import PoseGraphormer
from dig_core.score import NoiseScore
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames
from dig_core.training.poses import Poses
from dig_core.types import Geometry

log = logging.getLogger(__name__)

__all__ = ["TARGETS", "ligands", "pocket_of", "prepare", "read_poses", "train", "withheld"]

TARGETS = ("bace", "cdk2", "mcl1", "ptp1b", "thrombin", "tyk2")
_SEED = 7
_INTEGERS = ("numbers", "node", "pair", "bonds")
_CUTOFF = 8.0


def withheld(count: int, target: str) -> list[int]:
    """Which of a target's ``count`` ligands are not trained on: three of ten."""
    rng = np.random.default_rng([_SEED, TARGETS.index(target)])
    return sorted(rng.permutation(count)[: round(0.3 * count)].tolist())


def ligands(data: Path, target: str) -> list:
    """The target's ligands as RDKit molecules, in the order of the file."""
    from rdkit import Chem

    from dig_plugins.rdkit import of_sdf

    file = data / target / "ligands_antechamber_am1bcc.sdf"
    count = len(Chem.SDMolSupplier(str(file), sanitize=False, removeHs=False))
    return [of_sdf(file, record=k) for k in range(count)]


def pocket_of(data: Path, target: str, mols: list):
    """The target's pocket: what is within 8 Angstrom of its first ligand that is trained on; waters and ions left out."""
    from dig_plugins.rdkit.pockets.pocket import read_pocket

    first = min(set(range(len(mols))) - set(withheld(len(mols), target)))
    return read_pocket(data / target / "protein.pdb", mols[first], cutoff=_CUTOFF, ions="leave")


def prepare(data: Path, out: Path) -> Path:
    """Every ligand's complex and frames in ``out``/poses.safetensors; those that are not withheld are for training."""
    from dig_plugins.rdkit.pockets.data import posed

    done = out / "poses.safetensors"
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    tensors, about = {}, []
    for target in TARGETS:
        mols = ligands(data, target)
        pocket, aside = pocket_of(data, target, mols), withheld(len(mols), target)
        for number, mol in enumerate(mols):
            name, part = f"{target}-{number}", parts / f"{target}-{number}.safetensors"
            if not part.exists():
                system, frames, moved = posed(mol, pocket, seed=number)
                write_atomically(part, to_bytes(_tensors(system, frames), metadata={"moved": repr(moved)}))
                log.info("%s: %d frames, minimised by %.2f Angstrom", name, len(frames), moved)
            with safe_open(part, "pt") as stream:
                tensors |= {f"{name}.{key}": stream.get_tensor(key) for key in stream.keys()}
                moved = float((stream.metadata() or {})["moved"])
            about.append({"name": name, "target": target, "withheld": number in aside, "moved": moved})
    write_atomically(done, to_bytes(tensors, metadata={"poses": json.dumps(about)}))
    return done


def read_poses(path: Path) -> list[tuple[dict, Complex, Frames]]:
    """What :func:`prepare` wrote: of each ligand its name, target and whether it is withheld; its complex; its frames."""
    with safe_open(path, "pt") as stream:
        about = json.loads((stream.metadata() or {})["poses"])
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}
    found = []
    for row in about:
        own = {key[len(row["name"]) + 1 :]: x for key, x in tensors.items() if key.startswith(row["name"] + ".")}
        state = {key[6:]: x for key, x in own.items() if key.startswith("state.")}
        given = {key: own[key].long() if key in _INTEGERS else own[key] for key in (*_INTEGERS, "mobile", "pbc", "conditions", "couple")}
        given["couple"] = given["couple"].double()
        found.append((row, Complex(**given, reference=Geometry(own["reference"]), schema=COMPLEX_SCHEMA), Frames(state)))
    return found


def _tensors(system: Complex, frames: Frames) -> dict[str, torch.Tensor]:
    found = {key: getattr(system, key).to(torch.int16) for key in _INTEGERS}
    found |= {key: getattr(system, key) for key in ("mobile", "pbc", "conditions")}
    found |= {"couple": system.couple.float(), "reference": system.reference.positions}  # type: ignore[union-attr]
    return {k: v.contiguous().clone() for k, v in (found | {f"state.{n}": x for n, x in frames.state.items()}).items()}


def train(
    poses: Path, out: Path, *, without: str | None, steps: int, seconds: float | None, batch: int, device: str, seed: int, size: dict
) -> DiG:
    """The network of all targets but ``without``; checkpoints in ``out``. ``seconds`` of training, if given, decide the steps."""
    rows = [(about, system, frames) for about, system, frames in read_poses(poses) if about["target"] != without]
    known = [(system, frames) for about, system, frames in rows if not about["withheld"]]
    targets = [about["target"] for about, *_ in rows if not about["withheld"]]
    weight = torch.tensor([1 / targets.count(t) ** 0.5 for t in targets])
    aside = Poses([(system, frames) for about, system, frames in rows if about["withheld"]])
    objective = Poses(known, weight=weight, jitter=0.15)
    network = PoseGraphormer(seed=seed, **size).to(device)
    model = NoiseScore(network, network.process(known[0][0]))
    if seconds is not None:
        steps = _steps(model, objective, out, seconds, batch, device)
    every, warmup = max(1, steps // 20), min(200, steps // 10)
    config = LoopConfig(steps=steps, batch=batch, rate=1e-3, warmup=warmup, average=0.998, every=every, seed=seed)
    # What is withheld is looked at, in the log; nothing is chosen by it.
    result = optimise(model, objective, config, validation=aside, directory=out, label=out.name)  # type: ignore[arg-type]
    done = result.model.cpu().eval().requires_grad_(False)
    row = {"stage": "poses", "complexes": len(known), "steps": result.steps, "batch": batch, "seed": seed, "seconds": round(result.seconds)}
    card = Card(
        name=out.name, system="ligands in pockets", steps=32, history=[row], temperature=300.0,
        energy="poses of openfe-benchmarks, minimised with MMFF94s and blurred by its harmonic law",
        intended_use="poses of a ligand in a pocket of a target it was trained on; proposals for Monte Carlo in a fixed pocket",
        limits="other targets; metals, waters and induced fit; ligands unlike those of the series",
        scope={"target": sorted(set(targets)), "withheld": [about["name"] for about, *_ in rows if about["withheld"]]},
    )  # fmt: skip
    return DiG(done, network.coordinates, known[0][0], card)


def _steps(model: NoiseScore, objective: Poses, out: Path, seconds: float, batch: int, device: str) -> int:
    """How many fit into ``seconds`` here; decided once."""
    plan = out / "plan.json"
    if not plan.exists():
        out.mkdir(parents=True, exist_ok=True)
        trial, rng = copy.deepcopy(model), [torch.Generator().manual_seed(k) for k in (0, 1)]
        took = []
        for _ in range(8):
            began = time.monotonic()
            sum(objective(trial, batch, *rng).values()).backward()
            if device != "cpu":
                torch.cuda.synchronize()
            took.append(time.monotonic() - began)
        write_atomically(plan, json.dumps({"steps": max(20, int(0.9 * seconds / float(np.median(took[2:]))))}).encode())
    return int(json.loads(plan.read_text())["steps"])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="directory of the targets")
    parser.add_argument("--poses", type=Path, help="a file that an earlier run has prepared")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without", choices=TARGETS, help="a target to leave out")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seconds", type=float, help="of training, in place of steps")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="make the poses' file and stop")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1 if given.device == "cpu" else 4)
    if given.poses is None and given.data is None:
        parser.error("give --data, or --poses of an earlier run.")
    poses = given.poses or prepare(given.data, given.out)
    if given.prepare:
        return
    size = {"width": given.width, "layers": given.layers, "heads": max(4, given.width // 16)}
    name = "pockets" if given.without is None else f"pockets-without-{given.without}"
    dig = train(
        poses, given.out / name, without=given.without, steps=given.steps, seconds=given.seconds, batch=given.batch, device=given.device,
        seed=given.seed, size=size,
    )  # fmt: skip
    dig.save(given.out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
