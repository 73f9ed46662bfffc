"""A crystal: where its atoms stand in fractions of the cell, and the cell's volume and shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import IncompatibleError
from ..random import Streams
from ..system.crystal import contact_volume
from ..system.descriptor import Descriptor
from ..types import Geometry, State
from .pose import random_rotations

__all__ = ["Crystal"]

TWO_PI = 2 * math.pi
_FARTHEST = 25.0  # logarithm of a stretch, beyond which numbers are no cells


class Crystal(nn.Module):
    """Any crystal of a given composition.

    ``frac`` (B, 3 N): fractions of the lattice vectors as angles, 2 pi times the fraction, in [-pi, pi), atom by atom.
    ``cell`` (B, 6): the cell in the pose in which its matrix is symmetric, P = exp(S), S the logarithm of the polar
    decomposition. The first component is the logarithm of the volume, less that of ``volume`` contact volumes
    (:func:`~dig_core.system.crystal.contact_volume`), over ``width``; the others are S less its trace in an orthonormal
    basis of symmetric matrices, over ``shape``. The volume is positive whatever the numbers. Lattice vectors that form a
    left-handed system are taken with the other sign.

    Measure: Lebesgue for the nine components of the cell and, at that cell, for all N atoms, each anywhere in it. So the
    rotations of the whole count 8 pi^2, and the translations of all atoms together, along which the law of a crystal is uniform,
    count the volume: they are part of the state and of the density. exp(-u) in this measure is the ensemble of constant
    temperature, and of constant pressure if u holds pV/kT.

    The defaults are those of carbon at 10 GPa: 6.5 Angstrom^3 an atom.
    """

    gauge = frozenset({"rotation"})

    def __init__(self, volume: float = 1.85, width: float = 0.1, shape: float = 0.28):
        super().__init__()
        self.volume, self.width, self.shape = float(volume), float(width), float(shape)
        self.config = {"volume": self.volume, "width": self.width, "shape": self.shape}

    @classmethod
    def from_config(cls, **config) -> Crystal:
        return cls(**config)

    def encode(self, geometry: Geometry, descriptor: Descriptor) -> tuple[State, Tensor]:
        """State of (B, N, 3) and cells (B, 3, 3) Angstrom, and log|d state / d geometry| (B,). Differentiable once.

        Raises IncompatibleError for structures without a cell, of another number of atoms, or whose cell is flat or not finite.
        """
        cell, positions = _checked(geometry, descriptor)
        hand = torch.linalg.det(cell).sign()[:, None, None]
        cell = cell * hand
        fractions = torch.linalg.solve(cell.transpose(1, 2), positions.transpose(1, 2)).transpose(1, 2)
        logarithm = _half_log(cell @ cell.transpose(1, 2))
        trace = logarithm.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        size = (trace - self._log_volume(descriptor)) / self.width
        shape = torch.einsum("bij,kij->bk", logarithm, _basis(logarithm)) / self.shape
        state = {"frac": _wrap(TWO_PI * fractions.flatten(1)), "cell": torch.cat([size, shape], 1)}
        return state, -self.log_volume(state, descriptor)

    def decode(self, state: State, descriptor: Descriptor) -> Geometry:
        """(B, N, 3) and symmetric cells (B, 3, 3) Angstrom, float64; fractions in [-1/2, 1/2). Differentiable."""
        vectors = self.vectors({name: x.double() for name, x in state.items()}, descriptor)
        return Geometry(self.fractions(state).double() @ vectors, vectors)

    def fractions(self, state: State) -> Tensor:
        """(B, N, 3) of the lattice vectors."""
        return state["frac"].unflatten(1, (-1, 3)) / TWO_PI

    def vectors(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B, 3, 3) Angstrom: lattice vectors as the rows of a symmetric matrix, in the state's type."""
        return torch.linalg.matrix_exp(self.logarithm(state, descriptor))

    def logarithm(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B, 3, 3) S, the logarithm of the symmetric cell in Angstrom."""
        cell = state["cell"]
        third = (self._log_volume(descriptor) + self.width * cell[:, :1, None]) / 3
        return third * torch.eye(3).to(cell) + self.tensor(cell[:, 1:])

    def tensor(self, shape: Tensor) -> Tensor:
        """(B, 3, 3) symmetric, without trace, of the cell's last five components."""
        return self.shape * torch.einsum("bk,kij->bij", shape, _basis(shape))

    def components(self, tensor: Tensor) -> Tensor:
        """(B, 6) the cell components along which symmetric matrices (B, 3, 3) move S: the transpose of :meth:`logarithm`, scaled."""
        shape = torch.einsum("bij,kij->bk", tensor, _basis(tensor))
        return torch.cat([tensor.diagonal(dim1=1, dim2=2).sum(1, keepdim=True), shape], 1)

    def log_volume(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) log|d geometry / d state|, 8 pi^2 for the rotations."""
        n, s = descriptor.n_atoms, self.logarithm({name: x.double() for name, x in state.items()}, descriptor)
        trace = s.diagonal(dim1=1, dim2=2).sum(1)
        # From the metric's law of a 3 x 3 matrix (Muirhead 1982, theorem 2.1.14) and dG of G = exp(2 S), eigenvalue by eigenvalue.
        eigenvalues = torch.linalg.eigvalsh(s)
        gaps = torch.stack([eigenvalues[:, a] - eigenvalues[:, b] for a, b in ((0, 1), (0, 2), (1, 2))], 1)
        constant = math.log(8 * math.pi**2) + 1.5 * math.log(2) + math.log(self.width / math.sqrt(3)) + 5 * math.log(self.shape)
        return (n + 3) * trace + _log_sinhc(gaps).sum(1) + constant

    def valid(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) True for finite states; astronomic cells are none."""
        s = self.logarithm({name: x.double() for name, x in state.items()}, descriptor)
        return state["frac"].isfinite().all(1) & (s.abs() < _FARTHEST).all((1, 2))

    def pose(self, geometry: Geometry, rng: Streams) -> Geometry:
        """Cell and atoms turned by a random rotation."""
        turn = random_rotations(rng).to(geometry.positions).transpose(1, 2)
        return Geometry(geometry.positions @ turn, None if geometry.cell is None else geometry.cell @ turn)

    def _log_volume(self, descriptor: Descriptor) -> float:
        return math.log(self.volume * contact_volume(descriptor))


def _checked(geometry: Geometry, descriptor: Descriptor) -> tuple[Tensor, Tensor]:
    """Cells and positions in float64."""
    positions, cell, n = geometry.positions.double(), geometry.cell, descriptor.n_atoms
    if cell is None:
        raise IncompatibleError("a crystal needs a cell, (B, 3, 3) Angstrom with lattice vectors as rows; got a geometry without one.")
    cell = cell.double()
    if positions.shape[1:] != (n, 3) or cell.shape != (len(positions), 3, 3):
        raise IncompatibleError(
            f"expected positions (B, {n}, 3) and cells (B, 3, 3) for this descriptor, got {tuple(positions.shape)} and {tuple(cell.shape)}."
        )
    flat = ~(torch.linalg.det(cell.detach()).abs() > 1e-6 * cell.detach().norm(dim=2).prod(1))
    bad = flat | ~positions.detach().isfinite().flatten(1).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise IncompatibleError(f"structure {first} has positions that are not finite, or a cell without volume: {cell[first].tolist()}.")
    return cell, positions


def _half_log(metric: Tensor) -> Tensor:
    """Half the logarithm of positive matrices (B, 3, 3), with a first derivative that equal eigenvalues do not harm."""
    values, axes = torch.linalg.eigh(metric.detach())
    half = 0.5 * values.log()
    found = (axes * half[:, None]) @ axes.transpose(1, 2)
    if not metric.requires_grad:
        return found
    # Daleckii-Krein: in the eigenvectors, divided differences of half the logarithm.
    total, gap = half[:, :, None] + half[:, None], half[:, :, None] - half[:, None]
    slope = 0.5 * torch.exp(-total - _log_sinhc(gap))
    moved = axes.transpose(1, 2) @ (metric - metric.detach()) @ axes
    return found + axes @ (slope * moved) @ axes.transpose(1, 2)


def _log_sinhc(x: Tensor) -> Tensor:
    """log(sinh(x) / x), smooth at zero."""
    near = x.abs() < 1e-2
    safe = torch.where(near, torch.ones_like(x), x.abs())
    far = safe + torch.log(-torch.expm1(-2 * safe)) - math.log(2) - safe.log()
    return torch.where(near, x**2 / 6 - x**4 / 180, far)


def _wrap(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, TWO_PI) - math.pi


def _basis(like: Tensor) -> Tensor:
    """(5, 3, 3) orthonormal symmetric matrices without trace."""
    basis = torch.zeros(5, 3, 3, dtype=torch.float64)
    basis[0] = torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)) / math.sqrt(2)
    basis[1] = torch.diag(torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)) / math.sqrt(6)
    for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2)), 2):
        basis[k, i, j] = basis[k, j, i] = 1 / math.sqrt(2)
    return basis.to(like)
