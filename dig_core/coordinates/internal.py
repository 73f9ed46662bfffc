"""Internal coordinates: standardised bonds, angles and sibling torsions (``shape``) and free torsions on a torus (``torsion``).

Behind straight angles (nitriles, alkynes, allenes) the components of the bond in the frame of earlier atoms take their place.
The map is one to one up to translation, rotation and the labels of equivalent end atoms (methyl hydrogens), which
:meth:`Internal.pose` draws uniformly. Measure and Jacobian: method of Go and Scheraga, doi:10.1021/ma60052a002.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..diffusion.spaces import TWO_PI, wrap
from ..errors import IncompatibleError, UnsupportedError
from ..random import Streams
from ..system.descriptor import Descriptor
from ..types import Geometry, State
from .measure import angle, bond, dihedral, offset
from .placement import levels, place
from .pose import random_rotations
from .zmatrix import ZMatrix, build_zmatrix

__all__ = ["Internal"]

BOND, ANGLE, SIBLING, ALONG, ASIDE = range(5)
NARROW = math.radians(100)
_DEFAULT_WIDTH = (0.03, 0.06, 0.08, 0.03, 0.08)  # Angstrom or rad: typical of 300 K, used where nothing better is known


class Internal(nn.Module):
    """Z-matrix coordinates of one molecule.

    ``shape`` (B, D - T): whitening @ ((bonds, angles, sibling torsions, components) - centre) / width, Angstrom and radians before;
    ``torsion`` (B, T): rotations about bonds in [-pi, pi), a symmetric end group's mean angle times its order.
    Stereocentres keep their sign: a sibling torsion would have to leave its half turn to flip it, and such states,
    like negative bond lengths, are invalid (zero density).
    """

    gauge = frozenset({"translation", "rotation", "equivalent atoms"})
    centre: Tensor
    width: Tensor
    whitening: Tensor

    def __init__(self, zmatrix: ZMatrix, centre: Tensor, width: Tensor, whitening: Tensor | None = None):
        super().__init__()
        self.zmatrix = zmatrix
        size = len(centre)
        for name, value in (
            ("centre", centre),
            ("width", width),
            ("whitening", torch.eye(size) if whitening is None else whitening),
        ):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64))
        self._index()

    @property
    def config(self) -> dict:
        return {"zmatrix": self.zmatrix.config, "size": len(self.centre)}

    @classmethod
    def from_config(cls, zmatrix: dict, size: int) -> Internal:
        """An object of the right shapes, to load a state dict into."""
        return cls(ZMatrix.from_config(**zmatrix), torch.zeros(size), torch.ones(size))

    @classmethod
    def from_reference(cls, descriptor: Descriptor, standards=None) -> Internal:
        """Centre on the descriptor's reference structure; widths from ``standards`` or typical of 300 K.

        ``standards``: what a force field says, a mapping from atom tuples (2 for bonds, 3 for angles, either direction)
        to (rest value, thermal width) in Angstrom or radians.
        """
        if descriptor.reference is None:
            raise IncompatibleError("Internal coordinates need a reference structure: pass positions to the descriptor.")
        zmatrix = build_zmatrix(descriptor)
        count = 2 * zmatrix.n_atoms - 3 + sum(not f for f in zmatrix.free[3:])
        self = cls(zmatrix, torch.zeros(count), torch.ones(count))
        raw, _ = self._measure(descriptor.reference.positions)
        centre, width = self._standards(raw[0], standards or {})
        self._refuse_straight(centre)
        return cls(zmatrix, centre, width)

    @classmethod
    def from_frames(cls, descriptor: Descriptor, geometry: Geometry, shrink: float = 0.01) -> Internal:
        """Centre, widths and correlations (symmetric whitening) from frames (F, N, 3) of the ensemble.

        Torsions that never leave ``NARROW`` of their mean in any frame (amides, double bonds, rings) join ``shape``.
        """
        self = cls.from_reference(descriptor)
        self = self._with_narrow(geometry.positions.double())
        raw, _ = self._measure(self._relabel(geometry.positions.double()))
        raw = self.centre + self._deviation(raw)
        centre, width = raw.mean(0), raw.std(0)
        unit = (raw - centre) / width
        correlation = (1 - shrink) * unit.T @ unit / len(unit) + shrink * torch.eye(len(centre), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(correlation)
        self._refuse_straight(centre)
        return cls(self.zmatrix, centre, width, vectors @ torch.diag(values**-0.5) @ vectors.T)

    # -- the contract -------------------------------------------------------------------------------------------------

    def encode(self, geometry: Geometry, descriptor: Descriptor) -> tuple[State, Tensor]:
        """State of (B, N, 3) Angstrom and log|d state / d geometry| (B,), geometry in the zero-centroid subspace."""
        positions = self._relabel(geometry.positions.double())
        raw, torsion = self._measure(positions)
        state = {"shape": self._deviation(raw) / self.width @ self.whitening.T, "torsion": self._fold(raw, torsion)}
        return state, -self._log_volume(raw)

    def decode(self, state: State, descriptor: Descriptor) -> Geometry:
        """(B, N, 3) Angstrom, float64, centroid at the origin, in one fixed orientation. Differentiable."""
        raw = self._raw(state)
        return Geometry(place(self._levels, raw, self._unfold(raw, state["torsion"].double())))

    def log_volume(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) log|d geometry / d state|, the gauge integrated out. Differentiable."""
        return self._log_volume(self._raw(state))

    def valid(self, state: State, descriptor: Descriptor) -> Tensor:
        """(B,) bool: positive bonds, angles inside (0, pi), sibling torsions within half a turn of their centre."""
        raw = self._raw(state)
        kinds = self.kind_index
        bonds, angles, siblings = raw[:, kinds == BOND], raw[:, kinds == ANGLE], raw[:, kinds == SIBLING]
        inside = (bonds > 0).all(1) & ((angles > 0) & (angles < math.pi)).all(1)
        return inside & ((siblings - self.centre[kinds == SIBLING]).abs() < math.pi).all(1)

    def pose(self, geometry: Geometry, rng: Streams) -> Geometry:
        """Draw what encode forgets: a uniform rotation about the centroid and labels of equivalent end atoms."""
        positions = geometry.positions
        order = torch.arange(self.zmatrix.n_atoms).repeat(len(positions), 1)
        choice = (rng.uniform(max(1, len(self.zmatrix.rotors))) * 3).long()
        for column, rotor in enumerate(self.zmatrix.rotors):
            atoms = torch.tensor(rotor.atoms)
            order[:, atoms] = atoms[(torch.arange(3) + choice[:, column, None]) % 3]
        positions = positions.gather(1, order[..., None].expand(-1, -1, 3))
        return Geometry(positions @ random_rotations(rng).to(positions).transpose(1, 2))

    @property
    def rotors(self) -> list[int]:
        """Columns of ``torsion`` that turn equivalent end atoms."""
        return [column for column, _ in self._rotor_columns]

    def turned(self, state: State, rotor: int, forward: bool = True) -> State:
        """The same structures with the end atoms of one rotor named in turn: its torsion is 2 pi more, or less, than it was.

        Where labels change, at half a turn, such states go on smoothly; :meth:`decode` takes torsions of any size.
        """
        raw, (column, siblings) = self._raw(state), self._rotor_columns[rotor]
        atoms, middle = self.zmatrix.rotors[rotor].atoms, self.centre[siblings]
        ahead = forward == (float(wrap(middle[0])) > 0)
        fresh, (second, third) = raw.clone(), raw[:, siblings].unbind(1)
        for to, source in zip(atoms, [atoms[k] for k in ((1, 2, 0) if ahead else (2, 0, 1))], strict=True):
            fresh[:, self._columns[to][:2]] = raw[:, self._columns[source][:2]]
        angles = torch.stack([third - second, -second] if ahead else [-third, second - third], 1)
        fresh[:, siblings] = middle + wrap(angles - middle)
        torsion = state["torsion"].clone()
        torsion[:, column] += TWO_PI if forward else -TWO_PI
        return {"shape": self._deviation(fresh) / self.width @ self.whitening.T, "torsion": torsion}

    def _with_narrow(self, positions: Tensor) -> Internal:
        """The same coordinates with torsions that are narrow in ``positions`` no longer free, centred on the frames."""
        _, torsion = self._measure(positions)
        mean = torch.atan2(torsion.sin().mean(0), torsion.cos().mean(0))
        turning = {rotor.atoms[0] for rotor in self.zmatrix.rotors}
        narrow = {
            atoms[0]: float(mean[column])
            for column, atoms in enumerate(self.torsion_atoms)
            if atoms[0] not in turning and float(wrap(torsion[:, column] - mean[column]).abs().max()) < NARROW
        }
        rows, free = self.zmatrix.rows, self.zmatrix.free
        zmatrix = replace(self.zmatrix, free=tuple(f and r[0] not in narrow for r, f in zip(rows, free, strict=True)))
        known: dict = dict(zip(self.shape_atoms, self.centre.tolist(), strict=True))
        size = len(self.centre) + len(narrow)
        fresh = Internal(zmatrix, torch.zeros(size), torch.ones(size))
        fresh.centre = torch.tensor([known.get(a, narrow.get(a[0])) for a in fresh.shape_atoms], dtype=torch.float64)
        return fresh

    def _standards(self, reference: Tensor, standards) -> tuple[Tensor, Tensor]:
        """Centre and width of each column: what is known of it, or the reference and what is typical."""
        known = {key: value for atoms, value in standards.items() for key in (atoms, atoms[::-1])}
        centre, width = reference.clone(), torch.tensor([_DEFAULT_WIDTH[k] for k in self.kinds], dtype=torch.float64)
        for column, (kind, atoms) in enumerate(zip(self.kinds, self.shape_atoms, strict=True)):
            if kind in (ALONG, ASIDE):
                value = known.get(atoms[:2])
                rest, bend = known.get(atoms[:3], (math.pi, _DEFAULT_WIDTH[ANGLE]))
                length = value[0] if value else float(reference[self._columns[atoms[0]][0]])
                # Half of an angle that is not quite straight lies to either side.
                value = value if kind == ALONG else (0.0, length * math.hypot(bend, math.pi - rest))
            else:
                value = known.get(atoms)
            if value is not None:
                centre[column], width[column] = value
        return centre, width

    # -- inside -------------------------------------------------------------------------------------------------------

    def _index(self) -> None:
        rows, free, straight = self.zmatrix.rows, self.zmatrix.free, set(self.zmatrix.straight)
        shape: list[tuple[int, tuple[int, ...]]] = []
        for (i, j, k, m), turns in zip(rows, free, strict=True):
            if i in straight:
                shape += [(ALONG, (i, j, k, m)), (ASIDE, (i, j, k, m)), (ASIDE, (i, j, k, m))]
                continue
            if j >= 0:
                shape.append((BOND, (i, j)))
            if k >= 0:
                shape.append((ANGLE, (i, j, k)))
            if m >= 0 and not turns:
                shape.append((SIBLING, (i, j, k, m)))
        shape.sort(key=lambda item: item[0])
        self.kinds = [kind for kind, _ in shape]
        self.kind_index = torch.tensor(self.kinds)
        self.shape_atoms = [atoms for _, atoms in shape]
        self.torsion_atoms = [row for row, turns in zip(rows, free, strict=True) if turns]
        if len(shape) != len(self.centre):
            raise IncompatibleError(f"This z-matrix has {len(shape)} shape coordinates, got centres for {len(self.centre)}.")
        self._columns: dict[int, list[int]] = {row[0]: [] for row in rows}
        for number, atoms in enumerate(self.shape_atoms):
            self._columns[atoms[0]].append(number)
        turn_of = {atoms[0]: number for number, atoms in enumerate(self.torsion_atoms)}
        # Rotors: (torsion column, sibling columns); the mean of the three angles is what is diffused.
        self._rotor_columns = [
            (turn_of[rotor.atoms[0]], [self._columns[atom][2] for atom in rotor.atoms[1:]]) for rotor in self.zmatrix.rotors
        ]
        self._levels = levels(self.zmatrix, self._columns, turn_of)

    def _refuse_straight(self, centre: Tensor) -> None:
        for column, atoms in enumerate(self.shape_atoms):
            if self.kinds[column] == ANGLE and not 0.15 < float(centre[column]) < math.pi - 0.15:
                raise UnsupportedError(
                    f"The angle of atoms {atoms} is {math.degrees(float(centre[column])):.0f} degrees, and is not in the reference "
                    "structure: torsions about it mean nothing. Take a reference in which it is straight, above 160 degrees."
                )

    def _measure(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Raw shape values (B, D - T) and raw torsions (B, T)."""
        values = []
        for kind, measure in ((BOND, bond), (ANGLE, angle), (SIBLING, dihedral), (ALONG, offset)):
            table = [atoms for atoms, found in zip(self.shape_atoms, self.kinds, strict=True) if found == kind]
            if table:
                values.append(measure(positions, table))
        if self.zmatrix.straight:
            components = values.pop()
            values += [components[..., 0], components[..., 1:].flatten(1)]
        torsion = dihedral(positions, self.torsion_atoms) if self.torsion_atoms else positions.new_zeros(len(positions), 0)
        return torch.cat(values, dim=1), torsion

    def _deviation(self, raw: Tensor) -> Tensor:
        """raw - centre, sibling torsions by the shorter way round."""
        gap = raw - self.centre
        return torch.where(self.kind_index == SIBLING, wrap(gap), gap)

    def _raw(self, state: State) -> Tensor:
        return self.centre + torch.linalg.solve(self.whitening, state["shape"].double().T).T * self.width

    def _fold(self, raw: Tensor, torsion: Tensor) -> Tensor:
        """Raw torsions to the torus: an end group's mean angle times three, which relabelling its atoms does not change."""
        folded = torsion.clone()
        for column, siblings in self._rotor_columns:
            folded[:, column] = 3 * (torsion[:, column] + raw[:, siblings].sum(1) / 3)
        return wrap(folded)

    def _unfold(self, raw: Tensor, torsion: Tensor) -> Tensor:
        columns = list(torsion.unbind(1))
        for column, siblings in self._rotor_columns:
            columns[column] = columns[column] / 3 - raw[:, siblings].sum(1) / 3
        return torch.stack(columns, dim=1) if columns else torsion

    def _relabel(self, positions: Tensor) -> Tensor:
        """Equivalent end atoms in the one order whose mean angle lies in the third that _unfold returns."""
        if not self.zmatrix.rotors:
            return positions
        raw, torsion = self._measure(positions)
        order = torch.arange(self.zmatrix.n_atoms, device=positions.device).repeat(len(positions), 1)
        for rotor, (column, siblings) in zip(self.zmatrix.rotors, self._rotor_columns, strict=True):
            atoms = torch.tensor(rotor.atoms)
            about = self.centre[siblings]
            # All angles continued from the first, so that their mean is continuous and moves by a third on relabelling.
            mean = torsion[:, column] + (about + wrap(raw[:, siblings] - about)).sum(1) / 3
            shift = torch.round(wrap(mean) * 3 / TWO_PI).long()
            # Handedness decides which neighbour comes next on turning forward.
            forward = 1 if float(wrap(about[0])) > 0 else -1
            order[:, atoms] = atoms[(torch.arange(3) - forward * shift[:, None]) % 3]
        return positions.gather(1, order[..., None].expand(-1, -1, 3))

    def _log_volume(self, raw: Tensor) -> Tensor:
        """log|d geometry / d state| with the rotation (8 pi^2), the centroid (N^3/2) and torus units (2 pi a torsion)."""
        bonds, angles = raw[:, self.kind_index == BOND], raw[:, self.kind_index == ANGLE]
        # b^2 sin(theta) an atom; the second atom has no angle and the first no bond.
        volume = 2 * bonds.clamp_min(1e-12).log().sum(1) + angles.sin().clamp_min(1e-12).log().sum(1)
        linear = self.width.log().sum() - torch.linalg.slogdet(self.whitening).logabsdet
        constant = math.log(8 * math.pi**2) - 1.5 * math.log(self.zmatrix.n_atoms) + len(self.torsion_atoms) * math.log(TWO_PI)
        return volume + linear + constant
