"""What can be known of a metal left out of the DFT table: Boltzmann maps from site energies regressed on properties of the other six.

No network: the bound that simple laws set for one, and how near the shipped model comes on the metals it was trained on. Three minutes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from ase.build import fcc111
from ase.data import atomic_numbers
from common import Figure, Findings, Options, Table, command_line

from dig_core.system.elements import d_band, properties
from dig_plugins.ase.adsorption import SiteSurface, sample_adsorption
from dig_plugins.ase.adsorption.surface import SITES
from dig_plugins.ase.convert import kT
from dig_plugins.ase.recipes.table import GUESTS, METALS

TEMPERATURE = 300.0
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Strengths to choose from, in units of one metal's standardised properties."""


def features() -> dict[str, np.ndarray]:
    """Law -> (7, F) what it reads of each metal."""
    numbers = torch.tensor([atomic_numbers[m] for m in METALS])
    five, band = properties(numbers).numpy(), d_band(numbers).numpy()
    spacing = np.array([[np.linalg.norm(SiteSurface.from_table(m, "H").vectors[0])] for m in METALS])
    return {
        "nothing: the mean of the energies": np.zeros((len(METALS), 0)),
        "the five properties that the network reads": five,
        "the same and the lattice constant": np.hstack([five, spacing]),
        "group": band[:, :1],
        "group and period": five[:, :2],
        "d-band centre and coupling": band[:, 1:],
        "group, d-band centre and coupling (the d-band model)": band,
    }


class Maps:
    """Boltzmann maps of site energies on the grid of the adsorption benchmark."""

    def __init__(self) -> None:
        self.energies = np.array([[[self._surface(m, g).energies[s] for s in SITES] for g in GUESTS] for m in METALS])
        self.energies -= self.energies[..., :1]
        axis = (np.arange(96) + 0.5) / 96
        fine = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
        first = self._surface("Pt", "H")
        # The energy is linear in those of the sites.
        units = [dataclasses.replace(first, energies={s: float(s == site) for s in SITES}) for site in SITES]
        self.waves = np.stack([surface.profile(fine)[0] for surface in units], -1)
        self.true = self.of(self.energies)

    @staticmethod
    def _surface(metal: str, guest: str) -> SiteSurface:
        return SiteSurface.from_table(metal, guest)

    def of(self, energies: np.ndarray) -> np.ndarray:
        """(..., 4) eV -> (..., 24, 24) probabilities."""
        value = np.einsum("xys,...s->...xy", self.waves, energies)
        weight = np.exp(-(value - value.min((-1, -2), keepdims=True)) / kT(TEMPERATURE))
        cells = weight.reshape(*weight.shape[:-2], 24, 4, 24, 4).mean((-3, -1))
        return cells / cells.sum((-1, -2), keepdims=True)

    def away(self, predicted: np.ndarray, metal: int) -> np.ndarray:
        """(4,) total variation of maps (4, 24, 24) to those of ``metal``, one an adsorbate."""
        return 0.5 * np.abs(predicted - self.true[metal]).sum((-1, -2))


def regressed(x: np.ndarray, y: np.ndarray, known: list[int], wanted: int, ridge: float) -> np.ndarray:
    """What a ridge regression of ``y`` on standardised ``x`` over the rows ``known`` says of the row ``wanted``; shrinks to their mean."""
    mean = y[known].mean(0)
    if not x.shape[1]:
        return mean
    z = (x - x[known].mean(0)) / (x[known].std(0) + 1e-9)
    rest = (y[known] - mean).reshape(len(known), -1)
    weight = np.linalg.solve(z[known].T @ z[known] + ridge * np.eye(x.shape[1]), z[known].T @ rest)
    return mean + (z[wanted] @ weight).reshape(mean.shape)


def left_out(maps: Maps, x: np.ndarray) -> np.ndarray:
    """(7, 4) total variations, each metal predicted from the other six; the ridge is chosen by leaving out one of the six in turn."""

    def error(known: list[int], wanted: int, ridge: float) -> np.ndarray:
        return maps.away(maps.of(regressed(x, maps.energies, known, wanted, ridge)), wanted)

    found = []
    for metal in range(len(METALS)):
        others = [m for m in range(len(METALS)) if m != metal]
        inner = [np.mean([error([m for m in others if m != out], out, ridge) for out in others]) for ridge in RIDGES]
        found.append(error(others, metal, RIDGES[int(np.argmin(inner))]))
    return np.array(found)


def laws() -> tuple[list[Figure], list[Table]]:
    """Every law, each metal left out in turn."""
    maps, rows, found = Maps(), [], {}
    every = range(len(METALS))
    found["nothing: the mean of the maps"] = np.array([maps.away(maps.true[[m for m in every if m != k]].mean(0), k) for k in every])
    found |= {name: left_out(maps, x) for name, x in features().items()}
    for name, tv in found.items():
        rows.append([name, *(round(float(v), 3) for v in (tv.mean(), *tv.mean(0), tv.mean(1).max()))])
    best = list(found.values())[-1]
    figure = Figure(
        "total variation to the Boltzmann map, metal left out, site energies by the d-band model", float(best.mean()), higher=False,
        compared=f"mean of the others' maps: {rows[0][1]:.2f}",
        note="28 systems, no network: what a model that reads the same can hope for.",
    )  # fmt: skip
    header = ["what is read of a metal", "TV", *GUESTS, "worst metal"]
    detail = [[m, *(round(float(v), 3) for v in best[k])] for k, m in enumerate(METALS)]
    return [figure], [
        Table("Metal left out, ridge regression of site energies, 300 K", header, rows),
        Table("The d-band model, each metal left out", ["metal", *GUESTS], detail),
    ]


def trained(options: Options) -> tuple[list[Figure], list[Table]]:
    """The shipped model on the metals it was trained on: what is the network's own error."""
    n, rows = options.size(1000, 50), []
    for metal in METALS[: options.size(len(METALS), 1)]:
        row = []
        for guest in GUESTS:
            surface = SiteSurface.from_table(metal, guest)
            slab = fcc111(metal, (2, 2, 4), a=float(np.linalg.norm(surface.vectors[0])) * math.sqrt(2), vacuum=8)
            ours = sample_adsorption(slab, guest, "adsorb-fcc111", n=n, seed=options.seed).density(symmetrize=True)
            row.append(ours.total_variation(surface.on(slab).map((24, 24), TEMPERATURE, lattice=ours.lattice)))
        rows.append([metal, *(round(v, 3) for v in row)])
    values = np.array([row[1:] for row in rows], dtype=float)
    figure = Figure(
        "total variation to the Boltzmann map, metals trained on, raw, adsorb-fcc111", float(values.mean()), higher=False,
        note=f"{values.size} systems, {n} samples each, symmetry used; worst {values.max():.2f}. The network's own error.",
    )  # fmt: skip
    return [figure], [Table("adsorb-fcc111 on the metals it was trained on, 300 K", ["metal", *GUESTS], rows)]


def measure(options: Options) -> Findings:
    """The laws, then the model."""
    figures, tables = laws()
    more, rows = trained(options)
    return Findings([*figures, *more], [*tables, *rows])


if __name__ == "__main__":
    command_line(__doc__, "adsorption_laws", measure, model="adsorb-fcc111")
