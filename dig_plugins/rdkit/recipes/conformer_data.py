"""The data of the shipped model of conformers: frames of molecules that may be trained on, made with RDKit, in one file.

python -m dig_plugins.rdkit.recipes.conformer_data --data ../shared/data/conformer --out runs/conformers --workers 2

A call that was cut off goes on. :mod:`.conformers` trains on the file, without RDKit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rdkit import Chem
from safetensors import safe_open
from safetensors.torch import save as to_bytes

from dig_core.errors import DiGError
from dig_core.files import write_atomically
from dig_core.nn.conformer import given_molecule
from dig_core.training.frames import join_frames

from ..basins import basin_frames, encoded
from ..reference import graph_key, read_conformer_set, read_ligands, withheld

log = logging.getLogger(__name__)

FRAMES = 96
DFT_SHARE = 0.25
"""How much of a molecule's frames its DFT conformers are, where there are any."""
LARGEST = 64
TEMPERATURE = 300.0


def molecules(directory: Path) -> list[tuple[str, Chem.Mol, bool]]:
    """Name, molecule and whether its conformers are DFT's, of all that may be trained on; no two with one graph, in the order of a hash."""
    found = [(r.name, r.mol, True) for r in read_conformer_set(directory / "conformer_benchmark")]
    ligands = read_ligands(directory / "pdb_ligands" / "pubLigsNeutralGoodDensity.sdf")
    found += [(f"ligand-{number}", mol, False) for number, mol in enumerate(ligands)]
    kept: dict[str, tuple[str, Chem.Mol, bool]] = {}
    for one in found:
        if one[1].GetNumAtoms() <= LARGEST and not withheld(one[1]):
            kept.setdefault(graph_key(one[1]), one)
    return sorted(kept.values(), key=lambda one: hashlib.sha256(one[0].encode()).digest())


def prepare(mol: Chem.Mol, dft: bool, place: Path) -> None:
    """The frames of one molecule, in a file."""
    coordinates, descriptor, frames = basin_frames(mol, FRAMES, TEMPERATURE)
    weight = torch.full((len(frames),), 1.0 / len(frames))
    if dft:
        more = encoded(coordinates, descriptor, mol)
        if len(more):
            weight = torch.cat([(1 - DFT_SHARE) * weight, torch.full((len(more),), DFT_SHARE / len(more))])
            frames = join_frames([frames, more])
    tensors = {**frames.state, "weight": weight}
    about = json.dumps(given_molecule(coordinates, descriptor))
    write_atomically(place, to_bytes({k: x.contiguous().clone() for k, x in tensors.items()}, metadata={"molecule": about}))


def make_data(directory: Path, out: Path, workers: int = 1) -> None:
    """A file for every molecule that has none yet."""
    (out / "molecules").mkdir(parents=True, exist_ok=True)
    tasks = [(mol, dft, out / "molecules" / f"{name}.safetensors") for name, mol, dft in molecules(directory)]
    tasks = [task for task in tasks if not task[2].exists()]
    if workers == 1:
        list(map(_tried, tasks))
        return
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_tried, tasks))


def _tried(task: tuple[Chem.Mol, bool, Path]) -> None:
    torch.set_num_threads(1)
    try:
        prepare(*task)
        log.info("%s", task[2].stem)
    except DiGError as error:
        log.warning("%s is left out: %s", task[2].stem, error)


def pack(out: Path) -> None:
    """Every molecule's file as one, ``training.safetensors``, half precision."""
    tensors, about = {}, {}
    for number, place in enumerate(sorted((out / "molecules").glob("*.safetensors"))):
        with safe_open(place, "pt") as stream:
            about[str(number)] = stream.metadata()["molecule"]
            tensors |= {f"{number}.{key}": stream.get_tensor(key).half() for key in stream.keys()}
    write_atomically(out / "training.safetensors", to_bytes(tensors, metadata=about))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True, help="the directory with conformer_benchmark and pdb_ligands")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    make_data(given.data, given.out, given.workers)
    pack(given.out)


if __name__ == "__main__":
    main()
