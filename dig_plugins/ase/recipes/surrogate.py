"""A Gaussian process of an adsorbate's energy over a fixed slab, fitted to energies and forces: many samples from few labels.

The kernel is a squared exponential in the positions of the adsorbate's atoms, summed over the surface's own translations;
energies and forces are observed together (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, 9.4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SlabProcess"]

_SIGNAL = 2.0  # eV, how far energies stray from the mean
_NOISE = (0.003, 0.02)  # eV, eV/Angstrom: what of a label is not a function of the adsorbate alone, and conditioning


class SlabProcess:
    """Energy (eV) of an adsorbate of A atoms over a slab.

    Parameters
    ----------
    slab: (S, 3) Angstrom, all atoms whose repulsion is felt; ``contact`` (A, S) Angstrom, sums of covalent radii.
    vectors: (2, 3) Angstrom, the surface's own translations. lengths: (A,) Angstrom, of the kernel, an atom each.
    """

    def __init__(self, slab: Tensor, contact: Tensor, vectors: Tensor, lengths: Tensor):
        self.slab, self.contact = slab.double(), contact.double()
        self.scale = lengths.double().repeat_interleave(3)
        # An image five lengths away changes nothing; all atoms move together, so their distances add up.
        reach = 5 * float(lengths.double().pow(-2).sum().rsqrt())
        self.images = _images(vectors.double(), reach)
        self.positions = torch.zeros(0, len(self.scale), dtype=torch.float64)

    def fit(self, positions: Tensor, energy: Tensor, force: Tensor) -> SlabProcess:
        """On n structures: ``positions`` (n, A, 3), ``energy`` (n,) eV, ``force`` (n, A, 3) eV/Angstrom; returns itself."""
        x = positions.double().flatten(1)
        wall, slope = self._wall(x)
        self.level = float((energy - wall).median())
        seen = torch.cat([energy.double() - wall - self.level, (force.double().flatten(1) - slope).flatten()])
        matrix = self._covariance(x, x)
        n, d = x.shape
        noise = torch.cat([torch.full((n,), _NOISE[0]), torch.full((n * d,), _NOISE[1])]).double()
        self.factor = torch.linalg.cholesky(matrix + torch.diag(noise**2))
        self.weight = torch.cholesky_solve(seen[:, None], self.factor)[:, 0]
        self.positions = x
        return self

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean energy (m,) eV and force (m, A, 3) eV/Angstrom of structures (m, A, 3)."""
        x = positions.double().flatten(1)
        wall, slope = self._wall(x)
        both = self._covariance(x, self.positions) @ self.weight
        m = len(x)
        return wall + self.level + both[:m], (slope + both[m:].view(m, -1)).view(positions.shape)

    def energy(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean energy and its standard deviation, (m,) eV each, without the forces: many times cheaper than a call."""
        x = positions.double().flatten(1)
        cross = self._covariance(x, self.positions, energy_only=True)
        known = torch.linalg.solve_triangular(self.factor, cross.T, upper=False).square().sum(0)
        mean = self._wall(x)[0] + self.level + cross @ self.weight
        return mean, (_SIGNAL**2 * self._self() - known).clamp_min(0.0).sqrt()

    def _self(self) -> float:
        return float(torch.exp(-0.5 * self._squared(self.images)).sum())

    def _squared(self, shift: Tensor) -> Tensor:
        return (shift.repeat(1, len(self.scale) // 3) / self.scale).square().sum(-1)

    def _covariance(self, x: Tensor, y: Tensor, energy_only: bool = False) -> Tensor:
        """(m (1 + d), n (1 + d)): energies first, then forces; the first m rows alone if ``energy_only``."""
        (m, d), n = x.shape, len(y)
        ee, ef = x.new_zeros(m, n), x.new_zeros(m, n, d)
        ff = None if energy_only else x.new_zeros(m, n, d, d)
        for image in self.images:
            gap = (x[:, None] - y + image.repeat(d // 3)) / self.scale
            e = _SIGNAL**2 * torch.exp(-0.5 * gap.square().sum(-1))
            gap = gap / self.scale
            ee += e
            ef -= e[..., None] * gap
            if ff is not None:
                ff += e[..., None, None] * (torch.diag(self.scale**-2) - gap[..., :, None] * gap[..., None, :])
        top = torch.cat([ee, ef.reshape(m, n * d)], 1)
        if ff is None:
            return top
        # Force rows against energies: the gap changes sign with the order of the two.
        left = -ef.transpose(1, 2).reshape(m * d, n)
        return torch.cat([top, torch.cat([left, ff.permute(0, 2, 1, 3).reshape(m * d, n * d)], 1)])

    def _wall(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean: 1 eV where two atoms stand at 0.7 of their contact, steep; and its force."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            gap = x.view(len(x), -1, 1, 3) - self.slab
            value = ((0.7 * self.contact).square() / gap.square().sum(-1)).pow(5).flatten(1).sum(1)
            force = -torch.autograd.grad(value.sum(), x)[0]
        return value.detach(), force


def _images(vectors: Tensor, reach: float) -> Tensor:
    """(k, 3) lattice vectors shorter than ``reach`` plus the cell's own diameter."""
    heights = torch.linalg.cross(vectors[0], vectors[1]).norm() / vectors.norm(dim=1).flip(0)
    far = reach + float(vectors.norm(dim=1).sum())
    ranges = [torch.arange(-math.ceil(far / h), math.ceil(far / h) + 1) for h in heights.tolist()]
    steps = torch.cartesian_prod(*ranges).double() @ vectors
    return steps[steps.norm(dim=1) < far]
