"""A protein's backbone: where the alpha carbons stand and how the residues are turned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..diffusion.rotations import rotation_matrix, rotation_vector
from ..errors import IncompatibleError
from ..random import Streams
from ..system.descriptor import Descriptor
from ..system.protein import Residues, ideal_residue, residues
from ..types import Geometry, State

__all__ = ["Backbone"]

_C_O, _LEAST = 1.231, 0.1
"""Angstrom: the carbonyl bond (Engh and Huber, 1991), and the height of the triangle N, CA, C below which it has no frame."""


class Backbone(nn.Module):
    """``pos`` (B, N, 3): alpha carbons about their centroid, over ``scale`` Angstrom; ``rot`` (B, N, 3): rotation vectors that turn
    a residue from its own frame (:func:`~dig_core.system.protein.ideal_residue`) into the pose it has.

    Frames come from N, CA and C by Gram-Schmidt (Jumper et al., doi:10.1038/s41586-021-03819-2, algorithm 21), so mirror images
    are other states; all atoms are placed back with ideal bond lengths and angles, L-residues whatever the numbers, and the
    carbonyl oxygen in the plane of the peptide. What that forgets of a structure is the gauge ``"residue"``.

    Measure: Lebesgue for the alpha carbons on the zero-centroid subspace, Angstrom, times the uniform law (density one) of each
    orientation: the law of the frames, with the rest of the protein integrated out.
    """

    gauge, curved = frozenset({"translation", "residue"}), frozenset({"rot"})
    ideal: Tensor

    def __init__(self, scale: float = 10.0):
        super().__init__()
        self.scale = float(scale)
        self.config = {"scale": self.scale}
        self.register_buffer("ideal", ideal_residue(), persistent=False)

    @classmethod
    def from_config(cls, **config) -> Backbone:
        return cls(**config)

    def encode(self, geometry: Geometry, descriptor: Descriptor) -> tuple[State, Tensor]:
        """State of (B, A, 3) Angstrom, and log|d state / d geometry| (B,). Differentiable.

        Raises IncompatibleError for another number of atoms, and for N, CA and C on one line.
        """
        known, positions = residues(descriptor), geometry.positions.double()
        if positions.dim() != 3 or positions.shape[1:] != (descriptor.n_atoms, 3):
            raise IncompatibleError(f"expected positions (B, {descriptor.n_atoms}, 3) for this sequence, got {tuple(positions.shape)}.")
        nitrogen, alpha, carbon = (positions[:, known.atoms[:, k]] for k in range(3))
        along = carbon - alpha
        x = along / along.norm(dim=-1, keepdim=True)
        side = nitrogen - alpha
        side = side - (side * x).sum(-1, keepdim=True) * x
        height = side.norm(dim=-1, keepdim=True)
        flat = ~(height[..., 0] > _LEAST)
        if bool(flat.any()):
            b, r = flat.nonzero()[0].tolist()
            raise IncompatibleError(
                f"structure {b} has no frame for residue {int(known.number[r])}: its N, CA and C stand on one line, or are not finite."
            )
        y = side / height
        matrix = torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)
        pos = (alpha - alpha.mean(1, keepdim=True)) / self.scale
        state = {"pos": pos, "rot": rotation_vector(matrix)}
        return state, -self.log_volume(state, descriptor)

    def decode(self, state: State, descriptor: Descriptor) -> Geometry:
        """(B, A, 3) Angstrom, float64, alpha carbons about the origin. Differentiable."""
        known = residues(descriptor)
        alpha, turn = state["pos"].double() * self.scale, rotation_matrix(state["rot"].double())
        atoms = alpha[:, :, None] + self.ideal.double() @ turn.transpose(-1, -2)
        atoms = torch.cat([atoms[:, :, :3], self._oxygen(atoms, known)[:, :, None], atoms[:, :, 4:]], 2)
        order = known.atoms.flatten()
        return Geometry(atoms.flatten(1, 2)[:, order >= 0][:, torch.argsort(order[order >= 0])])

    def _oxygen(self, atoms: Tensor, known: Residues) -> Tensor:
        """(B, N, 3): opposite the bisector of the bonds from C to CA and to the next N; as in the ideal residue at the end of a chain."""
        bonded, carbon = known.follows().to(atoms.device), atoms[:, :, 2]
        away = _unit(carbon[:, :-1] - atoms[:, :-1, 1]) + _unit(carbon[:, :-1] - atoms[:, 1:, 0])
        # Where noise folds the chain back the bisector has no direction: any will do.
        placed = carbon[:, :-1] + _C_O * _unit(away)
        inside = torch.where(bonded[:, None], placed, atoms[:, :-1, 3])
        return torch.cat([inside, atoms[:, -1:, 3]], 1)

    def log_volume(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) log|d geometry / d state|: of the alpha carbons alone, orientations count as they are."""
        batch, n, _ = state["pos"].shape
        return state["pos"].new_full((batch,), 3 * (n - 1) * math.log(self.scale), dtype=torch.float64)

    def valid(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) True for finite states: every frame is one of a residue."""
        return state["pos"].isfinite().flatten(1).all(1) & state["rot"].isfinite().flatten(1).all(1)

    def pose(self, geometry: Geometry, rng: Streams) -> Geometry:
        """Nothing to draw: the state holds everything but the centroid."""
        return geometry

    def force(self, positions: Tensor, forces: Tensor, owner: Tensor, alpha: Tensor) -> State:
        """What all-atom forces are to the state: sum and torque about the alpha carbon over the atoms of each residue.

        ``positions``, ``forces`` (B, M, 3) Angstrom and 1/Angstrom (-grad E/kT) of all atoms, ``owner`` (M,) the residue that each moves
        with, ``alpha`` (N,) indices of the alpha carbons. Moving with a residue keeps what stands in its frame, in which volumes are as in
        space: the mean over structures of equal frames is the gradient of the frames' log-density (Noid et al., doi:10.1063/1.2938860).
        """
        count = len(alpha)
        forces, positions = forces.double(), positions.double()
        pull = forces.new_zeros(len(forces), count, 3).index_add(1, owner, forces)
        arm = positions - positions[:, alpha][:, owner]
        torque = forces.new_zeros(len(forces), count, 3).index_add(1, owner, torch.linalg.cross(arm, forces))
        return {"pos": self.scale * (pull - pull.mean(1, keepdim=True)), "rot": torque}


def _unit(v: Tensor) -> Tensor:
    return v / (v.square().sum(-1, keepdim=True) + 1e-12).sqrt()
