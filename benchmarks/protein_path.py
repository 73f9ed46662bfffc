"""The path from one state of adenylate kinase to the other through latent space: round trip, clashes, intermediate frames. Ten minutes.

Needs ../shared/data/protein (DIG_PROTEIN names another place). The path is kept in runs/protein-bench.
"""

from __future__ import annotations

import json

from common import Figure, Findings, Options, Table, command_line
from proteins import DATA, KEPT, alpha, share

import numpy as np  # isort: skip
import torch

from dig_core.types import Geometry
from dig_plugins import models
from dig_plugins.mdtraj import interpolate_backbones
from dig_plugins.mdtraj.observables import pairwise_rmsd, superpose
from dig_plugins.mdtraj.recipes.backbones import MODELS


def path(options: Options) -> tuple[list[Figure], list[Table]]:
    """From the closed to the open state through latent space."""
    frames = MODELS["adenylate-kinase"].read(DATA)
    every = frames.geometry.positions
    found = crossed(every, options)
    between, ends = alpha(Geometry(every[1:-1]), frames.descriptor), alpha(Geometry(every[[0, -1]]), frames.descriptor)
    share_of_end = np.linspace(0, 1, 11)[:, None, None]
    line = (1 - share_of_end) * ends[0] + share_of_end * superpose(ends[1:], ends[0])
    farthest, straight = max(found["passed"]["distance"]), pairwise_rmsd(between, line).min(1).max()
    figures = [
        Figure("interpolation, round trip of both ends", max(found["round_trip"]), "Angstrom", floor=0.1, aim=0.01, higher=False),
        Figure("interpolation, structures of the path without clash", share(np.array(found["clashes"]) == 0), floor=0.9, aim=1.0,
               note=f"without break {share(np.array(found['breaks']) == 0):.2f}"),
        Figure("interpolation, farthest intermediate frame from the path", farthest, "Angstrom", floor=2.5, aim=1.5, higher=False,
               compared=f"straight line between the ends {straight:.2f}"),
    ]  # fmt: skip
    rows = [[k, *row] for k, row in enumerate(zip(found["rmsd_to_start"], found["rmsd_to_end"], strict=True))]
    return figures, [Table("The path, C-alpha RMSD in Angstrom", ["structure", "to the closed state", "to the open state"], rows)]


def crossed(every: torch.Tensor, options: Options) -> dict:
    """The report of a path from the first of the frames to the last, made once."""
    place = KEPT / "path.xtc"
    if options.quick or not place.with_suffix(".json").exists():
        dig, (n, steps) = models.load("adenylate-kinase"), (options.size(11, 3), options.size(12, 2))
        found = interpolate_backbones(dig, Geometry(every[:1]), Geometry(every[-1:]), n, steps=steps, passing=Geometry(every[1:-1]))
        if options.quick:
            return found.report()
        found.write(place)
    return json.loads(place.with_suffix(".json").read_text())


if __name__ == "__main__":
    command_line(__doc__, "protein_path", lambda options: Findings(*path(options)), model="adenylate-kinase")
