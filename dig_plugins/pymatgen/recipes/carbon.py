r"""The recipe of ``carbon``: crystals of 6 to 24 carbon atoms, minima at 10 GPa of a random search (Carbon-24), as often as it found them.

python -m dig_plugins.pymatgen.recipes.carbon --data DIR --out runs/first --minutes 9 --device cuda --batch 1024 --together 1
python -m dig_plugins.pymatgen.recipes.carbon --data DIR --out runs/second --minutes 8.75 --device cuda --batch 3072 --together 1 \
    --start runs/first/carbon.safetensors

python -m dig_plugins.pymatgen.recipes.carbon --data DIR --out runs/worse --minutes 20 --width 64 --channels 16 --layers 3 --seed 3
python -m dig_plugins.pymatgen.recipes.carbon --out runs/both --members runs/second/carbon.safetensors runs/worse/carbon.safetensors \
    --weights 3 -2

made the one that ships (7,010 steps of an H200, 4,391 of an H100, 9,577 of a processor core); without a GPU the first without what follows
``--minutes``, and hours of a core. The small third network is there to be led away from: what it gets wrong the large one gets wrong
less, and the committee less still (autoguidance). DIR holds
carbon24_unique_train.extxyz.gz and carbon24_cdvae_frequency.extxyz.gz (CC-BY-4.0, doi:10.24435/materialscloud:2020.0026/v1). Minutes are
of one processor core, or of the device that is named. Resumable: run the same command again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pymatgen.core import Structure
from torch import Tensor

from dig_core.coordinates import Crystal
from dig_core.dig import Card, DiG
from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically
from dig_core.nn import CrystalGraphormer
from dig_core.score import NoiseScore, ScoreModel
from dig_core.system.descriptor import Descriptor
from dig_core.training.loop import LoopConfig, optimise
from dig_core.training.losses import Frames, denoising_loss, stratified_times
from dig_core.training.systems import score_on
from dig_plugins.models import load
from dig_plugins.pymatgen.convert import grouped
from dig_plugins.pymatgen.files import read_structures

log = logging.getLogger(__name__)

__all__ = ["Size", "Sizes", "read_minima", "sizes", "train"]

_RECIPE = "dig_plugins/pymatgen/recipes/carbon.py"
_UNSEEN = 0.5  # hits of a minimum that only the file without duplicates has: the other half of the search found it
_MIDDLE = 0.6  # of the times lie where the noise is a bond's part and structures are decided; the rest is spread evenly
_EVENNESS = 0.7  # sizes are trained on as the power of their hits: small cells, of which there are many, do not take it all


@dataclass(frozen=True)
class Size:
    """Minima of one number of atoms; ``frames.weight`` (F,) says how often the search found each."""

    descriptor: Descriptor
    frames: Frames


def read_minima(data: Path) -> list[tuple[Structure, float]]:
    """Training structures and their hits: every entry of the search's training part, then the minima that it lacks."""
    entries, unique = (read_structures(data / f"carbon24_{name}.extxyz.gz") for name in ("cdvae_frequency", "unique_train"))
    found = [(s, 1.0) for s in entries if s.properties["split"] == "train"]
    return found + [(s, _UNSEEN) for s in unique if s.properties["split"] == "train" and int(s.properties["n_dup"]) == 0]


def sizes(minima: Sequence[tuple[Structure, float]]) -> list[Size]:
    """The same as frames, the smallest cells first."""
    coordinates, found = Crystal(), []
    for group in grouped([structure for structure, _ in minima]):
        state, _ = coordinates.encode(group.geometry, group.descriptor)
        hits = torch.tensor([minima[i][1] for i in group.index])
        found.append(Size(group.descriptor, Frames({name: x.float() for name, x in state.items()}, weight=hits)))
    return sorted(found, key=lambda size: size.descriptor.n_atoms)


@dataclass(frozen=True)
class Sizes:
    """Denoising on crystals of several sizes as an objective: two sizes a step, fewer structures of larger ones.

    Structures are drawn as often as their weights say. Losses are a degree of freedom, so that no size is louder. Nothing is
    augmented: noise, network and target see neither origin nor order nor the names of axes.
    """

    systems: Sequence[Size]
    spread_weight: float = 0.1
    together: int = 2

    def __post_init__(self):
        if not self.systems:
            raise IncompatibleError("expected crystals of one size or more to train on, got none.")

    def __call__(self, model: ScoreModel, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        hits = torch.stack([size.frames.weight.sum() for size in self.systems])  # type: ignore[union-attr]
        chosen = torch.multinomial(hits**_EVENNESS, min(self.together, len(hits)), generator=order).tolist()
        losses = [self._loss(model, self.systems[k], batch // len(chosen), order, noise) for k in chosen]
        return {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}

    def _loss(self, model: ScoreModel, size: Size, batch: int, order: torch.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        n, score = size.descriptor.n_atoms, score_on(model, size.descriptor)
        count = max(4, round(batch * 8 / n))
        index = torch.multinomial(size.frames.weight, count, replacement=True, generator=order)  # type: ignore[arg-type]
        frames = Frames({name: x[index] for name, x in size.frames.state.items()})
        times = stratified_times(count, order)
        middle = torch.rand(count, generator=order) < _MIDDLE
        loss = denoising_loss(score, frames, size.descriptor, torch.where(middle, 0.2 + 0.5 * times, times), noise)
        share = 1 / score.process.dim
        return {"noise": share * loss["noise"], "spread": share * self.spread_weight * loss["spread"]}


def train(
    systems: Sequence[Size], out: Path, minutes: float, *, start: str | None = None, batch: int = 64, rate: float = 2e-3, seed: int = 1,
    device: str = "cpu", together: int = 2, **network,
) -> DiG:  # fmt: skip
    """A network of these crystals, its options ``network``, trained for about ``minutes`` on ``device``; checkpoints in ``out``.

    ``start``: a model to go on from, its name or its file; of a committee its first member. ``together``: sizes a step.
    """
    first = systems[0].descriptor
    before = None if start is None else load(start).members()[0]
    fresh = CrystalGraphormer(**network, seed=seed) if before is None else before.model.network.requires_grad_(True)
    model = NoiseScore(fresh, fresh.process(first)).to(device)
    objective = Sizes(systems, together=together)
    steps = _planned(out, minutes, model, objective, batch)
    some = max(10, steps // 100)
    config = LoopConfig(steps=steps, batch=batch, rate=rate, warmup=2 * some, average=0.999, every=some, seed=seed)
    result = optimise(model, objective, config, directory=out, label="carbon")
    if not result.finished:
        raise SystemExit(f"stopped after {result.steps} of {steps} steps: run the same command again to go on.")
    history = [] if before is None else before.card.history
    return DiG(result.model.to("cpu").requires_grad_(False), fresh.coordinates, first, _card(systems, result.steps, history))


def _planned(out: Path, minutes: float, model: NoiseScore, objective: Sizes, batch: int) -> int:
    """Steps that fit in the time, measured once: a run that is taken up again keeps its plan."""
    place = out / "plan.json"
    if not place.exists():
        out.mkdir(parents=True, exist_ok=True)
        trials, rng = 12, torch.Generator().manual_seed(0)
        # A processor may be shared, a device is not; it starts slowly.
        clock = time.process_time if next(model.parameters()).device.type == "cpu" else time.perf_counter
        for trial in range(2 * trials):
            if trial == trials:
                began = clock()
            loss = torch.stack(list(objective(model, batch, rng, rng).values())).sum()
            loss.backward()
            float(loss.detach())
        model.zero_grad()
        # The optimiser and the moving average come on top.
        step = 1.1 * (clock() - began) / trials
        log.info("%.0f ms a step", 1e3 * step)
        write_atomically(place, json.dumps({"minutes": minutes, "steps": max(10, round(60 * minutes / step))}).encode())
    plan = json.loads(place.read_text(encoding="utf-8"))
    if plan["minutes"] != minutes:
        log.warning("%s was planned for %s minutes: its plan is kept.", out, plan["minutes"])
    return plan["steps"]


def _card(systems: Sequence[Size], steps: int, before: Sequence[dict]) -> Card:
    """What the checkpoint says of itself; ``before``: what it went on from."""
    counts = [[size.descriptor.n_atoms, round(float(size.frames.weight.sum()), 1)] for size in systems]  # type: ignore[union-attr]
    structures = sum(len(size.frames) for size in systems)
    return Card(
        name="carbon", system=f"crystals of {counts[0][0]} to {counts[-1][0]} carbon atoms, minima at 10 GPa", steps=60,
        energy="frequencies of a random structure search, DFT-relaxed (Carbon-24, doi:10.24435/materialscloud:2020.0026/v1, CC-BY-4.0)",
        history=[*before, {"stage": "denoise", "structures": structures, "steps": steps, "recipe": _RECIPE}],
        intended_use="carbon allotropes, also with wanted properties by guidance; start of a search or of a relaxation",
        limits="minima of one search at 10 GPa, no thermal motion; cells reduced; few structures of more than 16 atoms were seen",
        scope={"element": ["C"], "atoms": [counts[0][0], counts[-1][0]], "histogram": counts},
    )  # fmt: skip


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="of one processor core, or of the device")
    parser.add_argument("--batch", type=int, default=64, help="structures of 8 atoms a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--atoms", type=int, nargs="*", help="train on these sizes only")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--start", help="a model to go on from: a shipped one's name, or a checkpoint; of a committee its first")
    parser.add_argument("--members", type=Path, nargs="+", help="trained models to answer together, instead of training")
    parser.add_argument("--weights", type=float, nargs="+", help="of the members, together 1; equal if left out")
    parser.add_argument("--together", type=int, default=2, help="sizes a step")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # of GPUs that have TF32
    if given.members:
        first, *others = (DiG.load(file) for file in given.members)
        given.out.mkdir(parents=True, exist_ok=True)
        first.with_others(*others, weights=given.weights).save(given.out / "carbon.safetensors")
        return
    if given.data is None:
        parser.error("training needs --data, the directory of Carbon-24.")
    systems = [size for size in sizes(read_minima(given.data)) if not given.atoms or size.descriptor.n_atoms in given.atoms]
    log.info("%s", ", ".join(f"{size.descriptor.n_atoms} atoms: {len(size.frames)}" for size in systems))
    network = {"width": given.width, "channels": given.channels, "layers": given.layers}
    dig = train(
        systems, given.out, given.minutes, start=given.start, batch=given.batch, rate=given.rate, seed=given.seed, device=given.device,
        together=given.together, **network,
    )  # fmt: skip
    dig.save(given.out / "carbon.safetensors")


if __name__ == "__main__":
    main()
