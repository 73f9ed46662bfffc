"""The recipe of the learned band gap of carbon: labels by tight binding, at minima and off them, then a small network.

python -m dig_plugins.pymatgen.recipes.gap --data DIR --out runs/gap

DIR holds carbon24_unique_{train,val}.extxyz.gz (Carbon-24 without duplicates, CC-BY-4.0). Resumable: run it again.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.types import Geometry
from dig_plugins.pymatgen.gap.dftb import PBE, TightBindingGap
from dig_plugins.pymatgen.gap.learned import GapNetwork, LearnedGap, Surroundings, surroundings

log = logging.getLogger(__name__)

__all__ = ["Labelled", "errors", "moved", "read_labelled", "train"]

LABELLER = {"spacing": 0.5, "temperature": 0.0, "zoom": 2}
_METAL, _GAPPED = 0.1, 0.5  # eV: at most, at least


class Labelled(NamedTuple):
    """A crystal, (N, 3) and (3, 3) Angstrom, its gap in eV, and that of plane-wave PBE where it is known, else NaN."""

    positions: Tensor
    cell: Tensor
    gap: float
    pbe: float = math.nan


def read_labelled(path: Path) -> list[Labelled]:
    """Structures of an extended XYZ file that carry the signed tight-binding gap, calibrated here."""
    from ase.io import read

    found = []
    for atoms in read(path, ":"):
        raw = atoms.info.get("gap_dftb_signed")
        if raw is None:
            continue
        gap, pbe = float(PBE(torch.tensor(float(raw)))), float(atoms.info.get("gap_pbe_signed", math.nan))
        found.append(Labelled(torch.tensor(atoms.positions), torch.tensor(atoms.cell.array), gap, pbe))
    if not found:
        raise IncompatibleError(f"{path} has no structure with gap_dftb_signed: expected the labelled Carbon-24 files.")
    return found


def moved(crystal: Labelled, rng: torch.Generator) -> Geometry:
    """One copy off the minimum: strained by some per cent, atoms displaced by 0.03 to 0.5 Angstrom, one in ten anywhere in the cell."""
    n = len(crystal.positions)
    strain = 0.04 * torch.randn(3, 3, generator=rng, dtype=torch.float64)
    turn = torch.linalg.matrix_exp((strain + strain.T) / 2)
    size = 0.03 * (0.5 / 0.03) ** float(torch.rand((), generator=rng))
    positions = crystal.positions + size * torch.randn(n, 3, generator=rng, dtype=torch.float64)
    if float(torch.rand((), generator=rng)) < 0.1:
        positions = torch.rand(n, 3, generator=rng, dtype=torch.float64) @ crystal.cell
    return Geometry((positions @ turn)[None], (crystal.cell @ turn)[None])


def label(crystals: Sequence[Labelled], cache: Path, seed: int, block: int = 100) -> list[Labelled]:
    """A labelled copy of each crystal off its minimum; those without a gap are left out. Kept in ``cache``, block by block."""
    gap, found = TightBindingGap(**LABELLER), []
    cache.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(crystals), block):
        some, place = crystals[start : start + block], cache / f"{len(crystals)}-{seed}-{start}.npy"
        rngs = [torch.Generator().manual_seed(1_000_003 * seed + start + k) for k in range(len(some))]
        copies = [moved(one, rng) for one, rng in zip(some, rngs, strict=True)]
        if not place.exists():
            with torch.no_grad():
                write_atomically(place, _bytes(np.save, torch.cat([gap(copy) for copy in copies]).numpy()))
            log.info("labelled %d of %d", start + len(some), len(crystals))
        values = np.load(place)
        found += [Labelled(c.positions[0], c.cell[0], float(v)) for c, v in zip(copies, values, strict=True) if np.isfinite(v)]
    return found


def read_surroundings(crystals: Sequence[Labelled]) -> list[Surroundings]:
    """What the network reads of each: it does not change in training."""
    with torch.no_grad():
        seen = [surroundings(Geometry(one.positions[None], one.cell[None]))[0] for one in crystals]
    return [one._replace(invariants=one.invariants.float(), shape=one.shape.float()) for one in seen]


def together(seen: Sequence[Surroundings]) -> Surroundings:
    """One batch of several."""
    sizes = torch.tensor([len(one.structure) for one in seen])
    first = (sizes.cumsum(0) - sizes).tolist()
    return Surroundings(
        torch.cat([one.invariants for one in seen]), torch.arange(len(seen)).repeat_interleave(sizes),
        torch.cat([one.to + k for one, k in zip(seen, first, strict=True)]),
        torch.cat([one.of + k for one, k in zip(seen, first, strict=True)]), torch.cat([one.shape for one in seen]),
    )  # fmt: skip


def loss_of(found: Tensor, wanted: Tensor) -> Tensor:
    """Huber loss of the signed gap, and of the gap as it is quoted: an overlap of bands matters less than a gap."""
    huber = torch.nn.functional.smooth_l1_loss
    return 0.3 * huber(found, wanted, beta=0.3) + huber(found.relu(), wanted.relu(), beta=0.3)


def train(
    crystals: Sequence[Labelled], out: Path, steps: int = 4000, width: int = 64, batch: int = 48, rate: float = 3e-3, seed: int = 0
) -> GapNetwork:
    """A network fitted to the crystals; goes on from where it stopped in ``out``. Returns the running average of the weights."""
    seen, wanted = read_surroundings(crystals), torch.tensor([one.gap for one in crystals], dtype=torch.float32)
    network = GapNetwork(width, seed=seed)
    every = torch.cat([one.invariants for one in seen])
    network.mean.copy_(every.mean(0))
    network.scale.copy_(1 / every.std(0).clamp_min(1e-6))
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.1)
    parts, place, done = (network, average, optimiser, schedule), out / f"resume-{seed}-{width}-{steps}.pt", 0
    if place.exists():
        held = torch.load(place, weights_only=True)
        done = held.pop("step")
        for part, state in zip(parts, held["parts"], strict=True):
            part.load_state_dict(state)
    for step in range(done, steps):
        rows = torch.randint(len(seen), (batch,), generator=torch.Generator().manual_seed(seed + step)).tolist()
        loss = loss_of(network(together([seen[k] for k in rows]), batch), wanted[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        if (step + 1) % 100 == 0:
            held = {"step": step + 1, "parts": [part.state_dict() for part in parts]}
            write_atomically(place, _bytes(lambda stream, x: torch.save(x, stream), held))
            log.info("step %d loss %.4f", step + 1, float(loss.detach()))
    return average.module.eval().requires_grad_(False)


def _bytes(save: Callable, value) -> bytes:
    """What ``save(stream, value)`` writes."""
    stream = io.BytesIO()
    save(stream, value)
    return stream.getvalue()


def errors(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Mean absolute errors in eV of the gap as quoted and of the signed one, and how many metals get a gap, how many gaps are missed."""
    found, wanted = found.detach(), wanted.detach()
    metal, gapped = wanted <= _METAL, wanted > _GAPPED
    return {
        "n": len(wanted),
        "mae": round(float((found.clamp(min=0) - wanted.clamp(min=0)).abs().mean()), 3),
        "mae_gapped": round(float((found.clamp(min=0) - wanted)[gapped].abs().mean()), 3),
        "mae_signed": round(float((found - wanted).abs().mean()), 3),
        "metals": int(metal.sum()),
        "false_gaps": int((metal & (found > _GAPPED)).sum()),
        "gapped": int(gapped.sum()),
        "missed_gaps": int((gapped & (found <= _METAL)).sum()),
    }


def card(network: GapNetwork, val: Sequence[Labelled], off: Sequence[Labelled], made: dict) -> dict:
    """How the network was made and how far it is off, for the file that ships."""

    def found(crystals: Sequence[Labelled]) -> Tensor:
        return network(together(read_surroundings(crystals)), len(crystals))

    pbe = [one for one in val if math.isfinite(one.pbe)]
    return {
        "system": "carbon crystals at 10 GPa, 6 to 24 atoms",
        "unit": "eV, signed: lowest empty less highest filled level, on the scale of PBE",
        "labels": {"tight binding": LABELLER, "calibration": list(PBE)},
        **made,
        "held_out_minima": errors(found(val), torch.tensor([one.gap for one in val])),
        "held_out_moved": errors(found(off), torch.tensor([one.gap for one in off])),
        "held_out_pbe": errors(found(pbe), torch.tensor([one.pbe for one in pbe], dtype=torch.float32)) if pbe else None,
        "definitions": f"metal: <= {_METAL} eV; gapped: > {_GAPPED}; false gap: metal given > {_GAPPED}; missed: gapped given <= {_METAL}",
        "data": "Carbon-24 without duplicates (doi:10.24435/materialscloud:2020.0026/v1, arXiv:2110.06197, arXiv:2509.12178), CC-BY-4.0",
        "licence": "MIT",
        "recipe": "dig_plugins/pymatgen/recipes/gap.py",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled Carbon-24 files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--copies", type=int, default=3, help="copies off the minimum of each training structure")
    parser.add_argument("--largest", type=int, default=16, help="atoms of the largest structure that is copied")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--width", type=int, default=64, help="features of an atom in the network")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    minima, val = (read_labelled(given.data / f"carbon24_unique_{name}.extxyz.gz") for name in ("train", "val"))
    small = [one for one in minima if len(one.positions) <= given.largest]
    off = label([one for one in val if len(one.positions) <= given.largest][::7], given.out / "labels-val", 0)
    copies = [one for k in range(given.copies) for one in label(small, given.out / "labels", k)]
    network = train(minima + copies, given.out, given.steps, given.width, seed=given.seed)
    counts = {"minima": len(minima), "moved": len(copies), "steps": given.steps}
    span = [round(end(one.gap for one in minima), 2) for end in (min, max)]
    report = card(network, val, off, {"trained_on": counts, "range": span})
    LearnedGap(network, report).save(given.out / "carbon-gap.safetensors")
    write_atomically(given.out / "card.json", json.dumps(report, indent=1).encode())
    log.info("%s", json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
