"""The band gap of a carbon crystal by non-self-consistent tight binding, differentiable in positions and cell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

from .kpoints import around, counts, grid
from .neighbours import pairs, sound
from .slater_koster import SlaterKoster, carbon_table

__all__ = ["PBE", "Calibration", "TightBindingGap", "check_carbon"]

_ORBITALS = 4
_NUMBERS = 10_000_000  # of one batch of matrices: bounds the memory, not the number of structures
_NEGLIGIBLE = 1e-10  # weight below which a point of the zone plays no part in a soft band edge


class Calibration(NamedTuple):
    """``shift`` eV, and what a band overlap and a gap are multiplied by, to turn a computed gap into another method's."""

    shift: float
    overlap: float
    gap: float

    def __call__(self, value: Tensor) -> Tensor:
        return self.shift + self.overlap * value.clamp(max=0.0) + self.gap * value.clamp(min=0.0)


PBE = Calibration(-0.24, 1.31, 0.63)
"""From the tight-binding gap to PBE's, by least squares over plane-wave calculations of random carbon crystals."""


class TightBindingGap(nn.Module):
    """Signed band gap in eV: lowest empty less highest filled level over the Brillouin zone, negative where bands overlap.

    The Hamiltonian and overlap of the neutral free atoms (Porezag et al., doi:10.1103/PhysRevB.51.12947) between s and p
    orbitals, every image within the table's reach; carbon only. A structure is a metal where the value is below zero: for
    the gap as it is usually quoted take ``.clamp(min=0)``. The overlap of a metal's bands belongs to its cell, and shrinks when a
    supercell folds them; gaps are the same in every cell.

    Parameters
    ----------
    spacing: largest distance between points of the zone, 1/Angstrom, 2 pi included; ``grid`` sets the divisions themselves.
    temperature: eV. Band edges are averages over levels and points, of weight exp(-|distance from the edge|/temperature), so that
        gradients are those of all states at the edge; 0 for the edges themselves, whose gradient degenerate bands harm.
    zoom: how many times the step is halved around the band edges that the grid shows; semimetals need some.
    calibration: what is made of the computed gap. ``Calibration(0, 1, 1)`` leaves it.
    """

    def __init__(
        self,
        spacing: float = 0.5,
        temperature: float = 0.1,
        zoom: int = 0,
        grid: tuple[int, int, int] | None = None,
        calibration: Calibration = PBE,
    ):
        super().__init__()
        if spacing <= 0 or temperature < 0 or zoom < 0 or (grid is not None and (len(grid) != 3 or min(grid) < 1)):
            raise IncompatibleError(
                "expected spacing > 0, temperature >= 0, zoom >= 0 and a grid of three divisions or none, "
                f"got {spacing}, {temperature}, {zoom}, {grid}."
            )
        self.spacing, self.temperature, self.zoom, self.grid = spacing, temperature, zoom, grid
        self.calibration = Calibration(*calibration)
        self.table = SlaterKoster(carbon_table())

    def exact(self) -> TightBindingGap:
        """The same gap to be judged by: hard band edges, searched for between the points of the grid."""
        return TightBindingGap(self.spacing, 0.0, max(self.zoom, 5), self.grid, self.calibration).to(self.table.onsite.device)

    def forward(self, geometry: Geometry, numbers: Tensor | None = None) -> Tensor:
        """(B,) eV, float64, of crystals (B, N, 3), (B, 3, 3) Angstrom. Differentiable once.

        NaN for structures that have no gap: numbers that are not finite, a cell without volume, atoms so close that the
        table ends or their orbitals are linearly dependent. Raises UnsupportedError if ``numbers`` holds anything but carbon.
        """
        check_carbon(geometry, numbers)
        positions, cell = geometry.positions.double(), geometry.cell.double()
        gaps = positions.new_full((len(positions),), torch.nan)
        which = sound(positions, cell, self.table.reach).nonzero()[:, 0]
        # Atoms x images x orbitals of both matrices, as many as a structure has at carbon's density.
        share = max(1, _NUMBERS // (2_000 * positions.shape[1]))
        for rows in which.split(share):
            values, known = self._gaps(positions[rows], cell[rows])
            gaps = gaps.index_copy(0, rows[known], self.calibration(values))
        return gaps

    def _gaps(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) computed gaps and (B,) which of the structures have one."""
        sums, known = self._sums(positions, cell)
        with torch.no_grad():
            points = [grid(self.grid or counts(c, self.spacing)) for c in cell.cpu()]
            fractions = [p[0].to(cell) for p in points]
            weights = [p[1].to(cell) for p in points]
            levels = self._levels(sums, fractions)
            if self.zoom:
                fractions, weights, levels = self._search(sums, cell, fractions, weights, levels)
        known = known & torch.stack([e.isfinite().all() for e in levels])
        kept = known.nonzero()[:, 0].tolist()
        sums, fractions, weights, levels = ([part[k] for k in kept] for part in (sums, fractions, weights, levels))
        if torch.is_grad_enabled() and positions.requires_grad | cell.requires_grad and kept:
            # Only the points at the band edges take part in the gradient, and need eigenvectors.
            seen = [self._matter(e, w) for e, w in zip(levels, weights, strict=True)]
            weights = [w[s] for w, s in zip(weights, seen, strict=True)]
            levels = self._levels(sums, [f[s] for f, s in zip(fractions, seen, strict=True)])
        values = [self._gap(e, w) for e, w in zip(levels, weights, strict=True)]
        return torch.stack(values) if values else positions.new_zeros(0), known

    def _sums(self, positions: Tensor, cell: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """For each structure the images (M, 3) and H, S (M, 2 (4N)^2) of half of the pairs in each; and whether the table covers it."""
        n = positions.shape[1]
        found = pairs(positions, cell, self.table.reach, half=True)
        vectors = found.vectors(positions, cell)
        close = vectors.detach().norm(dim=-1) < self.table.start
        known = torch.ones(len(positions), dtype=torch.bool, device=cell.device)
        known[found.structure[close]] = False
        # Pairs that are too close make their structure unknown; they must not make numbers that are none.
        vectors = torch.where(close[:, None], torch.full_like(vectors, self.table.reach), vectors)
        blocks = self.table.blocks(vectors)
        sums = []
        sizes = torch.bincount(found.structure, minlength=len(positions)).tolist()
        for image, i, j, block in zip(*(part.split(sizes) for part in (found.image, found.first, found.second, blocks)), strict=True):
            images, m = image.unique(dim=0, return_inverse=True)
            total = block.new_zeros(len(images) * n * n, 2 * _ORBITALS**2)
            total = total.index_copy(0, (m * n + i) * n + j, block.flatten(1))
            sums.append((images, total.view(len(images), -1)))
        return sums, known

    def _levels(self, sums: list[tuple[Tensor, Tensor]], points: list[Tensor]) -> list[Tensor]:
        """Energies (K, 4N) eV, ascending, at ``points`` (K, 3) of each structure; NaN where the overlap is not positive."""
        n = round((sums[0][1].shape[1] // (2 * _ORBITALS**2)) ** 0.5) if sums else 0
        size = n * _ORBITALS
        levels: list[Tensor] = []
        for (images, total), fractions in zip(sums, points, strict=True):
            found = []
            for some in fractions.split(max(1, _NUMBERS // (2 * max(1, size) ** 2))):
                angle = 2 * torch.pi * (some @ images.to(some).T)
                both = torch.complex(angle.cos() @ total, angle.sin() @ total)
                both = both.view(-1, n, n, 2, _ORBITALS, _ORBITALS).permute(3, 0, 1, 4, 2, 5).reshape(2, -1, size, size)
                h, s = both + both.mH
                h = h + torch.diag(self.table.onsite.repeat(n))
                s = s + torch.eye(size).to(s)
                found.append(_Levels.apply(h, s))
            levels.append(torch.cat(found))
        return levels

    def _search(self, sums, cell, fractions, weights, levels):
        """The same points with those of a search around the band edges added, which halves its step ``zoom`` times."""
        step = [torch.tensor(self.grid or counts(c, self.spacing)).double().reciprocal() for c in cell.cpu()]
        for _ in range(self.zoom):
            step = [s / 2 for s in step]
            new = []
            for f, e, s in zip(fractions, levels, step, strict=True):
                filled = e.shape[1] // 2
                top, bottom = e[:, filled - 1].nan_to_num(-torch.inf).argmax(), e[:, filled].nan_to_num(torch.inf).argmin()
                places = [around(f[int(k)], s.to(f)) for k in {int(top), int(bottom)}]
                new.append(torch.cat(places))
            fresh = self._levels(sums, new)
            fractions = [torch.cat(both) for both in zip(fractions, new, strict=True)]
            levels = [torch.cat(both) for both in zip(levels, fresh, strict=True)]
            weights = [torch.cat([w, torch.ones(len(f)).to(w)]) for w, f in zip(weights, new, strict=True)]
        return fractions, weights, levels

    def _shares(self, levels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What each level (K, 2N) counts in the highest filled and in the lowest empty one; both add up to one."""
        filled, empty = levels.chunk(2, dim=1)
        if not self.temperature:
            return (filled == filled.max()).to(filled), (empty == empty.min()).to(filled)
        size = weights.log()[:, None]
        return tuple(
            torch.softmax((size + sign * e / self.temperature).flatten(), 0).view_as(e) for sign, e in ((1, filled), (-1, empty))
        )

    def _matter(self, levels: Tensor, weights: Tensor) -> Tensor:
        filled, empty = self._shares(levels, weights)
        return (filled.sum(1) > _NEGLIGIBLE) | (empty.sum(1) > _NEGLIGIBLE)

    def _gap(self, levels: Tensor, weights: Tensor) -> Tensor:
        filled, empty = levels.chunk(2, dim=1)
        if not self.temperature:
            return empty.min() - filled.max()
        below, above = self._shares(levels, weights)
        return (above * empty).sum() - (below * filled).sum()


def check_carbon(geometry: Geometry, numbers: Tensor | None) -> None:
    """Raises IncompatibleError for a geometry without cells of its own, UnsupportedError if ``numbers`` holds anything but carbon."""
    positions, cell = geometry.positions, geometry.cell
    if cell is None or positions.dim() != 3 or cell.shape != (len(positions), 3, 3):
        raise IncompatibleError(
            f"a gap needs crystals (B, N, 3) and cells (B, 3, 3), got {tuple(positions.shape)} and {None if cell is None else tuple(cell.shape)}."
        )
    others = [] if numbers is None else sorted({int(z) for z in torch.as_tensor(numbers).flatten()} - {6})
    if others:
        raise UnsupportedError(
            f"this gap knows carbon alone (atomic number 6), got atomic numbers {others}: guide with a predictor that covers them."
        )


class _Levels(torch.autograd.Function):
    """Eigenvalues of H c = e S c; their derivative is c* (dH - e dS) c (Hellmann and Feynman)."""

    @staticmethod
    def forward(ctx, h: Tensor, s: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(s)
        sick = (failed != 0) | ~factor.abs().sum((1, 2)).isfinite() | ~h.abs().sum((1, 2)).isfinite()
        identity = torch.eye(h.shape[1]).to(h)
        factor = torch.where(sick[:, None, None], identity, factor)
        h = torch.where(sick[:, None, None], identity, h)
        half = torch.linalg.solve_triangular(factor, h, upper=False)
        plain = torch.linalg.solve_triangular(factor, half.mH, upper=False)
        if any(ctx.needs_input_grad):
            values, vectors = torch.linalg.eigh(plain)
            ctx.save_for_backward(values, torch.linalg.solve_triangular(factor.mH, vectors, upper=True))
        else:
            values = torch.linalg.eigvalsh(plain)
        return values.masked_fill(sick[:, None], torch.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = ctx.saved_tensors
        (slope,) = upstream
        # Few levels are at the edges.
        used = (slope != 0).any(0)
        values, vectors, slope = values[:, used], vectors[:, :, used], slope[:, used]
        return (vectors * slope[:, None]) @ vectors.mH, -(vectors * (slope * values)[:, None]) @ vectors.mH
