"""The band gap of a carbon crystal by non-self-consistent tight binding, differentiable in positions and cell."""

from __future__ import annotations

from collections.abc import Sequence
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
_NUMBERS = 10_000_000  # in the matrices of one batch: bounds the memory, not the number of structures
_NEGLIGIBLE = 1e-7  # share of a level in the gap below which its derivative is left out


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

    Soft edges lie inside the hard ones, by at most three temperatures each where levels are dense. ``range``: eV, of the gaps
    that the calibration has seen.
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
        # What calibrated labels of minima span: PBE says nothing of what is beyond.
        self.range = (-8.0, 5.0)
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
        for rows in which.split(max(1, _NUMBERS // (100 * (_ORBITALS * positions.shape[1]) ** 2))):
            values, known = self._gaps(positions[rows], cell[rows])
            gaps = gaps.index_copy(0, rows[known], self.calibration(values))
        return gaps

    def _gaps(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Computed gaps of those structures that have one, and (B,) which they are."""
        sums, known = self._sums(positions, cell)
        divisions = [self.grid or counts(c, self.spacing) for c in cell.detach().cpu()]
        points = [[part.to(cell) for part in grid(d)] for d in divisions]
        fractions, weights = [p[0] for p in points], [p[1] for p in points]
        levels = self._levels(sums, fractions)
        for halving in range(1, self.zoom + 1):
            new = [_nearby(f, e, d, 0.5**halving) for f, e, d in zip(fractions, levels, divisions, strict=True)]
            fractions = [torch.cat(both) for both in zip(fractions, new, strict=True)]
            levels = [torch.cat(both) for both in zip(levels, self._levels(sums, new), strict=True)]
            weights = [torch.cat([w, torch.ones(len(f)).to(w)]) for w, f in zip(weights, new, strict=True)]
        known = known & torch.stack([e.isfinite().all() for e in levels])
        values = [self._gap(levels[k], weights[k]) for k in known.nonzero()[:, 0].tolist()]
        return torch.stack(values) if values else positions.new_zeros(0), known

    def _sums(self, positions: Tensor, cell: Tensor) -> tuple[list[_Sum], Tensor]:
        """The lattice sum of each structure, and (B,) whether the table covers its pairs."""
        n = positions.shape[1]
        found = pairs(positions, cell, self.table.reach, half=True)
        vectors = found.vectors(positions, cell)
        close = vectors.detach().norm(dim=-1) < self.table.start
        known = torch.ones(len(positions), dtype=torch.bool, device=cell.device)
        known[found.structure[close]] = False
        # Pairs that are too close make their structure unknown; they must not make numbers that are none.
        vectors = torch.where(close[:, None], torch.full_like(vectors, self.table.reach), vectors)
        sizes = torch.bincount(found.structure, minlength=len(positions)).tolist()
        parts = (found.first * n + found.second, found.image.to(cell), self.table.blocks(vectors).flatten(1))
        return [_Sum(n, *one) for one in zip(*(part.split(sizes) for part in parts), strict=True)], known

    def _levels(self, sums: list[_Sum], points: list[Tensor]) -> list[Tensor]:
        """Energies (K, 4N) eV, ascending, at ``points`` (K, 3) of each structure; NaN where the overlap is not positive."""
        blocks = torch.cat([one.blocks for one in sums])
        return list(_Levels.apply(blocks, self.table.onsite, sums, points).split([len(p) for p in points]))

    def _shares(self, levels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What each level (K, 2N) counts in the highest filled and in the lowest empty one; both add up to one."""
        filled, empty = levels.chunk(2, dim=1)
        if not self.temperature:
            return (filled == filled.max()).to(filled), (empty == empty.min()).to(filled)
        size = weights.log()[:, None]
        return tuple(torch.softmax((size + sign * e / self.temperature).flatten(), 0).view_as(e) for sign, e in ((1, filled), (-1, empty)))

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
        shape = None if cell is None else tuple(cell.shape)
        raise IncompatibleError(f"a gap needs crystals (B, N, 3) and cells (B, 3, 3), got {tuple(positions.shape)} and {shape}.")
    others = [] if numbers is None else sorted({int(z) for z in torch.as_tensor(numbers).flatten()} - {6})
    if others:
        raise UnsupportedError(
            f"this gap knows carbon alone (atomic number 6), got atomic numbers {others}: guide with a predictor that covers them."
        )


class _Sum(NamedTuple):
    """Half of the pairs of a crystal of ``atoms``: which pair of atoms (E,), lattice vectors between (E, 3), H and S (E, 32)."""

    atoms: int
    pair: Tensor
    image: Tensor
    blocks: Tensor

    def phases(self, points: Tensor) -> Tensor:
        """(E, K) of the images at ``points`` (K, 3), fractions of the reciprocal vectors."""
        return torch.polar(torch.ones(()).to(points), 2 * torch.pi * (self.image @ points.T))

    def at(self, points: Tensor) -> Tensor:
        """(2, K, 4N, 4N) complex: H and S between different orbitals."""
        n, k, phase = self.atoms, len(points), self.phases(points)
        total = torch.zeros(n * n, k * self.blocks.shape[1], dtype=phase.dtype, device=phase.device)
        total.index_add_(0, self.pair, (phase[:, :, None] * self.blocks[:, None]).flatten(1))
        both = total.view(n, n, k, 2, _ORBITALS, _ORBITALS).permute(3, 2, 0, 4, 1, 5).reshape(2, k, n * _ORBITALS, n * _ORBITALS)
        return both + both.mH

    def pulled(self, slopes: Tensor, points: Tensor) -> Tensor:
        """(E, 32): the transpose of :meth:`at`, of Hermitian derivatives (2, K, 4N, 4N) to those of the blocks."""
        n, k = self.atoms, len(points)
        parts = slopes.view(2, k, n, _ORBITALS, n, _ORBITALS).permute(2, 4, 1, 0, 3, 5).reshape(n * n, k, self.blocks.shape[1])[self.pair]
        return 2 * torch.einsum("ekpc,ekc->ep", torch.view_as_real(parts), torch.view_as_real(self.phases(points)))


def _nearby(points: Tensor, levels: Tensor, divisions: Sequence[int], share: float) -> Tensor:
    """Points around the two band edges, a ``share`` of the grid's step away."""
    filled = levels.shape[1] // 2
    edges = levels.detach().nan_to_num(0.0)
    step = share / torch.tensor(divisions).to(points)
    places = {int(edges[:, filled - 1].argmax()), int(edges[:, filled].argmin())}
    return torch.cat([around(points[k], step) for k in sorted(places)])


class _Levels(torch.autograd.Function):
    """Eigenvalues of H c = e S c at points of each structure; their derivative is c* (dH - e dS) c (Hellmann and Feynman)."""

    @staticmethod
    def forward(ctx, blocks: Tensor, onsite: Tensor, sums: list[_Sum], points: list[Tensor]) -> Tensor:
        h, s = torch.cat([one.at(p) for one, p in zip(sums, points, strict=True)], 1)
        h.diagonal(dim1=1, dim2=2).add_(onsite.repeat(sums[0].atoms))
        s.diagonal(dim1=1, dim2=2).add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(s)
        sick = (failed != 0)[:, None, None]
        factor = torch.where(sick, torch.eye(h.shape[1]).to(h), factor)
        half = torch.linalg.solve_triangular(factor, h, upper=False)
        plain = torch.linalg.solve_triangular(factor, half.mH, upper=False)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(plain, factor)
            ctx.sums, ctx.points = sums, points
        return torch.linalg.eigvalsh(plain).masked_fill(sick[..., 0], torch.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        plain, factor = ctx.saved_tensors
        # Few points and levels are at the edges: only they need eigenvectors.
        slope = upstream[0] * (upstream[0].abs() > _NEGLIGIBLE)
        rows, levels = (slope != 0).any(1), (slope != 0).any(0)
        values, vectors = torch.linalg.eigh(plain[rows])
        vectors = torch.linalg.solve_triangular(factor[rows].mH, vectors[:, :, levels], upper=True)
        slope, values = slope[rows][:, levels], values[:, levels]
        both = torch.stack([(vectors * part[:, None]) @ vectors.mH for part in (slope, -slope * values)])
        used = rows.split([len(p) for p in ctx.points])
        shares = both.split([int(u.sum()) for u in used], 1)
        pulled = [one.pulled(part, p[u]) for one, part, p, u in zip(ctx.sums, shares, ctx.points, used, strict=True)]
        return torch.cat(pulled), None, None, None
