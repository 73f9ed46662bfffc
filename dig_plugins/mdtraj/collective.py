"""Collective variables of a backbone, differentiable: what guidance asks of structures, and what experiments say of them.

Each is a predictor for :class:`~dig_core.sampling.likelihoods.Property`, in Angstrom but for fractions::

    wanted = Property(Distance(lid, core), Value(20.0, 1.0), "lid to core")
    sample_backbones(dig, 100, seed=0, guidance=PropertyGuidance(wanted))

Residues are meant by their index, from 0; :func:`numbered` gives those of numbers in a chain. Everything is read off alpha carbons.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dig_core.errors import IncompatibleError
from dig_core.sampling.likelihoods import Property, Value
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import residues
from dig_core.types import Geometry

__all__ = ["RMSD", "Distance", "Gyration", "NativeContacts", "Restraints", "alpha_carbons", "numbered"]

_TINY = 1e-12
"""Angstrom squared, which keeps square roots differentiable at zero."""


def numbered(descriptor: Descriptor, numbers: Sequence[int] | range, chain: int = 0) -> list[int]:
    """Indices of the residues with these numbers. Raises IncompatibleError for one that the chain has not."""
    known = residues(descriptor)
    place = {n: r for r, (n, c) in enumerate(zip(known.number.tolist(), known.chain.tolist(), strict=True)) if c == chain}
    missing = [int(n) for n in numbers if int(n) not in place]
    if missing:
        has = f"{min(place)} to {max(place)}, gaps apart" if place else "no residues"
        raise IncompatibleError(f"chain {chain} has no residues {missing[:5]}: it has {has}.")
    return [place[int(n)] for n in numbers]


def alpha_carbons(geometry: Geometry, descriptor: Descriptor) -> Tensor:
    """(B, N, 3) Angstrom, float64. Raises IncompatibleError for another number of atoms."""
    positions = geometry.positions
    if positions.dim() != 3 or positions.shape[1:] != (descriptor.n_atoms, 3):
        raise IncompatibleError(f"expected positions (B, {descriptor.n_atoms}, 3) of this sequence, got {tuple(positions.shape)}.")
    return positions[:, residues(descriptor).atoms[:, 1]].double()


class Distance:
    """(B,) between the centroids of two groups of residues; a group may be one index."""

    def __init__(self, first: int | Sequence[int], second: int | Sequence[int]):
        self.first, self.second = _group(first), _group(second)

    def __call__(self, geometry: Geometry, descriptor: Descriptor) -> Tensor:
        alpha = alpha_carbons(geometry, descriptor)
        one, two = (_of(alpha, group).mean(1) for group in (self.first, self.second))
        return _length(two - one)


class Gyration:
    """(B,) radius of gyration, all residues alike; of a group, if not of all."""

    def __init__(self, group: Sequence[int] | None = None):
        self.group = None if group is None else _group(group)

    def __call__(self, geometry: Geometry, descriptor: Descriptor) -> Tensor:
        alpha = _of(alpha_carbons(geometry, descriptor), self.group)
        return ((alpha - alpha.mean(1, keepdim=True)).square().sum((1, 2)) / alpha.shape[1] + _TINY).sqrt()


class RMSD:
    """(B,) from ``reference``, one structure of the descriptor, after superposition; over a group, if not over all residues.

    Of singular values alone (Kabsch, doi:10.1107/S0567739478001680), whose derivative exists whatever the shape.
    Raises IncompatibleError for more than one reference, or fewer than three residues.
    """

    def __init__(self, reference: Geometry, descriptor: Descriptor, group: Sequence[int] | None = None):
        self.group = None if group is None else _group(group)
        target = _of(_alone(reference, descriptor), self.group)
        if target.shape[1] < 3:
            raise IncompatibleError(f"expected at least 3 residues to superpose, got {target.shape[1]}.")
        self.target = target - target.mean(1, keepdim=True)

    def __call__(self, geometry: Geometry, descriptor: Descriptor) -> Tensor:
        alpha = _of(alpha_carbons(geometry, descriptor), self.group)
        x, y = alpha - alpha.mean(1, keepdim=True), self.target.to(alpha)
        if x.shape[1] != y.shape[1]:
            raise IncompatibleError(f"expected the {y.shape[1]} residues of the reference, got {x.shape[1]}.")
        left, widths, right = torch.linalg.svd(x.transpose(1, 2) @ y)
        # A mirror image would fit better where the smallest width counts as negative.
        hand = torch.linalg.det(left.detach() @ right.detach()).sign()
        overlap = widths[:, 0] + widths[:, 1] + hand * widths[:, 2]
        square = (x.square().sum((1, 2)) + y.square().sum() - 2 * overlap) / x.shape[1]
        return (square.clamp_min(0) + _TINY).sqrt()


class NativeContacts:
    """(B,) fraction from 0 to 1 of the contacts of ``reference``, one structure of the descriptor, that are made.

    Native contacts are alpha carbons nearer than ``cutoff`` Angstrom of residues ``apart`` or more from each other along a chain, or of
    different chains. One at r0 counts as 1 / (1 + exp(steepness (r - slack r0))) at r (Best, Hummer and Eaton, doi:10.1073/pnas.1311599110,
    whose steepness this is; their cutoff and slack are for heavy atoms). Raises IncompatibleError if there are none.
    """

    def __init__(
        self, reference: Geometry, descriptor: Descriptor, *, cutoff: float = 8.0, apart: int = 4, steepness: float = 5.0,
        slack: float = 1.2,
    ):  # fmt: skip
        known, alpha = residues(descriptor), _alone(reference, descriptor)[0]
        gap = torch.cdist(alpha, alpha, compute_mode="donot_use_mm_for_euclid_dist").cpu()
        far = (known.number[:, None] - known.number).abs() >= apart
        self.pairs = ((gap < cutoff) & (far | (known.chain[:, None] != known.chain))).triu(1).nonzero()
        if not len(self.pairs):
            raise IncompatibleError(f"the reference has no contacts below {cutoff} Angstrom: raise the cutoff.")
        self.limit, self.steepness = slack * gap[self.pairs[:, 0], self.pairs[:, 1]], float(steepness)

    def __call__(self, geometry: Geometry, descriptor: Descriptor) -> Tensor:
        lengths = _lengths(alpha_carbons(geometry, descriptor), self.pairs)
        return torch.sigmoid(self.steepness * (self.limit.to(lengths) - lengths)).mean(1)


class Restraints:
    """(B,) how far K distances of alpha carbons are from their bounds together: the root of the sum of squares, in ``width`` each.

    :meth:`wanted` makes a property of it whose log-likelihood is minus half the sum: harmonic walls outside the bounds, flat
    inside. ``lower`` = ``upper`` is a measured mean with the standard deviation ``width``. It costs guidance as much as one distance;
    of a few, a :class:`Distance` each with a likelihood of its own is pulled better.

    Each structure meets the restraints by itself. A measurement that is an average over the ensemble is not this.

    Parameters
    ----------
    pairs: (K, 2) indices of residues.
    lower, upper, width: Angstrom, one for all or one a pair. NOEs between protons need bounds wide enough for alpha carbons.
    """

    def __init__(self, pairs, *, upper: float | Sequence[float], width: float | Sequence[float], lower: float | Sequence[float] = 0.0):
        self.pairs = torch.as_tensor(pairs, dtype=torch.long)
        shape = tuple(self.pairs.shape)
        if len(shape) != 2 or shape[1] != 2 or not shape[0] or bool((self.pairs[:, 0] == self.pairs[:, 1]).any() | (self.pairs < 0).any()):
            raise IncompatibleError(f"expected pairs (K, 2) of different residues, indices from 0 on, at least one, got shape {shape}.")
        self.lower, self.upper, self.width = (_each(x, len(self.pairs)) for x in (lower, upper, width))
        if bool((self.lower > self.upper).any()) or not bool((self.width > 0).all()):
            raise IncompatibleError("expected lower <= upper and widths above 0 for every pair.")

    def beyond(self, geometry: Geometry, descriptor: Descriptor) -> Tensor:
        """(B, K) Angstrom above the upper bound, negative below the lower, 0 inside."""
        lengths = _lengths(alpha_carbons(geometry, descriptor), self.pairs)
        return (lengths - self.upper.to(lengths)).clamp_min(0) - (self.lower.to(lengths) - lengths).clamp_min(0)

    def __call__(self, geometry: Geometry, descriptor: Descriptor) -> Tensor:
        beyond = self.beyond(geometry, descriptor)
        return ((beyond / self.width.to(beyond)).square().sum(1) + _TINY).sqrt()

    def wanted(self, name: str = "restraints") -> Property:
        """All restraints as one property."""
        return Property(self, Value(0.0, 1.0), name)


def _group(given: int | Sequence[int]) -> Tensor:
    group = torch.as_tensor(list(given) if isinstance(given, range | set) else given).reshape(-1)
    if not len(group) or group.dtype not in (torch.int64, torch.int32) or int(group.min()) < 0:
        raise IncompatibleError(f"expected indices of residues, from 0 on, at least one, got {given!r}.")
    return group.long()


def _of(alpha: Tensor, group: Tensor | None) -> Tensor:
    """Those of a group, all if None."""
    if group is None:
        return alpha
    if int(group.max()) >= alpha.shape[1]:
        n, most = alpha.shape[1], int(group.max())
        raise IncompatibleError(f"expected residues from 0 to {n - 1}, got index {most}: numbered() makes indices of residue numbers.")
    return alpha[:, group]


def _alone(reference: Geometry, descriptor: Descriptor) -> Tensor:
    alpha = alpha_carbons(reference, descriptor).detach()
    if len(alpha) != 1 or not bool(alpha.isfinite().all()):
        raise IncompatibleError(f"expected one reference structure (1, A, 3), finite, got {tuple(reference.positions.shape)}.")
    return alpha


def _lengths(alpha: Tensor, pairs: Tensor) -> Tensor:
    """(B, K)."""
    _of(alpha, pairs)
    return _length(alpha[:, pairs[:, 1]] - alpha[:, pairs[:, 0]])


def _length(x: Tensor) -> Tensor:
    return (x.square().sum(-1) + _TINY).sqrt()


def _each(value: float | Sequence[float], n: int) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float64)
    if found.dim() > 1 or (found.dim() == 1 and len(found) != n):
        raise IncompatibleError(f"expected one number, or one for each of {n} pairs, got shape {tuple(found.shape)}.")
    return found.expand(n)
