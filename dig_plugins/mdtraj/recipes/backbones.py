"""The shipped models of backbones: one protein's states, one protein's ensemble, and any protein from one structure of it.

python -m dig_plugins.mdtraj.recipes.backbones adenylate-kinase --data ../shared/data/protein --out runs/adenylate-kinase

The shipped ones had more than one run, the later ones with ``--start``: their cards say how many steps of what. On a GPU add
``--device cuda --batch 128``. ``--known 256`` answers by known structures where noise hides single residues; with ``--start`` and
``--steps 0 --apart 0`` that is all that is learned.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dig_core.coordinates import Backbone
from dig_core.dig import Card
from dig_core.errors import IncompatibleError
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import crop, residues
from dig_core.training.losses import Frames
from dig_core.types import Geometry

from ..backbones import Backbones, match, read_backbones
from ..training import fit_backbones

__all__ = ["HELD_OUT", "MODELS", "Model", "pairs", "withheld"]

log = logging.getLogger(__name__)

HELD_OUT = ("P02911", "P0AEQ3")
"""Proteins of two states that the model of any protein never sees, by their UniProt names."""


class Model(NamedTuple):
    """A recipe: ``read`` finds the data in a directory; ``steps`` of ``batch`` structures, ``apart`` as of fit_backbones; its card."""

    read: Callable[[Path], Backbones | Sequence[tuple[Descriptor, Frames]]]
    steps: int
    batch: int
    apart: int
    card: Card


def withheld(count: int, share: float = 0.3, seed: int = 1) -> list[int]:
    """The frames of a trajectory that are never trained on, drawn at random."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: round(share * count)].sort().values.tolist()


def pairs(directory: Path, without: Sequence[str] = HELD_OUT) -> list[tuple[Descriptor, Frames]]:
    """Proteins of two known states, each twice: one of the states is given as the reference, both are to be sampled."""
    found = []
    for folder in sorted(path for path in (directory / "two_state_backbone").iterdir() if path.is_dir() and path.name not in without):
        found += two_states([read_backbones(path) for path in sorted(folder.glob("*.pdb"))])
    if not found:
        raise IncompatibleError(f"there are no proteins in {directory / 'two_state_backbone'}: expected folders with two PDB files each.")
    return found


def two_states(states: list[Backbones]) -> list[tuple[Descriptor, Frames]]:
    """Frames of the residues that both states have, with each state as the reference once."""
    common = _common(states)
    geometry = Geometry(torch.cat([one.geometry.positions for one in common]))
    encoded, _ = Backbone().encode(geometry, common[0].descriptor)
    frames = Frames({name: x.float() for name, x in encoded.items()})
    return [(dataclasses.replace(common[0].descriptor, reference=one.geometry), frames) for one in common]


def _common(states: list[Backbones]) -> list[Backbones]:
    """The states, less residues that one of them lacks or has under another name."""
    tables = [residues(one.descriptor) for one in states]
    names = [list(zip(known.number.tolist(), known.kind.tolist(), strict=True)) for known in tables]
    both = set(names[0]).intersection(*names[1:])
    shared = crop(states[0].descriptor, torch.tensor([place for place, name in enumerate(names[0]) if name in both]))
    return [match(one, shared, leave=True) for one in states]


def _trajectory(*names: str) -> Callable[[Path], Backbones]:
    return lambda directory: read_backbones(*(directory / name for name in names))


MODELS = {
    "adenylate-kinase": Model(
        _trajectory("adk/adk_dims.dcd", "adk/adk.psf"), 5000, 4, 2000,
        Card(
            name="adenylate-kinase", system="E. coli adenylate kinase, backbone of 214 residues, closed to open",
            energy="frames of one biased transition (dynamic importance sampling, CHARMM; MDAnalysisTests, LGPL-2.1-or-later)",
            intended_use="structures of both states and of the way between them; paths by interpolation",
            steps=48, pace=[[0.36, 16], [0.75, 28], [1.0, 4]],  # chains break between the first two times
            limits="one transition is no population: how often a state is drawn says how many frames it had, no free energy",
        ),
    ),
    "ubiquitin": Model(
        _trajectory("ubiquitin_2k39/2k39_insty.pdb"), 1200, 8, 0,
        Card(
            name="ubiquitin", system="human ubiquitin, backbone of 76 residues",
            energy="15 models of the solution ensemble 2K39 (Lange et al., doi:10.1126/science.1157092)",
            intended_use="the fluctuations of a small folded protein",
            limits="learned from 11 structures, by heart: draws lie near them, fluctuations are three quarters of the reference's, "
            "four of ten draws have a broken neighbour",
        ),
    ),
    "fs-peptide": Model(
        _trajectory("fs_peptide/100-fs-peptide-400K.pdb"), 1200, 24, 0,
        Card(
            name="fs-peptide", system="Fs peptide, Ace-A5(AAARA)3A-NMe, backbone of 21 residues at 400 K",
            energy="100 frames of molecular dynamics at 400 K (McGibbon, msmb_data, CC-BY)",
            intended_use="helices that fold and unfold",
            limits="learned from 70 frames, by heart: draws lie near them, and four of five have a broken neighbour",
        ),
    ),
    "backbones": Model(
        pairs, 5000, 4, 0,
        Card(
            name="backbones", system="any protein backbone of which one structure is given",
            energy="both known states of six proteins (bioemu-benchmarks, CDLA-Permissive-2.0)",
            intended_use="other states of a protein from one structure of it: a first guess",
            limits="trained on six proteins of two states each, most of them periplasmic binding proteins; no sequence model, no energies; "
            "of other proteins draws stay near the given structure and are not whole",
        ),
    ),
}  # fmt: skip


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--data", type=Path, required=True, help="the directory with adk, fs_peptide, two_state_backbone, ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--apart", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", help="a model to go on from: a shipped one's name, or a checkpoint")
    parser.add_argument("--known", type=int, help="give a model of one protein that many of its frames to know")
    parser.add_argument("--company", type=int, default=0, help="of one protein, further frames that help each to its target")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1 if given.device == "cpu" else 4)  # noise is drawn on the processor, and a device waits for it
    recipe = MODELS[given.model]
    data = recipe.read(given.data)
    aside = withheld(len(data.geometry.positions)) if isinstance(data, Backbones) else ()
    network = {} if given.known is None else {"known": given.known}
    found = fit_backbones(
        data, given.start, held_out=aside, steps=recipe.steps if given.steps is None else given.steps,
        batch=given.batch or recipe.batch, rate=given.rate, apart=recipe.apart if given.apart is None else given.apart,
        company=given.company, device=given.device, out=given.out, seed=given.seed, **network,
    )  # fmt: skip
    if not found.finished:
        raise SystemExit("stopped: run the same command again to go on.")
    coarse = "; which state it will be is answered by known frames, as a kernel estimate of their law" if given.known else ""
    card = dataclasses.replace(
        recipe.card, limits=recipe.card.limits + coarse, scope=found.dig.card.scope,
        steps=recipe.card.steps if recipe.card.pace else found.dig.card.steps,
        history=[*found.history, {"recipe": f"python -m dig_plugins.mdtraj.recipes.backbones {given.model}", "seed": given.seed}],
    )  # fmt: skip
    dataclasses.replace(found.dig, card=card).save(given.out / f"{given.model}.safetensors")
    log.info("%s", found)


if __name__ == "__main__":
    main()
